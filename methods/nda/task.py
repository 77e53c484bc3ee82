"""What an engine is asked: one query at one timestep and one scale."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from attribench.methods.nda.patches import Geometry, check_query


@dataclass(frozen=True, eq=False)
class PatchTask:
    """A query at one timestep and one scale.

    Args:
        noisy_query: x_t = √ᾱ x + √(1−ᾱ) ε, floating point ``(C, H, W)``.
        alpha_bar: ᾱ_t, strictly between 0 and 1.
        patch_size: side P of the patches, at least 1; may exceed the image.
        top_k: how many positions of a train image count for each position of the query, at least 1.
        downsample: 1, or 2 for the low resolution (P even).
    """

    noisy_query: Tensor
    alpha_bar: float
    patch_size: int
    top_k: int
    downsample: int = 1

    @property
    def geometry(self) -> Geometry:
        """Of the query's patches."""
        return Geometry(self.noisy_query.shape[1], self.noisy_query.shape[2], self.patch_size, self.downsample)

    @cached_property
    def digest(self) -> str:
        """Identifies the task by its content."""
        options = repr((self.alpha_bar, self.patch_size, self.top_k, self.downsample, tuple(self.noisy_query.shape)))
        pixels = self.noisy_query.detach().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(options.encode() + pixels).hexdigest()

    @property
    def num_positions(self) -> int:
        """Positions of the query."""
        rows, columns = self.geometry.grid
        return rows * columns

    def check(self, train_shape: Sequence[int]) -> None:
        """Raise UsageError or DataError unless the task is valid for train images of this shape, (N, C, H, W)."""
        check_query(self.noisy_query, train_shape, self.alpha_bar, self.top_k)
        _ = self.geometry
