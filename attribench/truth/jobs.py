"""The units of work of a ground truth: train one model, or measure one model's losses on one query set.

A job is a plain picklable value; it reads and writes only the artifact store, so it can run in any process that sees the
work directory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attribench.computing.device import resolve_device, single_thread
from attribench.data import ImageSet
from attribench.diffusion.losses import denoising_losses
from attribench.diffusion.network import build_network
from attribench.diffusion.recipes import LOSSES, TRAINING, recipe
from attribench.diffusion.spaces import PixelSpace, Space
from attribench.diffusion.training.loop import checkpoint_steps, load_lora, load_network, num_steps, train_network
from attribench.diffusion.training.tuning import begin_lora, trained_weights
from attribench.diffusion.training.unfinished import RESUME_FILE, UnusableStateError, checkpoint_name
from attribench.errors import ArtifactError
from attribench.settings import ModelSettings, Runtime, TrainingSettings
from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging
from attribench.store.files import canonical
from attribench.truth.base import Base
from attribench.truth.resources import Blueprint, Memory, Size, image_bytes, size_of

# Work is counted in forward passes of one image; a training step on an image costs about four of them.
TRAINING_COST = 4.0

Report = Callable[[float], None]


class Job(Protocol):
    """What an executor runs. Unless they say otherwise, jobs that inherit from it need no others and begin anew."""

    @property
    def name(self) -> str:
        """What errors and waiting messages call it."""

    @property
    def cost(self) -> float:
        """Work in forward passes of one image, for the time left."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of jobs that come before it."""
        return ()

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        """What it takes at the peak, on a CPU or on a GPU."""

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        """Kinds and specifications of the artifacts that it reads; those it needs are there."""

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        """Kind and specification of the artifact that it makes; None as long as what that is bound to is not there."""

    @property
    def unfinished(self) -> str | None:
        """The file of its working folder that an interrupted one goes on from; None: it starts anew."""
        return None

    def find(self, store: ArtifactStore) -> Artifact | None:
        """The finished artifact, if it is there."""

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        """Do it, unless it is done.

        Raises:
            LockBusyError: another process is at it.
        """


def save_images(store: ArtifactStore, images: ImageSet) -> Artifact:
    """Put images into the store, where jobs find them by content hash."""

    def build(staging: Staging) -> None:
        tensors = {"images": images.images}
        if images.labels is not None:
            tensors["labels"] = images.labels
        staging.save_tensors("images", tensors)
        staging.save_json("ids", list(images.ids))
        if images.captions is not None:
            staging.save_json("captions", list(images.captions))

    return store.get_or_create("images", {"content": images.content_hash}, build)


def load_images(store: ArtifactStore, content_hash: str) -> ImageSet:
    """Take images out of the store.

    Raises:
        ArtifactError: they are not there.
    """
    artifact = store.find("images", {"content": content_hash})
    if artifact is None:
        raise ArtifactError(f"The images {content_hash[:12]} are not in {store.root}; run the whole command again.")
    tensors = artifact.load_tensors("images")
    captions = tuple(artifact.load_json("captions")) if (artifact.folder / "captions.json").is_file() else None
    return ImageSet(tensors["images"], tuple(artifact.load_json("ids")), tensors.get("labels"), captions)


@dataclass(frozen=True)
class TrainJob:
    """Train one model: a whole network from scratch, or LoRA on a base.

    Args:
        name: what messages call it.
        train_hash: content hash of the train images in the store.
        image_shape: (channels, height, width).
        indices: the train images the model sees, or None for all.
        num_images: how many those are.
        seed: the training seed.
        num_checkpoints: models kept of the course of the training; 0 for none.
        weights: checksum of the weights of another machine's training, which may round otherwise: a model of its own.
        base: the pretrained network that LoRA is trained on; the artifact holds the LoRA alone.
    """

    name: str
    train_hash: str
    image_shape: tuple[int, int, int]
    indices: tuple[int, ...] | None
    num_images: int
    model: ModelSettings
    training: TrainingSettings
    seed: int
    num_checkpoints: int = 0
    weights: str = ""
    base: Base | None = None

    @property
    def cost(self) -> float:
        return num_steps(self.num_images, self.training) * self.training.batch_size * TRAINING_COST

    @property
    def spec(self) -> dict[str, Any]:
        training = self.training.stated
        del training["seed"], training["num_checkpoints"]  # they are this model's own below
        indices = self.indices
        return {
            "train": self.train_hash,
            "indices": None if indices is None else hashlib.sha256(np.array(indices, "<i8").tobytes()).hexdigest(),
            "model": self.model.stated if self.base is None else self._on_base(self.base),
            "training": training,
            "seed": self.seed,
            "num_checkpoints": self.num_checkpoints,
            **({"weights": self.weights} if self.weights else {}),
            **recipe(TRAINING),
        }

    def _on_base(self, base: Base) -> dict[str, Any]:
        """What a LoRA's model is: the base by its content, wherever it is from."""
        return {"base": base.content, "dropout": self.model.dropout}

    @property
    def needs(self) -> tuple[str, ...]:
        return ()

    def size(self, runtime: Runtime) -> Size:
        """The network's size, in training and when it is evaluated."""
        key = canonical({"model": self.spec["model"], "training": self.training})
        shape, told = (self.image_shape, {}) if self.base is None else self.base.stand_in(self.image_shape)
        blueprint = Blueprint(key, self.skeleton, tuple(sorted(told.items())))
        return size_of(blueprint, shape, self.training.batch_size, runtime.evaluation_batch)

    def space(self, store: ArtifactStore, device: torch.device) -> Space:
        """What the network works in."""
        return PixelSpace() if self.base is None else self.base.space(store, device)

    def skeleton(self) -> nn.Module:
        """The network with any weights, on torch's default device."""
        if self.base is None:
            return build_network(self.model, self.image_shape)
        network = self.base.skeleton()
        begin_lora(network, self.training)
        return network

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        size, images = self.size(runtime), image_bytes(self.num_images, self.image_shape)
        # Of a subset the whole train set is read first: twice as large for subsets of a half.
        held = size.weights + 3 * images
        # A checkpoint is written in memory first; on a CPU what a training step takes is free by then. Its copy, for whoever
        # goes on, is sent while the training goes on.
        copies = int(cuda) + int(runtime.executor == "ray" and runtime.ray.carry)
        return Memory.of(size.training, held + copies * size.saved, cuda=cuda)

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return [("images", {"content": self.train_hash}), *(self.base.inputs if self.base else [])]

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        return "models", self.spec

    @property
    def unfinished(self) -> str | None:
        return RESUME_FILE

    def find(self, store: ArtifactStore) -> Artifact | None:
        return store.find("models", self.spec)

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        def build(staging: Staging) -> None:
            images, device = load_images(store, self.train_hash), resolve_device(runtime.accelerator, worker)
            space = self.space(store, device)
            with single_thread(device):
                examples = space.examples(images, self.training.horizontal_flip)
            work = store.working_folder("models", self.spec)
            train = partial(
                train_network,
                examples if self.indices is None else examples.select(self.indices),
                self.model,
                self.training,
                self.seed,
                work,
                device,
                identity=canonical(self.spec),
                keep=staging.adopt if self.num_checkpoints else None,
                checkpoint_seconds=runtime.checkpoint_seconds,
                devices=runtime.devices,
                base=None if self.base is None else partial(self.base.load, store),
                schedule=space.schedule,
                report=lambda steps: report(steps * self.training.batch_size * TRAINING_COST),
                check=staging.check,
            )
            try:
                network = train()
            except UnusableStateError as damage:
                staging.check()
                store.set_aside(work, str(damage))
                store.working_folder("models", self.spec)
                network = train()
            staging.save_tensors("model", trained_weights(network))
            indices = range(len(images)) if self.indices is None else self.indices
            staging.save_tensors("indices", {"indices": torch.tensor(indices)})

        return store.get_or_create("models", self.spec, build, wait=False)

    @property
    def outcome(self) -> list[tuple[str, Spec]]:
        """Kinds and specifications of what loading the trained network reads."""
        return [("models", self.spec), *(self.base.inputs if self.base else [])]

    def checkpoint_names(self) -> list[str]:
        """File names of the kept checkpoints, oldest first."""
        if not self.num_checkpoints:
            return []
        total = num_steps(self.num_images, self.training)
        return [checkpoint_name(step) for step in checkpoint_steps(total, self.num_checkpoints)]

    def load(self, store: ArtifactStore) -> nn.Module:
        """The trained network in evaluation mode, on the CPU.

        Raises:
            ArtifactError: it has not been trained.
        """
        return self._load(store, "model.safetensors")

    def load_checkpoint(self, store: ArtifactStore, name: str) -> nn.Module:
        """One of :meth:`checkpoint_names` in evaluation mode, on the CPU."""
        return self._load(store, name)

    def _load(self, store: ArtifactStore, filename: str) -> nn.Module:
        artifact = self.find(store)
        if artifact is None:
            raise ArtifactError(f"The {self.name} is not in {store.root}; run the whole command again.")
        file = artifact.folder / filename
        if self.base is None:
            return load_network(self.model, self.image_shape, file)
        return load_lora(partial(self.base.load, store), self.model, self.training, file)


@dataclass(frozen=True)
class LossJob:
    """Measure a trained model's losses on a query set, per (noise draw, timestep, query).

    Args:
        trained: the job that trained the model.
        queries_hash: content hash of the queries in the store.
        num_queries: how many those are.
        timesteps: where the losses are measured.
        num_draws: noise draws a timestep.
        seed: root of the loss noise.
    """

    trained: TrainJob
    queries_hash: str
    num_queries: int
    timesteps: tuple[int, ...]
    num_draws: int
    seed: int

    @property
    def name(self) -> str:
        return f"losses of the {self.trained.name}"

    @property
    def cost(self) -> float:
        return float(self.num_draws * len(self.timesteps) * self.num_queries)

    def spec(self, model: Artifact) -> dict[str, Any]:
        """Bound to the weights themselves, not only to what they were meant to be."""
        return {
            "model": model.key,
            "weights": model.digest,
            "queries": self.queries_hash,
            "timesteps": self.timesteps,
            "num_draws": self.num_draws,
            "seed": self.seed,
            **recipe(LOSSES),
        }

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.trained.name,)

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        size, images = self.trained.size(runtime), image_bytes(self.num_queries, self.trained.image_shape)
        return Memory.of(size.evaluating, size.weights + 5 * images, cuda=cuda)  # as bytes and as floats

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return [("images", {"content": self.queries_hash}), *self.trained.outcome]

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        model = self.trained.find(store)
        return None if model is None else ("losses", self.spec(model))

    @property
    def unfinished(self) -> str | None:
        return None

    def find(self, store: ArtifactStore) -> Artifact | None:
        model = self.trained.find(store)
        return None if model is None else store.find("losses", self.spec(model))

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        model = self.trained.run(store, runtime, lambda units: None, worker)  # only if it was set aside meanwhile

        def build(staging: Staging) -> None:
            queries = load_images(store, self.queries_hash)
            device = resolve_device(runtime.accelerator, worker)
            with single_thread(device):
                space = self.trained.space(store, device)
                examples = space.examples(queries)
                losses = denoising_losses(
                    self.trained.load(store),
                    examples.clean,
                    queries.ids,
                    self.timesteps,
                    self.num_draws,
                    self.seed,
                    device,
                    runtime.evaluation_batch,
                    report,
                    examples.conditions,
                    space.schedule,
                )
            staging.save_tensors("losses", {"losses": losses})

        return store.get_or_create("losses", self.spec(model), build, wait=False)

    def load(self, store: ArtifactStore) -> Tensor:
        """float32 ``(num_draws, num_timesteps, num_queries)``."""
        artifact = self.find(store)
        if artifact is None:
            raise ArtifactError(f"The {self.name} are not in {store.root}; run the whole command again.")
        return artifact.load_tensors("losses")["losses"]
