"""The fast, exact evaluation of NDA's patch scores (arXiv 2510.14269) on the CPU.

The scores are those of :mod:`attribench.methods.nda.convolution`, computed another way:

* Distances come from running sums along fixed displacements, at a cost that does not depend on the patch size.
* Only pairs of patches that hang over the edges alike are compared; the others have no weight.
* Weights are relative to the best match so far. What lies far below it (:func:`cuts`) counts as zero, and whole rows of
  candidates are dismissed by their largest logit, without an exponential.
* Train images lie side by side in vector lanes, laid out once for all queries and timesteps.
* Shards of the training set give partial results that merge (:mod:`attribench.methods.nda.engine.partial`).
* What an image's weights add up to depends on the image and the query alone: equal images get equal scores, bit for bit,
  wherever they stand, and whatever the threads do.

No approximation is made beyond float32's rounding; where weights are too sharp for float32, float64 is used.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribench.methods.nda.engine._kernels import influence
from attribench.methods.nda.engine.layout import LaneShape, TrainLayout, WorkSpace, needs_float64, query_maps
from attribench.methods.nda.engine.partial import NEGLIGIBLE, Block, Normaliser, PartialInfluence, finish, rescaled
from attribench.methods.nda.task import PatchTask

#: For a position's normaliser alone, candidates whose logit is further below the best one, in units of ln 2, are left out.
#: 2^-40 a candidate: 2^16 (65 thousand) of them together stay below float32's resolution of the best one's weight.
THRESHOLD = 40

#: So many weights, 2^10, are added up in float32's 32 bits: float64 is used for a larger top-k.
FLOAT32_BITS = 10

#: Groups of lanes a thread takes at a time.
GROUPS_PER_UNIT = 4


class _Query:
    """A task in the form the kernel reads, and the best logits found so far."""

    def __init__(self, task: PatchTask, known: Normaliser | None, wide: bool) -> None:
        channels = task.noisy_query.shape[0]
        double = wide or needs_float64(task.geometry, channels, task.alpha_bar)
        self.shape = LaneShape(task.geometry, channels, double)
        if _bits(self.shape, task.top_k) > FLOAT32_BITS:
            self.shape = LaneShape(task.geometry, channels, double=True)
        self.x, self.beta = query_maps(task.noisy_query, self.shape, task.alpha_bar)
        self.top_k = task.top_k
        self.cuts = cuts(self.shape, task.top_k)
        self.informed = known is not None and bool(np.isfinite(known.peak).all())
        self._best = np.full(task.num_positions, -np.inf) if known is None else np.floor(known.peak)

    def best(self) -> NDArray[np.float64]:
        """A copy of the best logits known: a good start for pruning."""
        return self._best.copy()

    def learn(self, peak: NDArray[np.float64]) -> None:
        """Take better logits into account."""
        np.maximum(self._best, peak, out=self._best)


class Engine:
    """The fast engine on the CPU.

    Args:
        threads: how many threads compute; None for all cores this process may use. Scores do not depend on it.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = available_cores() if threads is None else max(1, threads)
        self._local = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def partial(
        self, task: PatchTask, train: TrainLayout, start: int = 0, known: Normaliser | None = None
    ) -> PartialInfluence:
        """A shard's partial result for one task; see :meth:`partials`."""
        return self.partials([task], train, start, None if known is None else [known])[0]

    def partials(
        self, tasks: Sequence[PatchTask], train: TrainLayout, start: int = 0, known: Sequence[Normaliser] | None = None
    ) -> list[PartialInfluence]:
        """A shard's partial results.

        Args:
            tasks: queries, timesteps and scales.
            train: the shard.
            start: index of the shard's first image in the training set.
            known: for each task, the normaliser of train images already seen. It is no part of the result, but the
                better it is, the more candidates are dismissed early.

        Raises:
            UsageError: a task's option is out of range.
            DataError: a query is not of the train images' shape, or no patch fits it.
        """
        return self._run(tasks, train, start, known, sums=True)

    def normalisers(
        self, tasks: Sequence[PatchTask], train: TrainLayout, known: Sequence[Normaliser] | None = None
    ) -> list[Normaliser]:
        """:meth:`partials` without the sums of each image: cheaper, and of a size independent of the shard's."""
        return [partial.normaliser for partial in self._run(tasks, train, 0, known, sums=False)]

    def _run(
        self, tasks: Sequence[PatchTask], train: TrainLayout, start: int, known: Sequence[Normaliser] | None, sums: bool
    ) -> list[PartialInfluence]:
        for task in tasks:
            task.check(train.images.shape)
        wide = train.images.dtype == torch.float64
        queries = [
            _Query(task, known[i] if known else None, wide or task.noisy_query.dtype == torch.float64)
            for i, task in enumerate(tasks)
        ]
        for query in queries:
            train.lanes(query.shape)
        jobs: list[_Unit] = []
        results = []
        for query in queries:
            groups, lanes = train.lanes(query.shape).groups, query.shape.lanes
            rows = np.zeros((groups * lanes if sums else 0, *self._sums_of_image(query)), np.float32)
            units = [
                _Unit(query, first, rows[first * lanes : (first + GROUPS_PER_UNIT) * lanes])
                for first in range(0, groups, GROUPS_PER_UNIT)
            ]
            jobs += units
            results.append((units, rows[: len(train)]))
        # Pruning starts from what the first units find, and from nothing that depends on the threads' timing: the same
        # scores come out bit for bit, whatever the number of threads.
        first = [units[0] for query, (units, _) in zip(queries, results, strict=True) if not query.informed]
        self._compute_all(first, train, sums)
        for unit in first:
            unit.query.learn(unit.peak)
        begun = {id(unit) for unit in first}
        self._compute_all([unit for unit in jobs if id(unit) not in begun], train, sums)
        return [_joined(units, rows, start) for units, rows in results]

    def _sums_of_image(self, query: _Query) -> tuple[int, ...]:
        """The shape of what is kept of an image; its last dimension is that of positions."""
        return (len(query.best()),)

    def _compute_all(self, units: list[_Unit], train: TrainLayout, sums: bool) -> None:
        if self.threads == 1 or len(units) <= 1:
            for unit in units:
                self._compute(unit, train, sums)
        else:
            self._in_threads(units, train, sums)

    def _in_threads(self, units: list[_Unit], train: TrainLayout, sums: bool) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="nda")
        futures: list[Future[None]] = []
        try:
            futures = [self._pool.submit(self._compute, unit, train, sums) for unit in units]
            for future in futures:
                future.result()
        except BaseException:  # also Ctrl-C: what has not begun need not begin
            for future in futures:
                future.cancel()
            raise

    def _compute(self, unit: _Unit, train: TrainLayout, sums: bool) -> None:
        query, shape = unit.query, unit.query.shape
        lanes = train.lanes(shape)
        cuts = query.cuts if sums else (THRESHOLD, THRESHOLD, THRESHOLD)
        groups = min(GROUPS_PER_UNIT, lanes.groups - unit.first)
        unit.peak = query.best()
        unit.total = np.zeros_like(unit.peak)
        influence(
            query.x, lanes.maps, lanes.rows, lanes.edges, shape.numbers(), shape.dtype.type(query.beta),
            query.top_k if sums else 0, tuple(map(float, cuts)), unit.first, groups, unit.peak, unit.total,
            unit.sums, np.empty((groups, len(unit.peak))), *self._work_space(shape).arguments(),
        )  # fmt: skip

    def _work_space(self, shape: LaneShape) -> WorkSpace:
        if getattr(self._local, "shape", None) != shape:
            self._local.space = WorkSpace(shape)
            self._local.shape = shape
        space: WorkSpace = self._local.space
        return space


def cuts(shape: LaneShape, top_k: int) -> tuple[int, int, int]:
    """Where candidates are left out, and how weights are rounded; in units of ln 2, that is in bits.

    An image's sum at a position adds up weights rounded to 2^-depth of the image's largest one there, so that it is exact.
    Sums below 2^-:data:`NEGLIGIBLE` of the position's best weight are dropped at last. Where a sum is kept, all that is
    not rounded to zero lies within ``threshold`` of the position's best one: it does not matter for any score how good a
    match was known when the image's turn came.

    Returns:
        ``threshold``: candidates so far below the best one of all images are left out; ``shallow``: for the normaliser
        alone, so far; ``depth``.
    """
    most = _bits(shape, top_k)
    depth = 40 if shape.double else min(22, 31 - most)
    return NEGLIGIBLE + most + depth + 2, THRESHOLD, depth


def _bits(shape: LaneShape, top_k: int) -> int:
    """log₂ of the largest number of weights in a sum, rounded up."""
    return math.ceil(math.log2(min(top_k, max(1, shape.inside[0]) * max(1, shape.inside[1]))))


@dataclass(eq=False)
class _Unit:
    """Some groups of a shard, for one query: what a thread computes at a time."""

    query: _Query
    first: int
    sums: NDArray[np.float32]
    peak: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    total: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def _joined(units: list[_Unit], sums: NDArray[np.float32], start: int) -> PartialInfluence:
    normaliser = Normaliser.empty(len(units[0].peak))
    for unit in units:
        normaliser = normaliser.with_total(unit.peak, unit.total)
    for unit in units:
        if (unit.peak != normaliser.peak).any():
            unit.sums *= rescaled(np.float32(1.0), unit.peak - normaliser.peak)
    return PartialInfluence(normaliser, (Block(start, sums, normaliser.peak),) if len(sums) else ())


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def patch_influence_fast(
    noisy_query: Tensor,
    train: Tensor,
    alpha_bar: float,
    patch_size: int,
    top_k: int,
    downsample: int = 1,
    *,
    threads: int | None = None,
) -> Tensor:
    """:func:`attribench.methods.nda.patch_influence` by the fast engine: same arguments, same scores.

    Args:
        noisy_query: x_t = √ᾱ x + √(1−ᾱ) ε, ``(C, H, W)``.
        train: ``(num_train, C, H, W)`` in [-1, 1], not scaled by √ᾱ; or uint8.
        alpha_bar: ᾱ_t, strictly between 0 and 1.
        patch_size: side P of the patches, at least 1; may exceed the image.
        top_k: how many positions of a train image count for each position of the query, at least 1.
        downsample: 1, or 2 for the low resolution (P even).
        threads: None for all cores.

    Returns:
        Scores ``(num_train,)``, nonnegative, higher = stronger proponent; float64 if an argument is, else float32.

    Raises:
        UsageError: a parameter is out of range.
        DataError: the tensors are not images of one shape, hold values that are not finite, or no patch fits them.
    """
    layout = TrainLayout(train)
    scores = finish(Engine(threads).partial(PatchTask(noisy_query, alpha_bar, patch_size, top_k, downsample), layout))
    return scores if torch.float64 in (noisy_query.dtype, train.dtype) else scores.to(torch.float32)


def warm_up() -> float:
    """Compile the kernel, or load it from the disk's cache; returns the seconds it took."""
    begin = time.perf_counter()
    for dtype in (torch.float32, torch.float64):
        patch_influence_fast(torch.zeros(1, 2, 2, dtype=dtype), torch.zeros(1, 1, 2, 2, dtype=dtype), 0.5, 1, 1)
    return time.perf_counter() - begin
