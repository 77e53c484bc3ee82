"""From what a setting calls its base to the pretrained network: a folder that is read, or a model that is trained first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress, silent_progress
from attribench.configuration.resolution import Config, resolve
from attribench.data import AttributionDataModule
from attribench.diffusion.pretrained.foreign_files import read_json
from attribench.diffusion.pretrained.networks import network_folder, read_network
from attribench.diffusion.pretrained.pipelines import pipeline_folder
from attribench.diffusion.pretrained.schedulers import SCHEDULER_FILE, read_schedule
from attribench.diffusion.spaces import PixelSpace, Space
from attribench.errors import ModelError, UsageError
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore, Spec
from attribench.truth.base import Base, content_of, store_base
from attribench.truth.executors import make_executor
from attribench.truth.jobs import TrainJob, save_images
from attribench.truth.latent_base import store_pipeline

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class TrainedBase:
    """The target model of another setting.

    Args:
        job: what trained it.
        content: see :func:`attribench.truth.base.content_of`; empty before it is trained.
    """

    job: TrainJob
    content: str

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        return self.job.outcome

    def load(self, store: ArtifactStore) -> nn.Module:
        return self.job.load(store)

    def skeleton(self) -> nn.Module:
        return self.job.skeleton()

    @property
    def prompts(self) -> tuple[str, ...]:
        return ()

    def space(self, store: ArtifactStore, device: torch.device) -> Space:
        return PixelSpace()

    def stand_in(self, image_shape: Shape) -> tuple[Shape, dict[str, tuple[int, ...]]]:
        return image_shape, {}


@dataclass(frozen=True)
class Asked:
    """What a base is for.

    Args:
        image_shape: (channels, height, width) of the images that LoRA is trained on.
        captions: of all of them, and of the queries.
        prompts: that images are generated with.
    """

    image_shape: Shape
    captions: Sequence[str] = ()
    prompts: Sequence[str] = ()


def provide_base(name: str, asked: Asked, store: ArtifactStore, runtime: Runtime, progress: Progress) -> Base:
    """The base that ``model.base`` names, in the store; trained first if it is another setting's model and not there yet.

    Raises:
        UsageError: there is no such setting, or it has a base itself.
        ModelError: there is no such folder, what is in it cannot be read, or it is a model of other images.
    """
    if _is_folder(name):
        return _read(Path(name), asked, store, runtime, progress)
    data, job = _pretraining(name)
    _check_shape(name, asked.image_shape, job.image_shape)
    if job.find(store) is None:
        save_images(store, data.train)
        with progress.task(f"{data.label}: the base, {name}", job.cost) as task:
            make_executor([job], store, runtime, progress).run([job], task)
    return _trained(job, store)


def planned_base(name: str, asked: Asked, store: ArtifactStore, runtime: Runtime) -> Base:
    """The same, but nothing is trained: a model that would have to be has no content yet, and nothing can be found by it.

    Raises:
        UsageError, ModelError: as :func:`provide_base`.
    """
    if _is_folder(name):
        return _read(Path(name), asked, store, runtime, silent_progress)
    _, job = _pretraining(name)
    _check_shape(name, asked.image_shape, job.image_shape)
    return TrainedBase(job, "") if job.find(store) is None else _trained(job, store)


def _trained(job: TrainJob, store: ArtifactStore) -> TrainedBase:
    network = job.load(store)
    return TrainedBase(job, content_of(network, network.state_dict()))


def target_job(data: AttributionDataModule, config: Config) -> TrainJob:
    """What trains the target model of a setting without a base."""
    training = config.settings.training
    return TrainJob(
        name=f"base, the target model of {data.label}",
        train_hash=data.train.content_hash,
        image_shape=data.train.image_shape,
        indices=None,
        num_images=len(data.train),
        model=config.settings.model,
        training=training,
        seed=training.seed,
        num_checkpoints=training.num_checkpoints,
    )


def _is_folder(name: str) -> bool:
    return Path(name).is_dir() or "/" in name or ":" not in name


def _pretraining(name: str) -> tuple[AttributionDataModule, TrainJob]:
    dataset, _, preset = name.rpartition(":")
    try:
        config = resolve(dataset, preset, [], {})
    except UsageError as error:
        raise UsageError(f"--model.base {name}, a setting DATASET:PRESET: {error}") from error
    if config.settings.model.base is not None:
        raise UsageError(f"--model.base {name}: that setting trains LoRA itself, on {config.settings.model.base}.")
    data: AttributionDataModule = config.data_class(**config.data)
    return data, target_job(data, config)


def _read(path: Path, asked: Asked, store: ArtifactStore, runtime: Runtime, progress: Progress) -> Base:
    if not path.is_dir():
        raise ModelError(
            f"There is no base at {path}: --model.base takes a diffusers folder, or DATASET:PRESET, a setting whose target "
            "model it is."
        )
    pipeline = pipeline_folder(path)
    if pipeline is not None:
        device = resolve_device(runtime.accelerator)
        return store_pipeline(pipeline, asked.image_shape, asked.captions, asked.prompts, store, device, progress)
    folder = network_folder(path)
    network = read_network(folder)
    config: dict[str, Any] = read_json(folder / "config.json")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds"):
        raise ModelError(f"The base {path} is told classes, and a LoRA is trained without them.")
    _check_shape(str(path), asked.image_shape, _shape(config))
    _check_schedule(path, folder)
    return store_base(store, config, network.state_dict())


def _check_schedule(path: Path, folder: Path) -> None:
    """LoRA is trained as the benchmark's models are; a base that says nothing of its schedule is taken to have been so too."""
    places = (path / "scheduler", path, folder, folder.parent / "scheduler")
    beside = next((place for place in places if (place / SCHEDULER_FILE).is_file()), None)
    if beside is not None and read_schedule(beside).spec:
        raise ModelError(
            f"The base {path} was trained with another noise schedule or prediction than LoRA is here: 1000 steps, β linear "
            "from 1e-4 to 0.02, and the noise is predicted (the defaults of diffusers' DDPMScheduler)."
        )


def _shape(config: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Channels and size of a network's images, as far as its configuration says."""
    size = config.get("sample_size")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.get("in_channels", 3), height, width


def _check_shape(base: str, images: Shape, own: tuple[int | None, int | None, int | None]) -> None:
    if any(theirs is not None and ours != theirs for ours, theirs in zip(images, own, strict=True)):
        given, there = ("×".join("?" if side is None else str(side) for side in shape) for shape in (images, own))
        raise ModelError(
            f"The base {base} is of images of {there} (channels, height, width), and the data set's are {given}."
        )
