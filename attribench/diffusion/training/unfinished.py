"""An unfinished training in its folder: the state a killed one goes on from, and the weights kept of its course."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save
from torch import Tensor, nn

from attribench.diffusion.training.module import DiffusionModule
from attribench.diffusion.training.tuning import trained_weights
from attribench.errors import ArtifactError
from attribench.store.files import atomic_write, file_sum

RESUME_FILE = "resume.ckpt"


#: Takes a file: where it lies, what it is to be called, the SHA-256 of its content.
Keep = Callable[[Path, str, str], None]


class UnusableStateError(ArtifactError):
    """The state of an unfinished training is damaged, or is that of another training."""


class UnfinishedTraining(L.Callback):
    """Saves Lightning's own checkpoint at the end of an epoch when the last one is old enough, and weights on the way.

    A checkpoint names the training it is of and holds the sums of the weights kept so far: it is gone on from only if all
    of that is as it was left. Weights have their sum in the name: no two processes ever write different ones to one file.

    Args:
        folder: of this training alone.
        identity: says which training it is. The libraries' versions are added: a training that others began would end in
            another model than one trained from the start.
        seconds: between two checkpoints.
        kept_steps: optimizer steps after which the network's weights are kept.
        check: called before anything is written; raises if the folder is another process's by now.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        seconds: float,
        kept_steps: Collection[int],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.resume_file = folder / RESUME_FILE
        self._folder, self._seconds, self._kept_steps, self._check = folder, seconds, kept_steps, check
        self._identity = f"{identity} torch {torch.__version__} lightning {L.__version__}"
        self._sums: dict[str, str] = {}
        self._saved = time.monotonic()

    def epochs_done(self) -> int:
        """Epochs that the checkpoint in the folder has behind it; 0 if there is none.

        Raises:
            UnusableStateError: the checkpoint, or weights that were kept before it, must not be used.
        """
        path = self.resume_file
        if not path.exists():
            return 0
        try:
            # torch writes a checksum for every part of its archive, but looks at none of them when it reads.
            with zipfile.ZipFile(path) as archive:
                intact = archive.testzip() is None
            state = torch.load(path, map_location="cpu", weights_only=True)
            epochs, own = int(state["epoch"]) + 1, dict(state["callbacks"][self.state_key])
            identity, sums = own["identity"], dict(own["sums"])
        except Exception as error:  # whatever is in there, it is nothing that was saved here
            raise UnusableStateError(f"{path} is not a checkpoint that this version can read") from error
        if not intact:
            raise UnusableStateError(f"{path} does not match its checksums")
        if identity != self._identity:
            raise UnusableStateError(f"{path} is of another training, or of other versions of the libraries")
        for name, expected in sums.items():
            kept = self._folder / name
            if not kept.is_file() or file_sum(kept) != expected:
                raise UnusableStateError(f"{kept} is missing or does not match its checksum")
        return epochs

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in self._kept_steps:
            assert isinstance(module, DiffusionModule)
            self._check()
            content = save(_weights(module.network))
            total = hashlib.sha256(content).hexdigest()
            stem, dot, suffix = checkpoint_name(trainer.global_step).partition(".")
            name = f"{stem}.{total[:16]}{dot}{suffix}"
            atomic_write(self._folder / name, content)
            self._sums[name] = total

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        last_epoch = trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if last_epoch or time.monotonic() - self._saved < self._seconds:
            return
        self._check()
        for left in self._folder.glob(f".{RESUME_FILE}.*.tmp"):  # by a killed process
            left.unlink(missing_ok=True)
        temporary = self._folder / f".{RESUME_FILE}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            trainer.save_checkpoint(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            self._check()  # it took its time
            temporary.replace(self.resume_file)
        finally:
            temporary.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def hand_over(self, keep: Keep) -> None:
        """Give away all weights that were kept, each under its :func:`checkpoint_name`."""
        for name, total in self._sums.items():
            stem, _, suffix = name.partition(".")
            keep(self._folder / name, f"{stem}.{suffix.rpartition('.')[2]}", total)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning puts into the checkpoint for this callback."""
        return {"identity": self._identity, "sums": self._sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What Lightning found in the checkpoint for this callback."""
        self._sums = dict(state_dict["sums"])


def checkpoint_name(step: int) -> str:
    """File name of the weights after ``step`` optimizer steps."""
    return f"checkpoint-{step:08d}.safetensors"


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in trained_weights(network).items()}
