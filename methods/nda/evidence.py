"""Where in the picture a score comes from: one query, some train images, position by position."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribench.data import to_unit_range
from attribench.methods.nda.engine.compiled import available_cores
from attribench.methods.nda.engine.partial import NEGLIGIBLE, Normaliser
from attribench.methods.nda.engine.tracing import Tracer
from attribench.methods.nda.patches import check_images
from attribench.methods.nda.task import PatchTask

#: Pairs of positions that are remembered, strongest first, for each train image.
NUM_PAIRS = 32

#: Bytes of candidates held at a time, in all threads; met as far as one row of positions a thread allows.
MEMORY_LIMIT = 2**28


@dataclass(frozen=True, eq=False)
class Evidence:
    """The weights between a query and a train image; either map sums to the train image's score.

    Args:
        given: float64 ``(rows, columns)`` of the grid of positions: how much of its weight, 1 in all, each position of
            the query gives to the image's k best positions.
        received: float64 ``(rows, columns)``: how much each position of the train image gets.
        pairs: int64 ``(n, 2)``: positions of the query, each with its best match in the train image; flat indices into
            the grid, the largest weight first, and none of weight 0.
        weights: float64 ``(n,)``: of the pairs.
    """

    given: Tensor
    received: Tensor
    pairs: Tensor
    weights: Tensor

    @property
    def score(self) -> Tensor:
        """The train image's score for this task."""
        return self.given.sum()


def evidence(
    task: PatchTask, images: Tensor, normaliser: Normaliser, memory_limit: int = MEMORY_LIMIT
) -> list[Evidence]:
    """Show what scores are made of.

    Args:
        task: the query, timestep and scale.
        images: train images ``(num_images, C, H, W)``, as the engine got them: uint8, or floating point in [-1, 1].
        normaliser: of all train images: ``merge(...).normaliser``, or
            :func:`attribench.methods.nda.engine.stream.normalisers`.
        memory_limit: bytes of working memory for candidates; it changes the result by rounding at most.

    Returns:
        One for each of ``images``. It is computed in float64, and equals an engine's score as far as float32 goes.

    Raises:
        UsageError: an option is out of range.
        DataError: the images are not of the query's shape, or no patch fits them.
    """
    check_images(images)
    task.check(images.shape)
    floating = (to_unit_range(images) if images.dtype == torch.uint8 else images).to("cpu", torch.float64)
    threads = min(available_cores(), len(images))
    tracer = Tracer(task, normaliser, memory_limit // threads)
    with ThreadPoolExecutor(threads, thread_name_prefix="evidence") as pool:
        return list(pool.map(lambda image: _evidence(task, tracer, image, normaliser), floating))


def _evidence(task: PatchTask, tracer: Tracer, image: Tensor, normaliser: Normaliser) -> Evidence:
    given, received = np.zeros(task.num_positions), np.zeros(task.num_positions)
    strength, partners = np.zeros(task.num_positions), np.zeros(task.num_positions, np.int64)
    negligible = np.exp2(normaliser.peak - NEGLIGIBLE - normaliser.log_total)
    for part in tracer.blocks(image):
        weights = np.exp2(part.logits - normaliser.log_total[part.positions, None])
        best = weights.argmax(1)[:, None]
        strength[part.positions] = np.take_along_axis(weights, best, 1)[:, 0]
        partners[part.positions] = np.take_along_axis(part.partners, best, 1)[:, 0]
        sums = weights.sum(1)
        weights[sums < negligible[part.positions]] = 0.0  # as in the score
        given[part.positions] = weights.sum(1)
        received += np.bincount(part.partners.ravel(), weights.ravel(), len(received))
    order = np.argsort(-strength, kind="stable")[:NUM_PAIRS]
    order = order[strength[order] > 0.0]
    pairs = torch.from_numpy(np.stack([order, partners[order]], axis=1))
    query_map, train_map = (torch.from_numpy(values).view(task.geometry.grid) for values in (given, received))
    return Evidence(query_map, train_map, pairs, torch.from_numpy(strength[order]))
