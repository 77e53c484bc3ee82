"""Where in the picture a score comes from: one query, one train image, position by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribench.data import to_unit_range
from attribench.methods.nda.engine import Engine
from attribench.methods.nda.layout import TrainLayout
from attribench.methods.nda.partial import Normaliser
from attribench.methods.nda.task import PatchTask
from attribench.methods.nda.torch_engine import candidates


@dataclass(frozen=True, eq=False)
class Evidence:
    """The weights between a query and a train image; either map sums to the train image's score.

    Args:
        given: float64 ``(rows, columns)`` of the grid of positions: how much of its weight, 1 in all, each position of
            the query gives to the image's k best positions.
        received: float64 ``(rows, columns)``: how much each position of the train image gets.
    """

    given: Tensor
    received: Tensor

    @property
    def score(self) -> Tensor:
        """The train image's score for this task."""
        return self.given.sum()


def evidence(task: PatchTask, image: Tensor, normaliser: Normaliser) -> Evidence:
    """Show what a score is made of.

    Args:
        task: the query, timestep and scale.
        image: the train image ``(C, H, W)``, as the engine got it: uint8, or floating point in [-1, 1].
        normaliser: of all train images: ``merge(...).normaliser``, or :meth:`Engine.normalisers` merged over shards.

    Raises:
        UsageError: an option is out of range.
        DataError: the image is not of the query's shape, or no patch fits it.
    """
    block = Engine(1).partial(task, TrainLayout(image[None]), known=normaliser).blocks[0]
    given = torch.from_numpy(block.sums[0] * np.exp2(block.peak - normaliser.log_total))
    # The kernel does not keep which candidates it summed: find them again, and share out what they were given.
    log_total = torch.from_numpy(normaliser.log_total)
    received = torch.zeros(task.num_positions, dtype=torch.float64)
    images = (to_unit_range(image) if image.dtype == torch.uint8 else image).to("cpu", torch.float64)[None]
    for part in candidates(task, images):
        weights = (part.logits[0] - log_total[part.positions, None]).exp2()
        largest = weights.topk(min(task.top_k, weights.shape[1]))
        total = largest.values.sum(1, keepdim=True)
        shares = torch.where(total > 0, largest.values / total, 0.0) * given[part.positions, None]
        received.scatter_add_(0, part.partners.gather(1, largest.indices).flatten(), shares.flatten())
    return Evidence(given.view(task.geometry.grid), received.view(task.geometry.grid))
