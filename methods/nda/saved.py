"""Where a stream of shards has come to, kept on disk, so that an interrupted computation goes on."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from attribench.data import ImageSet
from attribench.methods.nda.engine.stream import StreamState
from attribench.methods.nda.task import PatchTask
from attribench.store.artifacts import ArtifactStore
from attribench.store.code import source_hash
from attribench.store.files import atomic_write

#: Seconds between two saves while all goes well: what a killed process loses at most, beside the shard in progress.
INTERVAL = 60.0


class SavedState:
    """The state of one call of :func:`~attribench.methods.nda.engine.stream.score_tasks` in a folder of its own.

    Args:
        folder: holds nothing else; made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved = self._started = time.monotonic()
        #: Spent on the state that was loaded, by the calls that came to it; 0 before and without one.
        self.seconds = 0.0

    @classmethod
    def of(
        cls, store: ArtifactStore, tasks: Sequence[PatchTask], train: ImageSet, *, flips: bool = False
    ) -> SavedState:
        """Bound to the tasks and the train images by their content, and to NDA's code.

        Args:
            flips: whether the train images' mirror images are compared as well.
        """
        digest = hashlib.sha256("".join(task.digest for task in tasks).encode())
        code = source_hash(Path(__file__).parent)
        spec = {"code": code, "tasks": digest.hexdigest(), "train": train.content_hash, "flips": flips}
        return cls(store.working_folder("shards", spec))

    def load(self) -> StreamState | None:
        """The state saved last, or None; one that is damaged is as good as none."""
        for file in self._files():
            content = file.read_bytes()
            if file.stem == _sum(content):
                arrays = load(content)
                self.seconds = float(arrays.pop("seconds"))
                return StreamState.from_arrays(arrays)
        return None

    def save_in_passing(self, state: StreamState) -> None:
        """Save the state if the last time is long ago."""
        if time.monotonic() - self._saved >= INTERVAL:
            self.save(state)

    def save(self, state: StreamState) -> None:
        """Save the state, and what was spent on it, in place of the one before."""
        spent = np.array(self.seconds + time.monotonic() - self._started)
        before, content = self._files(), save(dict[str, Any]({**state.arrays(), "seconds": spent}))
        path = self._folder / f"{_sum(content)}.safetensors"
        atomic_write(path, content)
        for file in before:
            if file != path:
                file.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Forget it: the computation has come to its end."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
