"""Training one model with ``lightning.Trainer``: resumable inside, the same result bit for bit."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from attribench.artifacts import atomic_write
from attribench.device import single_thread
from attribench.diffusion.module import DiffusionModule
from attribench.diffusion.network import build_network
from attribench.errors import ArtifactError
from attribench.seeding import derive_seed
from attribench.settings import ModelSettings, TrainingSettings

RESUME_FILE = "resume.ckpt"


class _ImageBatches(Dataset[Tensor]):
    """Whole batches by index list: one tensor indexing instead of one call and one copy an image."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self._images[indices]


class _EpochShuffle(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone; Lightning calls ``set_epoch``."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed, self._epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", self._epoch))
        return iter(torch.randperm(self._size, generator=generator).tolist())


class _ReportSteps(L.Callback):
    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._report(1.0)


class _SaveResume(L.Callback):
    """Saves Lightning's own checkpoint at the end of an epoch when the last one is old enough."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        last_epoch = trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if last_epoch or time.monotonic() - self._last < self._seconds:
            return
        temporary = self._path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self._last = time.monotonic()


class _KeepCheckpoints(L.Callback):
    """Writes the network's weights at the given optimizer steps."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self._folder, self._steps = folder, set(steps)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in self._steps:
            assert isinstance(module, DiffusionModule)
            atomic_write(self._folder / checkpoint_name(trainer.global_step), save(_weights(module.network)))


def checkpoint_name(step: int) -> str:
    """File name of the weights after ``step`` optimizer steps."""
    return f"checkpoint-{step:08d}.safetensors"


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}


def num_steps(num_images: int, settings: TrainingSettings) -> int:
    """Optimizer steps of a training on ``num_images`` images."""
    return settings.epochs * math.ceil(num_images / settings.batch_size)


def checkpoint_steps(total_steps: int, num_checkpoints: int) -> list[int]:
    """Evenly spaced optimizer steps, the last one included, e.g. 2000, 4000, 6000, 8000 of 8000."""
    return sorted({max(1, total_steps * (i + 1) // num_checkpoints) for i in range(num_checkpoints)})


def train_network(
    images: Tensor,
    model: ModelSettings,
    training: TrainingSettings,
    seed: int,
    work: Path,
    device: torch.device,
    *,
    keep_checkpoints: bool = False,
    checkpoint_seconds: float = 60.0,
    devices: str = "auto",
    report: Callable[[float], None] = lambda steps: None,
) -> nn.Module:
    """Train a network from scratch, or go on where a killed training of the same model stopped.

    Args:
        images: uint8 ``(N, C, H, W)``.
        seed: decides initial weights, order, noise, flips and dropout.
        work: folder for the unfinished state; kept checkpoints are written there too.
        keep_checkpoints: keep ``training.num_checkpoints`` models of the course of the training in ``work``.
        report: called with the number of optimizer steps just done.

    Returns:
        The trained network on the CPU, in evaluation mode.
    """
    _quiet_lightning()
    total = num_steps(len(images), training)
    loader = DataLoader(
        _ImageBatches(images),
        batch_size=training.batch_size,
        sampler=_EpochShuffle(len(images), seed),
        collate_fn=_identity,
    )
    callbacks: list[L.Callback] = [_SaveResume(work / RESUME_FILE, checkpoint_seconds), _ReportSteps(report)]
    if keep_checkpoints:
        callbacks.append(_KeepCheckpoints(work, checkpoint_steps(total, training.num_checkpoints)))
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index or 0] if device.type == "cuda" and devices == "auto" else _parse_devices(devices, device),
        precision=training.precision,  # type: ignore[arg-type]
        max_epochs=training.epochs,
        gradient_clip_val=training.gradient_clip,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=work,
    )
    cuda_devices = [device.index or 0] if device.type == "cuda" else []
    with single_thread(device), torch.random.fork_rng(devices=cuda_devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(derive_seed(seed, "weights"))
        module = DiffusionModule(
            build_network(model, (images.shape[1], images.shape[2], images.shape[3])), training, total, seed
        )
        _fit(trainer, module, loader, work / RESUME_FILE, report, math.ceil(len(images) / training.batch_size))
    return module.network.to("cpu").eval()


def _fit(
    trainer: L.Trainer,
    module: DiffusionModule,
    loader: DataLoader[Tensor],
    resume: Path,
    report: Callable[[float], None],
    steps_per_epoch: int,
) -> None:
    checkpoint: Path | None = None
    if resume.is_file():
        try:
            state = torch.load(resume, map_location="cpu", weights_only=True)
            report(float(state["epoch"] + 1) * steps_per_epoch)
            checkpoint = resume
        except (RuntimeError, ValueError, KeyError, EOFError, OSError):
            resume.unlink()  # not readable: from the start, which gives the same model
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "No space left" in str(error):
            raise ArtifactError(
                f"The unfinished training could not be saved in {resume.parent}: is the disk full? Free some space or pass "
                "another --workdir, then run the same command again."
            ) from error
        raise


def _identity(batch: Any) -> Any:
    """The dataset gives whole batches: there is nothing to collate."""
    return batch


def _parse_devices(devices: str, device: torch.device) -> list[int] | int | str:
    if device.type == "cpu":
        return 1
    if "," in devices:
        return [int(part) for part in devices.split(",")]
    return int(devices) if devices.isdigit() else devices


def _quiet_lightning() -> None:
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def load_network(model: ModelSettings, image_shape: tuple[int, int, int], weights: Path) -> nn.Module:
    """A network in evaluation mode with weights from a safetensors file."""
    network = build_network(model, image_shape)
    network.load_state_dict(load_file(weights))
    return network.eval()
