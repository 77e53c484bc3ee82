"""Where patches lie and which of them may match: the geometry of NDA, independent of any engine.

A patch of side P is anchored at its top-left corner on an image padded by ``(P - 1) // 2`` on every side, which makes
as many positions an axis as pixels for an odd P and one fewer for an even P. The padding is a constant far outside the
range of pixels, in query and train image alike, so that a patch hanging over an edge matches only patches that hang
over it by as much. Two facts follow, and nothing here needs the constant's value:

* Along one axis, a position that hangs over an edge matches itself alone, because every hanging position hangs over
  differently; a position inside the image matches every other one inside.
* Between patches of equal overhang the padding cancels, so it may as well be zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from attribench.errors import DataError, UsageError


@dataclass(frozen=True)
class Geometry:
    """The patches of one image size.

    Args:
        height: of the images, in pixels.
        width: of the images, in pixels.
        patch_size: side P of a patch, at least 1; may exceed the image.
        downsample: 1, or 2 for patches pooled by disjoint 2×2 blocks anchored at the patch's own corner (P even).

    Raises:
        UsageError: P or ``downsample`` is out of range.
        DataError: no patch fits (an even P on an image one pixel high or wide).
    """

    height: int
    width: int
    patch_size: int
    downsample: int = 1

    def __post_init__(self) -> None:
        check_patch_size(self.patch_size, self.downsample)
        if 0 in self.grid:
            raise DataError(f"No patch of side {self.patch_size} fits images of {self.height}×{self.width} pixels.")

    @property
    def padding(self) -> int:
        """Pixels of padding on each side."""
        return (self.patch_size - 1) // 2

    @property
    def taps(self) -> int:
        """Entries of a map that a patch takes along an axis: P pixels, or P/2 blocks."""
        return self.patch_size // self.downsample

    @property
    def span(self) -> int:
        """Length of a patch along an axis of a map: its taps lie ``downsample`` apart."""
        return (self.taps - 1) * self.downsample + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        lost = 1 - self.patch_size % 2
        return self.height - lost, self.width - lost

    def maps(self, images: Tensor) -> Tensor:
        """Pad images, and pool them for the low resolution, so that a patch is a (dilated) window of the result.

        Pooling is by overlapping 2×2 windows, ½ of their sum: the patch at p takes every second one from p on, which
        are the disjoint blocks anchored at its own corner.

        Args:
            images: ``(..., height, width)``.

        Returns:
            Maps ``(..., rows + span - 1, columns + span - 1)``.
        """
        padded = F.pad(images, [self.padding] * 4)
        if self.downsample == 1:
            return padded
        rows = padded[..., 1:, :] + padded[..., :-1, :]
        return (rows[..., 1:] + rows[..., :-1]) / 2

    def windows(self, maps: Tensor) -> Tensor:
        """All patches of :meth:`maps`, as a view ``(..., rows, columns, taps, taps)``."""
        windows = maps.unfold(-2, self.span, 1).unfold(-2, self.span, 1)
        return windows[..., :: self.downsample, :: self.downsample]

    def box_sum(self, maps: Tensor) -> Tensor:
        """Sum every patch of maps, in float64: ``(..., rows, columns)``."""
        for axis in (-1, -2):
            maps = maps.unfold(axis, self.span, 1)[..., :: self.downsample].sum(-1, dtype=torch.float64)
        return maps

    def blocks(self) -> Iterator[tuple[range, range]]:
        """The rectangles (rows, columns) of positions within which every position matches every other one.

        Positions that match only themselves are left out; they are :meth:`single_positions`.
        """
        rows, columns = (_axis_groups(size, self.patch_size) for size in (self.height, self.width))
        for row_group in rows:
            for column_group in columns:
                if len(row_group) * len(column_group) > 1:
                    yield row_group, column_group

    def single_positions(self) -> Tensor:
        """Flat indices, int64, of the positions that match only themselves: those that hang over on both axes."""
        single = torch.ones(self.grid, dtype=torch.bool)
        for rows, columns in self.blocks():
            single[rows.start : rows.stop, columns.start : columns.stop] = False
        return single.flatten().nonzero().flatten()


def _axis_groups(size: int, patch_size: int) -> list[range]:
    """Split an axis's positions into groups of mutual matches: those inside the image, and each hanging one."""
    padding = (patch_size - 1) // 2
    positions = size + 2 * padding - patch_size + 1
    inside = range(padding, padding + max(size - patch_size + 1, 0))
    hanging = [range(p, p + 1) for p in range(positions) if p not in inside]
    return ([inside] if inside else []) + hanging


def check_patch_size(patch_size: int, downsample: int) -> None:
    """Raise UsageError unless there are patches of this side at this resolution."""
    if downsample not in (1, 2):
        raise UsageError(f"downsample must be 1 or 2; got {downsample}.")
    if not isinstance(patch_size, Integral) or patch_size < 1:
        raise UsageError(f"A patch size must be a whole number, at least 1; got {patch_size}.")
    if patch_size % downsample:
        raise UsageError(f"A low-resolution patch size must be even (it is pooled by 2×2 blocks); got {patch_size}.")


def check_images(images: Tensor) -> None:
    """Check train images, whatever the engine.

    Raises:
        UsageError: not a tensor.
        DataError: not images, none, or with values that are not finite.
    """
    if not isinstance(images, Tensor):
        raise UsageError(f"Train images must be a tensor; got {type(images).__name__}.")
    if images.ndim != 4 or len(images) == 0:
        raise DataError(f"Train images must be (N, C, H, W), at least one; got {tuple(images.shape)}.")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise DataError(f"Train images must be uint8, or floating point in [-1, 1]; got {images.dtype}.")
    for index, image in enumerate(images if images.is_floating_point() else ()):
        if not image.isfinite().all():
            raise DataError(f"Train image {index} holds NaN or infinity: leave it out, or repair it.")


def check_query(noisy_query: Tensor, train_shape: Sequence[int], alpha_bar: float, top_k: int) -> None:
    """Check what every engine is asked, but for the patch size, which :class:`Geometry` checks.

    Raises:
        UsageError: ᾱ is not strictly between 0 and 1, k is not a positive whole number, or the query is not a tensor.
        DataError: the query is no floating-point image of the train images' shape, or has values that are not finite.
    """
    if not 0.0 < float(alpha_bar) < 1.0:
        raise UsageError(f"alpha_bar must lie strictly between 0 and 1; got {float(alpha_bar)}.")
    if not isinstance(top_k, Integral) or top_k < 1:
        raise UsageError(f"top_k must be a whole number, at least 1; got {top_k}.")
    if not isinstance(noisy_query, Tensor):
        raise UsageError(f"A query must be a tensor; got {type(noisy_query).__name__}.")
    if tuple(noisy_query.shape) != tuple(train_shape[1:]):
        raise DataError(
            f"A query (C, H, W) and train images (N, C, H, W) of one shape are needed; got {tuple(noisy_query.shape)} "
            f"and {tuple(train_shape)}."
        )
    if not noisy_query.is_floating_point():
        raise DataError(f"A noisy query must be floating point; got {noisy_query.dtype}.")
    if not noisy_query.isfinite().all():
        raise DataError("The noisy query holds NaN or infinity.")
