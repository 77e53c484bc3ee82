"""Where in the picture a score comes from: one query, some train images, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attribench.data import to_unit_range
from attribench.methods.nda.engine import Engine
from attribench.methods.nda.layout import TrainLayout
from attribench.methods.nda.partial import Normaliser
from attribench.methods.nda.task import PatchTask
from attribench.methods.nda.torch_engine import candidates

#: Pairs of positions that are remembered, strongest first, for each train image.
NUM_PAIRS = 32


@dataclass(frozen=True, eq=False)
class Evidence:
    """The weights between a query and a train image; either map sums to the train image's score.

    Args:
        given: float64 ``(rows, columns)`` of the grid of positions: how much of its weight, 1 in all, each position of
            the query gives to the image's k best positions.
        received: float64 ``(rows, columns)``: how much each position of the train image gets.
        pairs: int64 ``(n, 2)``: positions of the query, each with its best match in the train image; flat indices into
            the grid, the largest weight first.
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


def evidence(task: PatchTask, images: Tensor, normaliser: Normaliser) -> list[Evidence]:
    """Show what scores are made of.

    Args:
        task: the query, timestep and scale.
        images: train images ``(num_images, C, H, W)``, as the engine got them: uint8, or floating point in [-1, 1].
        normaliser: of all train images: ``merge(...).normaliser``, or
            :func:`attribench.methods.nda.stream.normalisers`.

    Returns:
        One for each of ``images``.

    Raises:
        UsageError: an option is out of range.
        DataError: the images are not of the query's shape, or no patch fits them.
    """
    block = Engine(1).partial(task, TrainLayout(images), known=normaliser).blocks[0]
    given = torch.from_numpy(block.shares(normaliser))
    log_total = torch.from_numpy(normaliser.log_total)
    floating = (to_unit_range(images) if images.dtype == torch.uint8 else images).to("cpu", torch.float64)
    # The kernel does not keep which candidates it summed: find them again, and share out what they were given.
    return [_shared_out(task, image[None], sums, log_total) for image, sums in zip(floating, given, strict=True)]


def _shared_out(task: PatchTask, image: Tensor, given: Tensor, log_total: Tensor) -> Evidence:
    received = torch.zeros(task.num_positions, dtype=torch.float64)
    positions, partners, weights = [], [], []
    for part in candidates(task, image):
        weight = (part.logits[0] - log_total[part.positions, None]).exp2()
        largest = weight.topk(min(task.top_k, weight.shape[1]))
        total = largest.values.sum(1, keepdim=True)
        shares = torch.where(total > 0, largest.values / total, 0.0) * given[part.positions, None]
        received.scatter_add_(0, part.partners.gather(1, largest.indices).flatten(), shares.flatten())
        positions.append(part.positions)
        partners.append(part.partners.gather(1, largest.indices[:, :1])[:, 0])
        weights.append(largest.values[:, 0])
    strength = torch.cat(weights)
    best = strength.topk(min(NUM_PAIRS, len(strength))).indices
    pairs = torch.stack([torch.cat(positions)[best], torch.cat(partners)[best]], dim=1)
    grid = task.geometry.grid
    return Evidence(given.view(grid), received.view(grid), pairs, strength[best])
