"""Scores of many queries, timesteps and scales, over a training set read shard by shard, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribench.errors import DataError
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import Block, Normaliser, PartialInfluence
from attribench.methods.nda.task import PatchTask

SHARD_SIZE = 1024
MEMORY_LIMIT = 256 * 2**20
#: What so many shards weigh is added up by itself, and then to what those before weigh: several machines can add up a
#: group each, and come to the same bits.
GROUP = 16
#: More train images than this are read twice, whatever the task: then all groups can be done at the same time.
_READ_ONCE = 2**16


def reads_twice(num_train: int) -> bool:
    """Whether so many train images are read twice whatever the task."""
    return num_train > _READ_ONCE


class PartialEngine(Protocol):
    """What :class:`~attribench.methods.nda.engine.compiled.Engine` and its torch twin have in common."""

    def partials(
        self, tasks: Sequence[PatchTask], train: TrainLayout, start: int = 0, known: Sequence[Normaliser] | None = None
    ) -> list[PartialInfluence]: ...

    def normalisers(
        self, tasks: Sequence[PatchTask], train: TrainLayout, known: Sequence[Normaliser] | None = None
    ) -> list[Normaliser]: ...


@dataclass(eq=False)
class StreamState:
    """How far :func:`score_tasks` has come. It changes after each shard, all at once: an interrupted call can go on.

    Args:
        scores: float64 ``(num_tasks, num_train)``; complete for the tasks done.
        task: how many tasks are done.
        tasks: how many there are in the batch in progress.
        normalising: whether the first of two passes is in progress.
        shard: index of the next shard to read in this pass.
        normalisers: of the shards read, a task of the batch each; in the first of two passes, of the complete groups of them.
        group: in the first of two passes, of the shards read in the group in progress.
        first: in the first of two passes, of the first shard: what later ones are compared with to dismiss candidates early.
        blocks: top-k sums of the shards read, a task of the batch each.
        pairs: how many (task, train image) pairs are done.
        finished: of all train images, by the task's row in the scores; of the tasks done since the state was made or read.
    """

    scores: NDArray[np.float64]
    task: int = 0
    tasks: int = 0
    normalising: bool = False
    shard: int = 0
    normalisers: list[Normaliser] = field(default_factory=list)
    group: list[Normaliser] = field(default_factory=list)
    first: list[Normaliser] = field(default_factory=list)
    blocks: list[tuple[Block, ...]] = field(default_factory=list)
    pairs: float = 0.0
    finished: dict[int, Normaliser] = field(default_factory=dict)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays to store, for :meth:`from_arrays`."""
        result: dict[str, NDArray[Any]] = {
            "scores": self.scores,
            "progress": np.array([self.task, self.tasks, self.normalising, self.shard], np.int64),
            "pairs": np.array(self.pairs),
        }
        for name, found in (("group", self.group), ("first", self.first)):
            for i, normaliser in enumerate(found):
                result |= {f"{name}/{i}/peak": normaliser.peak, f"{name}/{i}/log_total": normaliser.log_total}
        for i, normaliser in enumerate(self.normalisers):
            result |= {f"{i}/peak": normaliser.peak, f"{i}/log_total": normaliser.log_total}
            for j, block in enumerate(self.blocks[i]):
                result |= {f"{i}/{j}/start": np.array(block.start), f"{i}/{j}/peak": block.peak}
                result[f"{i}/{j}/sums"] = block.sums
        return result

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> StreamState:
        """The inverse of :meth:`arrays`."""
        task, tasks, normalising, shard = arrays["progress"].tolist()
        state = cls(np.array(arrays["scores"]), task, tasks, bool(normalising), shard, pairs=float(arrays["pairs"]))
        while (i := f"{len(state.normalisers)}") + "/peak" in arrays:
            state.normalisers.append(Normaliser(arrays[f"{i}/peak"], arrays[f"{i}/log_total"]))
            blocks: list[Block] = []
            while (j := f"{i}/{len(blocks)}") + "/sums" in arrays:
                blocks.append(Block(int(arrays[f"{j}/start"]), arrays[f"{j}/sums"], arrays[f"{j}/peak"]))
            state.blocks.append(tuple(blocks))
        for name, found in (("group", state.group), ("first", state.first)):
            while (i := f"{name}/{len(found)}") + "/peak" in arrays:
                found.append(Normaliser(arrays[f"{i}/peak"], arrays[f"{i}/log_total"]))
        return state


def score_tasks(
    engine: PartialEngine,
    tasks: Sequence[PatchTask],
    train: Tensor | NDArray[np.uint8],
    *,
    shard_size: int = SHARD_SIZE,
    memory_limit: int = MEMORY_LIMIT,
    progress: Callable[[float], None] | None = None,
    state: StreamState | None = None,
    after_shard: Callable[[StreamState], None] | None = None,
) -> Tensor:
    """Score every train image for every task.

    Tasks go through the shards in batches whose top-k sums fit into ``memory_limit``, tasks of one patch size together,
    since a shard is laid out anew for each patch size. Where not even one task's sums fit, shards are read twice: once
    for the normaliser, once for scores. Memory does not grow with the training set.

    Args:
        engine: computes a shard's partial results.
        tasks: queries, each at one timestep and one scale.
        train: ``(num_train, C, H, W)``, uint8, or floating point in [-1, 1]; a memory-mapped array will do.
        shard_size: train images to hold at a time.
        memory_limit: bytes for top-k sums.
        progress: called after each shard with the number of (task, train image) pairs done since.
        state: where to go on, updated as the work proceeds; keep it to survive an interruption.
        after_shard: called with the state after each shard.

    Returns:
        float64 ``(num_tasks, num_train)``; nonnegative, higher = stronger proponent.

    Raises:
        UsageError: a task's option is out of range.
        DataError: a query is not of the train images' shape, or the state is of other tasks or images.
    """
    for task in tasks:
        task.check(train.shape)
    if state is None:
        state = StreamState(np.zeros((len(tasks), len(train))))
    if state.scores.shape != (len(tasks), len(train)):
        raise DataError(f"The state is of {state.scores.shape} tasks and images, not of {(len(tasks), len(train))}.")
    order = sorted(range(len(tasks)), key=lambda i: (tasks[i].patch_size, tasks[i].downsample))
    sizes = max(1, shard_size), memory_limit
    run = _Run(
        engine, [tasks[i] for i in order], order, train, *sizes,
        progress or (lambda pairs: None), after_shard or (lambda state: None), state,
    )  # fmt: skip
    while state.task < len(tasks):
        run.batch()
    return torch.from_numpy(state.scores)


def normalisers(
    engine: PartialEngine,
    tasks: Sequence[PatchTask],
    train: Tensor | NDArray[np.uint8],
    *,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[float], None] | None = None,
) -> list[Normaliser]:
    """What all train images together weigh at each position, for each task: what single scores are relative to.

    Arguments and errors are those of :func:`score_tasks`.
    """
    found = _empty(tasks)
    for start in range(0, len(train), max(1, shard_size)):
        shard = _layout(train, start, max(1, shard_size))
        found = merged(found, engine.normalisers(tasks, shard, found if start else None))
        (progress or (lambda pairs: None))(len(tasks) * len(shard))
    return found


def group_normalisers(
    engine: PartialEngine,
    tasks: Sequence[PatchTask],
    images: Tensor,
    start: int,
    first: Sequence[Normaliser],
    shard_size: int,
    progress: Callable[[float], None],
) -> list[Normaliser]:
    """What a group of train images weighs, as the first of two passes adds it up.

    Args:
        images: uint8 ``(num_images, C, H, W)``.
        start: which train image the first of them is.
        first: of the first shard of all.
    """
    found = _empty(tasks)
    for begin in range(0, len(images), shard_size):
        shard = _layout(images, begin, shard_size)
        found = merged(found, engine.normalisers(tasks, shard, first if start + begin else None))
        progress(len(tasks) * len(shard))
    return found


def group_scores(
    engine: PartialEngine,
    tasks: Sequence[PatchTask],
    images: Tensor,
    start: int,
    total: Sequence[Normaliser],
    shard_size: int,
    progress: Callable[[float], None],
) -> NDArray[np.float64]:
    """A group's scores ``(num_tasks, num_images)``, as the second of two passes computes them.

    Args:
        total: of all train images.
    """
    scores = np.zeros((len(tasks), len(images)))
    for begin in range(0, len(images), shard_size):
        shard = _layout(images, begin, shard_size)
        for row, partial, normaliser in zip(
            scores, engine.partials(tasks, shard, start + begin, total), total, strict=True
        ):
            for block in partial.blocks:
                row[block.start - start : block.stop - start] = block.scores(normaliser).numpy()
        progress(len(tasks) * len(shard))
    return scores


def merged(some: Sequence[Normaliser], more: Sequence[Normaliser]) -> list[Normaliser]:
    """Of the candidates of both, task by task."""
    return [a.merged(b) for a, b in zip(some, more, strict=True)]


def _empty(tasks: Sequence[PatchTask]) -> list[Normaliser]:
    return [Normaliser.empty(task.num_positions) for task in tasks]


def _layout(train: Tensor | NDArray[np.uint8], start: int, size: int) -> TrainLayout:
    images = train[start : start + size]
    return TrainLayout(images if isinstance(images, Tensor) else torch.from_numpy(np.array(images)))


@dataclass(eq=False)
class _Run:
    engine: PartialEngine
    tasks: Sequence[PatchTask]
    rows: Sequence[int]  #: of the tasks, in the scores
    train: Tensor | NDArray[np.uint8]
    shard_size: int
    memory_limit: int
    progress: Callable[[float], None]
    after_shard: Callable[[StreamState], None]
    state: StreamState

    def batch(self) -> None:
        """Bring the batch in progress to its end, or the next one."""
        state = self.state
        if state.tasks == 0:
            self._begin()
        batch = self.tasks[state.task : state.task + state.tasks]
        two_passes = self._two_passes(state.task)
        shards = -(-len(self.train) // self.shard_size)
        if state.normalising:
            while state.shard < shards:
                part = self.engine.normalisers(batch, self._shard(), state.first or None)
                group, total = merged(state.group, part), state.normalisers
                if (state.shard + 1) % GROUP == 0 or state.shard + 1 == shards:
                    group, total = _empty(batch), merged(total, group)
                self._advance(len(batch), total, state.blocks, two_passes, group, state.first or part)
            state.normalising, state.shard, state.first, state.group = False, 0, [], []
        while state.shard < shards:
            start = state.shard * self.shard_size
            partials = self.engine.partials(batch, self._shard(), start, state.normalisers)
            if two_passes:
                for i, partial in enumerate(partials):
                    self._score(state.task + i, partial.blocks, state.normalisers[i])
                self._advance(len(batch), state.normalisers, state.blocks, two_passes)
            else:
                total = merged(state.normalisers, [partial.normaliser for partial in partials])
                blocks = [old + new.blocks for old, new in zip(state.blocks, partials, strict=True)]
                self._advance(len(batch), total, blocks, two_passes)
        for i, (parts, normaliser) in enumerate(zip(state.blocks, state.normalisers, strict=True)):
            self._score(state.task + i, parts, normaliser)
            state.finished[self.rows[state.task + i]] = normaliser
        state.task, state.tasks = state.task + len(batch), 0

    def _advance(
        self,
        tasks: int,
        normalisers: list[Normaliser],
        blocks: list[tuple[Block, ...]],
        two_passes: bool,
        group: Sequence[Normaliser] = (),
        first: Sequence[Normaliser] = (),
    ) -> None:
        """A shard is done. One statement changes the state, so that Ctrl-C finds it as it was before, or after."""
        state = self.state
        pairs = tasks * self._shard_length(state.shard) / (2 if two_passes else 1)
        done, shard = state.pairs + pairs, state.shard + 1
        known = list(group), list(first)
        state.normalisers, state.blocks, state.pairs, state.shard, (state.group, state.first) = (
            normalisers, blocks, done, shard, known,
        )  # fmt: skip
        self.progress(pairs)
        self.after_shard(state)

    def _begin(self) -> None:
        state = self.state
        twice, used, count = self._two_passes(state.task), 0, 0
        for task in range(state.task, len(self.tasks)):
            used += 4 * self.tasks[task].num_positions * (self.shard_size if twice else len(self.train))
            if self._two_passes(task) != twice or (count and used > self.memory_limit):
                break
            count += 1
        batch = self.tasks[state.task : state.task + count]
        state.normalisers, state.group, state.first = _empty(batch), _empty(batch), []
        state.blocks = [() for _ in batch]
        state.normalising, state.shard, state.tasks = twice, 0, count

    def _two_passes(self, task: int) -> bool:
        """Whether there are many train images, or their top-k sums are too large to keep."""
        return reads_twice(len(self.train)) or 4 * len(self.train) * self.tasks[task].num_positions > self.memory_limit

    def _shard(self) -> TrainLayout:
        return _layout(self.train, self.state.shard * self.shard_size, self.shard_size)

    def _shard_length(self, shard: int) -> int:
        return min(self.shard_size, len(self.train) - shard * self.shard_size)

    def _score(self, task: int, blocks: Sequence[Block], normaliser: Normaliser) -> None:
        for block in blocks:
            self.state.scores[self.rows[task], block.start : block.stop] = block.scores(normaliser).numpy()
