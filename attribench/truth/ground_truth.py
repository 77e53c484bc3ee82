"""What really happened when models were retrained: masks and losses, kept by band of noise level."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

#: Timesteps of a band: ten bands from little noise to much.
BAND_WIDTH = 100


@dataclass(frozen=True)
class Band:
    """A range of noise levels.

    Attributes:
        first: its first timestep.
        last: the one after its last.
        count: how many timesteps in it losses were measured at.
    """

    first: int
    last: int
    count: int


def bands_of(timesteps: Sequence[int]) -> list[Band]:
    """The bands of :data:`BAND_WIDTH` timesteps that hold some of ``timesteps``, in order."""
    counts: dict[int, int] = {}
    for timestep in timesteps:
        counts[timestep // BAND_WIDTH] = counts.get(timestep // BAND_WIDTH, 0) + 1
    return [Band(BAND_WIDTH * k, BAND_WIDTH * (k + 1), count) for k, count in sorted(counts.items())]


def band_means(losses: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Average losses within each band.

    Args:
        losses: ``(num_draws, num_timesteps, num_queries)``.
        timesteps: where they were measured.

    Returns:
        float32 ``(num_draws, num_bands, num_queries)``, averaged in float64.
    """
    of = np.array(timesteps) // BAND_WIDTH
    return torch.stack([losses[:, of == k].double().mean(dim=1) for k in np.unique(of)], dim=1).float()


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What really happened when models were retrained on subsets.

    Attributes:
        masks: bool ``(num_subsets, num_train)``: the train images each subset holds.
        by_band: float32 ``(num_subsets, num_seeds, num_draws, num_bands, num_queries)``: each model's loss on each query
            with each noise draw, averaged over the timesteps of a band. Published losses may be float64.
        bands: the bands, by noise level.
        part: what of a larger ground truth this is; empty for all of it.
    """

    masks: Tensor
    by_band: Tensor
    bands: list[Band]
    part: str = ""

    @cached_property
    def hash(self) -> str:
        """Identifies masks and losses by their content."""
        digest = hashlib.sha256(repr((tuple(self.masks.shape), tuple(self.by_band.shape), self.bands)).encode())
        digest.update(self.masks.to(torch.uint8).contiguous().numpy().data)
        digest.update(self.by_band.contiguous().numpy().data)
        return digest.hexdigest()[:32] + (f"/{self.part}" if self.part else "")

    @cached_property
    def draws(self) -> Tensor:
        """float64 ``(num_subsets, num_seeds, num_draws, num_queries)``: averaged over all timesteps."""
        weights = torch.tensor([band.count for band in self.bands], dtype=torch.float64)
        return torch.einsum("sednq,n->sedq", self.by_band.double(), weights / weights.sum())

    @property
    def losses(self) -> Tensor:
        """float64 ``(num_subsets, num_seeds, num_queries)``: averaged over noise draws."""
        return self.draws.mean(dim=2)

    @property
    def outputs(self) -> Tensor:
        """float64 ``(num_subsets, num_queries)``: the losses averaged over training seeds."""
        return self.losses.mean(dim=1)

    def in_bands(self) -> list[GroundTruth]:
        """The ground truth of each band alone."""
        return [
            GroundTruth(self.masks, self.by_band[..., number : number + 1, :], [band], f"band {band.first}")
            for number, band in enumerate(self.bands)
        ]

    def restrict(self, subsets: Sequence[int], queries: Sequence[int]) -> GroundTruth:
        """Some subsets and queries of it, by number."""
        return GroundTruth(
            self.masks[list(subsets)],
            self.by_band[list(subsets)][..., list(queries)],
            self.bands,
            f"subsets {list(subsets)}",
        )
