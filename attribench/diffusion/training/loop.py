"""Training one model with ``lightning.Trainer``: resumable inside, the same result bit for bit."""

from __future__ import annotations

import inspect
import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from attribench.computing.device import single_thread
from attribench.computing.seeding import derive_seed
from attribench.diffusion.examples import Examples, told
from attribench.diffusion.network import build_network, set_dropout
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.training.module import Batch, DiffusionModule
from attribench.diffusion.training.tuning import begin_lora, fill_lora
from attribench.diffusion.training.unfinished import Keep, UnfinishedTraining
from attribench.errors import ArtifactError, UsageError
from attribench.settings import ModelSettings, TrainingSettings

#: Gives a network of its own at every call.
Load = Callable[[], nn.Module]


class _Batches(Dataset[Any]):
    """Whole batches by index list: one tensor indexing instead of one call and one copy an image."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Tensor | Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Tensor | Batch:
        clean, mirrored = self._examples.clean[indices], self._examples.mirrored
        if clean.dtype == torch.uint8:
            return clean
        return clean, None if mirrored is None else mirrored[indices], told(self._examples.conditions, indices)


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


def num_steps(num_images: int, settings: TrainingSettings) -> int:
    """Optimizer steps of a training on ``num_images`` images."""
    return settings.epochs * math.ceil(num_images / settings.batch_size)


def checkpoint_steps(total_steps: int, num_checkpoints: int) -> list[int]:
    """Evenly spaced optimizer steps, the last one included, e.g. 2000, 4000, 6000, 8000 of 8000."""
    return sorted({max(1, total_steps * (i + 1) // num_checkpoints) for i in range(num_checkpoints)})


def train_network(
    images: Tensor | Examples,
    model: ModelSettings,
    training: TrainingSettings,
    seed: int,
    work: Path,
    device: torch.device,
    *,
    identity: str = "",
    keep: Keep | None = None,
    checkpoint_seconds: float = 60.0,
    devices: str = "auto",
    base: Load | None = None,
    schedule: NoiseSchedule | None = None,
    report: Callable[[float], None] = lambda steps: None,
    check: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train a network from scratch, or LoRA on a pretrained one; or go on where a killed training of the same model stopped.

    Args:
        images: uint8 ``(N, C, H, W)``; or latents, with what the network is told of them.
        seed: decides initial weights, order, noise, flips and dropout.
        work: folder for the unfinished state.
        identity: says which training this is; the unfinished state of one with another identity is refused.
        keep: takes ``training.num_checkpoints`` models of the course of the training, at its end; None: none are kept.
        base: loads the pretrained network that LoRA is trained on; None: the whole network is trained, from scratch.
        schedule: the base's; None: DDPM's.
        report: called with the number of optimizer steps just done.
        check: called before anything is written to ``work``; raises if that is another process's by now.

    Returns:
        The trained network on the CPU, in evaluation mode.

    Raises:
        UnusableStateError: the unfinished state in ``work`` is damaged or of another training.
        UsageError: the device cannot compute with this precision.
    """
    if device.type == "cpu" and training.precision in ("16-mixed", "16"):
        raise UsageError("--training.precision 16-mixed needs a GPU. Choose bf16-mixed or 32-true on a CPU.")
    _quiet_lightning()
    examples = Examples(images) if isinstance(images, Tensor) else images
    total = num_steps(len(examples), training)
    loader = DataLoader(
        _Batches(examples),
        batch_size=training.batch_size,
        sampler=_EpochShuffle(len(examples), seed),
        collate_fn=_identity,
    )
    kept_steps = checkpoint_steps(total, training.num_checkpoints) if keep else []
    unfinished = UnfinishedTraining(work, identity, checkpoint_seconds, kept_steps, check)
    epochs_done = unfinished.epochs_done()
    trainer = _trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index or 0] if device.type == "cuda" and devices == "auto" else _parse_devices(devices, device),
        precision=training.precision,
        max_epochs=training.epochs,
        gradient_clip_val=training.gradient_clip,
        callbacks=[unfinished, _ReportSteps(report)],
        default_root_dir=work,
    )
    cuda_devices = [device.index or 0] if device.type == "cuda" else []
    with single_thread(device), torch.random.fork_rng(devices=cuda_devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if base is None:
            torch.manual_seed(derive_seed(seed, "weights"))
            channels, height, width = examples.clean.shape[1:]
            network = build_network(model, (channels, height, width))
        else:
            network = base().train()
            set_dropout(network, model.dropout)
            torch.manual_seed(derive_seed(seed, "weights"))
            begin_lora(network, training)
        module = DiffusionModule(network, training, total, seed, schedule)
        if epochs_done:
            report(float(epochs_done * math.ceil(len(examples) / training.batch_size)))
        _fit(trainer, module, loader, unfinished.resume_file if epochs_done else None)
    if keep is not None:
        unfinished.hand_over(keep)
    return module.network.to("cpu").eval()


def _trainer(**arguments: Any) -> L.Trainer:
    """A trainer that the environment has no say in, whatever started this process.

    Lightning takes arguments that it is not given from variables (``PL_TRAINER_…``), so it is given them all; and a
    training takes the devices it is given, not those of a launcher's processes (SLURM, torchrun, LSF, MPI).
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(L.Trainer).parameters.items()}
    ours = {
        "plugins": [LightningEnvironment()],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**{**defaults, **ours, **arguments})


def _fit(trainer: L.Trainer, module: DiffusionModule, loader: DataLoader[Any], checkpoint: Path | None) -> None:
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "No space left" in str(error):
            raise ArtifactError(
                f"The unfinished training could not be saved in {trainer.default_root_dir}: is the disk full? Free some "
                "space or pass another --workdir, then run the same command again."
            ) from error
        raise
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning makes an exit of its own out of Ctrl-C
            raise end.__context__ from None
        raise
    finally:
        if trainer.received_sigterm:  # Lightning keeps it from its handler, which is back by now, and exits with 0
            signal.raise_signal(signal.SIGTERM)


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


def load_lora(base: Load, model: ModelSettings, training: TrainingSettings, weights: Path) -> nn.Module:
    """A pretrained network with a trained LoRA from a safetensors file, in evaluation mode; the base is frozen.

    Raises:
        ModelError: it is the LoRA of another base.
    """
    with torch.random.fork_rng(devices=[]):  # what it is begun with is replaced
        network = base()
        begin_lora(network, training)
    set_dropout(network, model.dropout)
    fill_lora(network, load_file(weights), str(weights))
    return network.eval()
