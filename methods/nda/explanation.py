"""NDA's evidence for a query in pixels: the terms of a score added up, over timesteps, noise draws and resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attribench.errors import AttribenchError
from attribench.gradients.budget import shortage
from attribench.method import Match, SpatialEvidence
from attribench.methods.nda.engine.compiled import available_cores
from attribench.methods.nda.engine.layout import LaneShape
from attribench.methods.nda.engine.partial import Normaliser
from attribench.methods.nda.evidence import MEMORY_LIMIT, Evidence, evidence
from attribench.methods.nda.patches import Geometry
from attribench.methods.nda.task import PatchTask

#: Pairs of patches to show of a train image.
NUM_MATCHES = 5


def explain(
    tasks: Sequence[PatchTask],
    weights: Sequence[float],
    labels: Sequence[str],
    normalisers: Sequence[Normaliser],
    images: Tensor,
) -> list[SpatialEvidence]:
    """Evidence of the score Σ weight · (the task's score), for some train images.

    A position's weight goes to the pixel in the middle of its patch, or in equal parts to the four around the middle
    where the side of the patch is even.

    Args:
        tasks: of one query.
        weights: of each task in the score.
        labels: what to call each task.
        normalisers: of each task, over all train images.
        images: the train images to explain, uint8 ``(num_images, C, H, W)``.
    """
    found = [evidence(task, images, normaliser) for task, normaliser in zip(tasks, normalisers, strict=True)]
    size = images.shape[2:]
    result = []
    for index in range(len(images)):
        query_map, train_map = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        matches: list[Match] = []
        for task, weight, label, parts in zip(tasks, weights, labels, found, strict=True):
            query_map += weight * to_pixels(parts[index].given, task.geometry)
            train_map += weight * to_pixels(parts[index].received, task.geometry)
            matches += _matches(parts[index], task.geometry, weight, label)
        result.append(SpatialEvidence(query_map, train_map, _apart(matches)))
    return result


def with_mirrored(plain: SpatialEvidence, mirrored: SpatialEvidence) -> SpatialEvidence:
    """The evidence of a train image and of its mirror image together, both shown in the image as it is."""
    width = plain.train_map.shape[1]
    turned = [
        Match(match.query_box, (top, width - left - wide, high, wide), match.weight, f"{match.label}, mirrored")
        for match in mirrored.matches
        for top, left, high, wide in [match.train_box]
    ]
    return SpatialEvidence(
        plain.query_map + mirrored.query_map,
        plain.train_map + mirrored.train_map.flip(-1),
        _apart([*plain.matches, *turned]),
    )


def require_memory(tasks: Sequence[PatchTask]) -> None:
    """Raise AttribenchError unless evidence for these tasks of one query fits into memory."""
    channels, height, width = tasks[0].noisy_query.shape
    needed = MEMORY_LIMIT + available_cores() * max(work_space_bytes(task) for task in tasks)
    reason = shortage(
        f"Explaining images of {channels}×{height}×{width} numbers", needed, torch.device("cpu"),
        remedy="Use smaller images.",
    )  # fmt: skip
    if reason is not None:
        raise AttribenchError(reason)


def work_space_bytes(task: PatchTask) -> int:
    """What the engine's kernel takes a thread at most: column sums, and weights of a row of positions."""
    shape = LaneShape(task.geometry, task.noisy_query.shape[0], double=True)
    rows, columns = max(1, shape.inside[0]), task.geometry.grid[1]
    return shape.dtype.itemsize * rows * (shape.map_size[1] * shape.map_stride + columns * shape.row_stride)


def to_pixels(grid: Tensor, geometry: Geometry) -> Tensor:
    """A map over positions as one over pixels, with the same sum: ``(rows, columns)`` to ``(height, width)``."""
    if geometry.patch_size % 2:
        return grid.clone()
    pixels = grid.new_zeros(geometry.height, geometry.width)
    rows, columns = geometry.grid
    for down in (0, 1):
        for right in (0, 1):
            pixels[down : down + rows, right : right + columns] += grid / 4.0
    return pixels


def _matches(found: Evidence, geometry: Geometry, weight: float, label: str) -> list[Match]:
    return [
        Match(_box(int(p), geometry), _box(int(q), geometry), weight * float(strength), label)
        for (p, q), strength in zip(found.pairs.tolist(), found.weights.tolist(), strict=True)
        if strength > 0.0
    ]


def _box(position: int, geometry: Geometry) -> tuple[int, int, int, int]:
    """What a patch covers of the image: (top, left, height, width)."""
    row, column = divmod(position, geometry.grid[1])
    top, left = row - geometry.padding, column - geometry.padding
    bottom, right = min(top + geometry.patch_size, geometry.height), min(left + geometry.patch_size, geometry.width)
    top, left = max(top, 0), max(left, 0)
    return top, left, bottom - top, right - left


def _apart(matches: list[Match]) -> tuple[Match, ...]:
    """The strongest matches, leaving out those that show nearly what a stronger one shows."""
    kept: list[Match] = []
    for match in sorted(matches, key=lambda match: -match.weight):
        if all(_overlap(match.query_box, other.query_box) < 0.5 for other in kept):
            kept.append(match)
        if len(kept) == NUM_MATCHES:
            break
    return tuple(kept)


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Common area, as a share of the smaller one."""
    height = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    width = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    return max(0, height) * max(0, width) / min(first[2] * first[3], second[2] * second[3])
