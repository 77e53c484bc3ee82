"""Where in the picture a score comes from: one query, some train images, position by position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attribench.data import to_unit_range
from attribench.methods.nda.engine.compiled import Engine
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import Normaliser
from attribench.methods.nda.engine.torch_engine import Candidates
from attribench.methods.nda.task import PatchTask

#: Pairs of positions that are remembered, strongest first, for each train image.
NUM_PAIRS = 32

#: Bytes of comparisons held at a time; met as far as one position of the query and one row of a train image allow.
MEMORY_LIMIT = 2**28


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


def evidence(
    task: PatchTask, images: Tensor, normaliser: Normaliser, memory_limit: int = MEMORY_LIMIT
) -> list[Evidence]:
    """Show what scores are made of.

    Args:
        task: the query, timestep and scale.
        images: train images ``(num_images, C, H, W)``, as the engine got them: uint8, or floating point in [-1, 1].
        normaliser: of all train images: ``merge(...).normaliser``, or
            :func:`attribench.methods.nda.engine.stream.normalisers`.
        memory_limit: bytes of working memory for comparisons; it changes the result by rounding at most.

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
    return [
        _shared_out(task, comparisons(task, image, memory_limit), sums, log_total)
        for image, sums in zip(floating, given, strict=True)
    ]


def _shared_out(task: PatchTask, parts: Iterator[Candidates], given: Tensor, log_total: Tensor) -> Evidence:
    received = torch.zeros(task.num_positions, dtype=torch.float64)
    positions, partners, weights = [], [], []
    for part in parts:
        logits, indices = part.logits[0].topk(min(task.top_k, part.logits.shape[2]))
        weight = (logits - log_total[part.positions, None]).exp2()
        total = weight.sum(1, keepdim=True)
        shares = torch.where(total > 0, weight / total, 0.0) * given[part.positions, None]
        received.scatter_add_(0, part.partners.gather(1, indices).flatten(), shares.flatten())
        positions.append(part.positions)
        partners.append(part.partners.gather(1, indices[:, :1])[:, 0])
        weights.append(weight[:, 0])
    strength = torch.cat(weights)
    best = strength.topk(min(NUM_PAIRS, len(strength))).indices
    pairs = torch.stack([torch.cat(positions)[best], torch.cat(partners)[best]], dim=1)
    grid = task.geometry.grid
    return Evidence(given.view(grid), received.view(grid), pairs, strength[best])


def comparisons(task: PatchTask, image: Tensor, memory_limit: int) -> Iterator[Candidates]:
    """All comparisons of a task with one train image, float64 ``(C, H, W)``, some positions of the query at a time."""
    geometry, noise = task.geometry, 1.0 - task.alpha_bar
    scale = math.sqrt(task.alpha_bar) / (noise * math.log(2.0))
    query, maps = geometry.maps(task.noisy_query.to(image) * scale), geometry.maps(image)
    own, theirs = (geometry.windows(values).movedim(0, 2) for values in (query, maps))  # (rows, columns, C, taps, taps)
    energy = geometry.box_sum(maps.square().sum(0)) * (task.alpha_bar / (2.0 * noise * math.log(2.0)))
    grid = torch.arange(task.num_positions).view(geometry.grid)
    for rows, columns in geometry.blocks():
        area = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        partners = grid[area].flatten()
        for positions in torch.split(partners, block_size(len(partners), own[0, 0].numel(), memory_limit)):
            patches = own[positions // geometry.grid[1], positions % geometry.grid[1]].flatten(1)
            logits = _products(patches, theirs[area], memory_limit).sub_(energy[area].flatten())
            yield Candidates(positions, partners.expand(len(positions), -1), logits[None])
    singles = geometry.single_positions()
    products = geometry.box_sum((query * maps).sum(0))
    yield Candidates(singles, singles[:, None], (products - energy).flatten()[None, singles, None])


def block_size(num_candidates: int, patch_numbers: int, memory_limit: int) -> int:
    """How many positions of the query to compare at a time: three quarters of the memory are for logits and patches.

    Args:
        num_candidates: logits of a position.
        patch_numbers: numbers of a patch.
    """
    return max(1, memory_limit // (8 * (2 * num_candidates + 4 * patch_numbers)))


def _products(patches: Tensor, windows: Tensor, memory_limit: int) -> Tensor:
    """Every patch ``(n, numbers)`` times every window ``(rows, columns, C, taps, taps)``: ``(n, rows × columns)``."""
    result = patches.new_empty(len(patches), *windows.shape[:2])
    # A window's numbers are copied for the product, so few rows at a time.
    band = max(1, memory_limit // (4 * 8 * windows.shape[1] * patches.shape[1]))
    for first in range(0, len(windows), band):
        rows = windows[first : first + band].flatten(2).flatten(0, 1)
        result[:, first : first + band] = (patches @ rows.T).view(len(patches), -1, windows.shape[1])
    return result.flatten(1)
