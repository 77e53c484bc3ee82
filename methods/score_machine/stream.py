"""Influence for many queries and timesteps, over a training set read shard by shard, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import Normaliser, PartialInfluence, rescaled
from attribench.methods.nda.engine.stream import MEMORY_LIMIT, SHARD_SIZE
from attribench.methods.nda.task import PatchTask
from attribench.methods.score_machine.machine import MachineTask, Order, Totals, candidate_mean, influence

Sums = tuple[NDArray[np.float32], NDArray[np.float64]]  #: of some train images, and the peak that they are relative to


class SumEngine(Protocol):
    """What the engines of :mod:`attribench.methods.nda.engine.pixel_sums` have in common."""

    def partials(
        self, tasks: Sequence[PatchTask], train: TrainLayout, start: int = 0, known: Sequence[Normaliser] | None = None
    ) -> list[PartialInfluence]: ...


def influences(
    engine: SumEngine,
    tasks: Sequence[MachineTask],
    train: Tensor,
    order: Order,
    *,
    copies: int = 1,
    shard_size: int = SHARD_SIZE,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[float], None] = lambda pairs: None,
) -> Tensor:
    """:func:`influence` of every train image, for every task.

    Tasks go through the shards in batches whose sums fit into ``memory_limit``, tasks of one patch size together. Where
    not even one task's sums fit, shards are read twice: once for the totals, once for the influence.

    Args:
        engine: computes a shard's sums.
        tasks: queries, each at one timestep.
        train: uint8, or floating point in [-1, 1], ``(num_train · copies, C, H, W)``.
        order: see :func:`influence`.
        copies: how many consecutive images are one train image in several shapes, removed together.
        shard_size: train images to hold at a time, roughly.
        memory_limit: bytes for sums.
        progress: called with the number of (task, image of ``train``) pairs done since.

    Returns:
        float64 ``(num_tasks, num_train)``.

    Raises:
        UsageError: a task's option is out of range.
        DataError: a query is not of the train images' shape.
    """
    for task in tasks:
        task.patches.check(train.shape)
    scores = np.zeros((len(tasks), len(train) // copies))
    shard_size = max(1, shard_size // copies) * copies
    per_image = 4 * (1 + train.shape[1]) * train.shape[2] * train.shape[3]
    twice = per_image * len(train) > memory_limit
    together = max(1, memory_limit // (per_image * min(len(train), shard_size if twice else len(train))))
    for size in sorted({task.patch_size for task in tasks}):
        prior = candidate_mean(train, size)
        rows = [row for row, task in enumerate(tasks) if task.patch_size == size]
        for first in range(0, len(rows), together):
            batch = rows[first : first + together]
            part = [tasks[row] for row in batch]
            clean = [task.clean.detach().to("cpu", torch.float64).flatten(1).numpy() for task in part]
            totals = [Totals.empty(len(c), c.shape[1]) for c in clean]
            kept: list[list[Sums]] = []
            for sums in _shards(engine, part, train, copies, shard_size):
                totals = [total.merged(Totals.of(*found)) for total, found in zip(totals, sums, strict=True)]
                progress(len(part) * shard_count(sums, copies) / (2 if twice else 1))
                if not twice:
                    kept.append(sums)
            start = 0
            for sums in _shards(engine, part, train, copies, shard_size) if twice else kept:
                for row, query, total, (values, peak) in zip(batch, clean, totals, sums, strict=True):
                    scores[row, start : start + len(values)] = influence(query, values, peak, total, order, prior)
                start += len(sums[0][0])
                if twice:
                    progress(len(part) * shard_count(sums, copies) / 2)
    return torch.from_numpy(scores)


def shard_count(sums: Sequence[Sums], copies: int) -> int:
    """How many images there are in a shard, of which these are the sums."""
    return len(sums[0][0]) * copies


def _shards(
    engine: SumEngine, tasks: Sequence[MachineTask], train: Tensor, copies: int, shard_size: int
) -> Iterator[list[Sums]]:
    """The sums of one shard after the other, for each task, copies of an image taken together."""
    patches = [task.patches for task in tasks]
    known = [Normaliser.empty(task.num_positions) for task in patches]
    for start in range(0, len(train), shard_size):
        partials = engine.partials(patches, TrainLayout(train[start : start + shard_size]), start, known)
        known = [a.merged(b.normaliser) for a, b in zip(known, partials, strict=True)]
        yield [_joined(partial, copies) for partial in partials]


def _joined(partial: PartialInfluence, copies: int) -> Sums:
    peak = partial.normaliser.peak
    parts = []
    for block in partial.blocks:
        same = np.array_equal(block.peak, peak)
        parts.append(block.sums if same else block.sums * rescaled(block.sums.dtype.type(1), block.peak - peak))
    sums = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if copies > 1:
        sums = sums.reshape(-1, copies, *sums.shape[1:]).sum(1)
    return sums, peak
