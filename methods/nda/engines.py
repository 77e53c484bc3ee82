"""The ways to compute NDA's patch scores; they agree up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from attribench.data import to_unit_range
from attribench.methods.nda.convolution import patch_influence
from attribench.methods.nda.task import PatchTask


class PatchScorer(Protocol):
    """Scores the train images it was made for.

    Takes tasks, and a function to call with the number of (task, train image) pairs done since the last call. Returns
    float64 ``(num_tasks, num_train)`` on the CPU.
    """

    def __call__(self, tasks: Sequence[PatchTask], progress: Callable[[float], None]) -> Tensor: ...


def convolution(train: Tensor, device: torch.device) -> PatchScorer:
    """The readable reference: every train image convolved with every patch of the query."""
    images = to_unit_range(train).to(device)

    def scorer(tasks: Sequence[PatchTask], progress: Callable[[float], None]) -> Tensor:
        scores = torch.empty(len(tasks), len(train), dtype=torch.float64)
        for task, row in zip(tasks, scores, strict=True):
            noisy = task.noisy_query.to(device)
            row[:] = patch_influence(noisy, images, task.alpha_bar, task.patch_size, task.top_k, task.downsample)
            progress(len(train))
        return scores

    return scorer


def fast(train: Tensor, device: torch.device) -> PatchScorer:
    """Running sums along displacements: on the CPU compiled by numba, on CUDA in torch operations."""
    from attribench.methods.nda.engine import Engine, warm_up
    from attribench.methods.nda.stream import PartialEngine, score_tasks
    from attribench.methods.nda.torch_engine import TorchEngine

    if device.type == "cuda":
        engine: PartialEngine = TorchEngine(device)
    else:
        warm_up()  # compiling, once a machine, is part of preparing and not of any query
        engine = Engine()

    def scorer(tasks: Sequence[PatchTask], progress: Callable[[float], None]) -> Tensor:
        return score_tasks(engine, tasks, train, progress=progress)

    return scorer


#: Each takes the train images, uint8 ``(num_train, C, H, W)``, once.
ENGINES: dict[str, Callable[[Tensor, torch.device], PatchScorer]] = {"fast": fast, "convolution": convolution}
