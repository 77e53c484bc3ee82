"""The ways to compute NDA's patch scores; they agree up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from attribench.computing.cost import compiling, resumed
from attribench.data import to_unit_range
from attribench.methods.nda.convolution import patch_influence
from attribench.methods.nda.engine.partial import Normaliser
from attribench.methods.nda.task import PatchTask

if TYPE_CHECKING:
    from attribench.methods.nda.engine.stream import PartialEngine
    from attribench.methods.nda.saved import SavedState

#: Bytes of normalisers that are remembered for explanations.
_REMEMBERED = 2**26


class PatchScorer(Protocol):
    """Scores the train images it was made for.

    Takes tasks, a function to call with the number of (task, train image) pairs done since the last call, and where to
    keep what an interrupted call has come to. Returns float64 ``(num_tasks, num_train)`` on the CPU.
    """

    def __call__(self, tasks: Sequence[PatchTask], progress: Callable[[float], None], saved: SavedState) -> Tensor: ...


def convolution(train: Tensor, device: torch.device) -> PatchScorer:
    """The readable reference: every train image convolved with every patch of the query."""
    images = (to_unit_range(train) if train.dtype == torch.uint8 else train).to(device)

    def scorer(tasks: Sequence[PatchTask], progress: Callable[[float], None], saved: SavedState) -> Tensor:
        scores = torch.empty(len(tasks), len(train), dtype=torch.float64)
        for task, row in zip(tasks, scores, strict=True):
            noisy = task.noisy_query.to(device)
            row[:] = patch_influence(noisy, images, task.alpha_bar, task.patch_size, task.top_k, task.downsample)
            progress(len(train))
        return scores

    return scorer


class FastScorer:
    """Running sums along displacements: on the CPU compiled by numba, on CUDA in torch operations.

    Args:
        train: the train images, uint8 ``(num_train, C, H, W)``.
        device: where to compute.
    """

    def __init__(self, train: Tensor, device: torch.device) -> None:
        self._train = train
        self._engine = make_engine(device)
        self._normalisers: dict[str, Normaliser] = {}

    def __call__(self, tasks: Sequence[PatchTask], progress: Callable[[float], None], saved: SavedState) -> Tensor:
        from attribench.methods.nda.engine.stream import StreamState, score_tasks

        state = saved.load()
        if state is None:
            state = StreamState(np.zeros((len(tasks), len(self._train))))
        resumed(saved.seconds)
        progress(state.pairs)
        try:
            scores = score_tasks(
                self._engine, tasks, self._train, progress=progress, state=state, after_shard=saved.save_in_passing
            )
        except BaseException:  # also Ctrl-C: the next call goes on from the last finished shard
            if state.pairs:
                saved.save(state)
            raise
        saved.remove()
        self._normalisers.clear()
        for row, normaliser in state.finished.items():
            if 16 * normaliser.peak.size * (len(self._normalisers) + 1) <= _REMEMBERED:
                self._normalisers[tasks[row].digest] = normaliser
        return scores

    def normalisers(self, tasks: Sequence[PatchTask], progress: Callable[[float], None]) -> list[Normaliser]:
        """What all train images together weigh at each position, for each task; of the last call's tasks, remembered."""
        from attribench.methods.nda.engine.stream import normalisers

        missing = [task for task in tasks if task.digest not in self._normalisers]
        progress((len(tasks) - len(missing)) * len(self._train))
        computed = normalisers(self._engine, missing, self._train, progress=progress) if missing else []
        found = dict(zip((task.digest for task in missing), computed, strict=True))
        return [found.get(task.digest) or self._normalisers[task.digest] for task in tasks]


def make_engine(device: torch.device) -> PartialEngine:
    """The fast engine for a device."""
    from attribench.methods.nda.engine.compiled import Engine, warm_up
    from attribench.methods.nda.engine.torch_engine import TorchEngine

    if device.type == "cuda":
        return TorchEngine(device)
    with compiling():
        warm_up()
    return Engine()


#: Each takes the train images, uint8 ``(num_train, C, H, W)``, once.
ENGINES: dict[str, Callable[[Tensor, torch.device], PatchScorer]] = {"fast": FastScorer, "convolution": convolution}
