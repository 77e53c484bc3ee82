"""Partial results of NDA: what a shard of the train images contributes to one query, so that shards can be merged.

The weights of a position p of the query are a softmax over all positions of all train images. For a shard, keep the
largest logit m_p, the logarithm of Z_p = Σ weights relative to it, and per train image and position the sum of its k
largest weights, relative to m_p. Shards then merge like a streaming softmax, in any order and on any machine.

m_p is rounded down to a whole number. Sums relative to another m_p then differ by powers of 2, without any rounding, and
equal images of different shards have equal scores to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribench.errors import DataError

#: A top-k sum below 2^-33 of the position's best weight counts as zero: all those of 2^16 (65 thousand) train images
#: together are less than 1e-5 of what the position has to give.
NEGLIGIBLE = 33

#: Numbers that are weighted at a time while scores are added up, 32 MiB of float64.
_CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class Normaliser:
    """What all train images together weigh at each position of a query.

    Args:
        peak: float64 ``(positions,)``, the largest logit, in units of ln 2 and up to a constant of the position, rounded
            down to a whole number.
        log_total: float64 ``(positions,)``, log₂ of Σ 2^logit over all candidates.
    """

    peak: NDArray[np.float64]
    log_total: NDArray[np.float64]

    def with_total(self, peak: NDArray[np.float64], total: NDArray[np.float64]) -> Normaliser:
        """Add candidates of which ``total`` is Σ 2^(logit − peak)."""
        with np.errstate(divide="ignore"):
            return self.merged(Normaliser(peak, peak + np.log2(total)))

    def merged(self, other: Normaliser) -> Normaliser:
        """Of the candidates of both."""
        return Normaliser(np.maximum(self.peak, other.peak), np.logaddexp2(self.log_total, other.log_total))

    @classmethod
    def empty(cls, positions: int) -> Normaliser:
        """Of no candidate."""
        return cls(np.full(positions, -np.inf), np.full(positions, -np.inf))


@dataclass(frozen=True, eq=False)
class Block:
    """The top-k sums of consecutive train images.

    Args:
        start: index of the first one in the training set.
        sums: float32 ``(num_images, positions)``, each image's k largest weights at each position, added up.
        peak: float64 ``(positions,)``, the logit whose weight is 1 in ``sums``; whole numbers.
    """

    start: int
    sums: NDArray[np.float32]
    peak: NDArray[np.float64]

    @property
    def stop(self) -> int:
        """Index after the last image."""
        return self.start + len(self.sums)

    def shares(self, normaliser: Normaliser, images: slice = slice(None)) -> NDArray[np.float64]:
        """The images' sums, or some of them, with weights normalised: float64 ``(num_images, positions)``."""
        sums = self.sums[images]
        least = rescaled(np.float32(2.0**-NEGLIGIBLE), normaliser.peak - self.peak)
        factors = rescaled(np.exp2(normaliser.peak - normaliser.log_total), self.peak - normaliser.peak)
        shares: NDArray[np.float64] = np.where(sums < least, np.float32(0.0), sums) * factors
        return shares

    def scores(self, normaliser: Normaliser) -> Tensor:
        """Σ_p of the images' sums, with weights normalised: float64 ``(num_images,)``."""
        scores = np.empty(len(self.sums))
        step = max(1, _CHUNK // self.peak.size)
        for start in range(0, len(scores), step):
            # Added up row by row: the sums of a matrix product would depend on where a row stands.
            scores[start : start + step] = self.shares(normaliser, slice(start, start + step)).sum(1)
        return torch.from_numpy(scores)


def rescaled(values: Any, powers: NDArray[np.float64]) -> NDArray[Any]:
    """``values`` · 2^powers for whole numbers, without rounding, in the values' precision."""
    scaled: NDArray[Any] = np.ldexp(values, np.clip(powers, -1000.0, 120.0).astype(np.int32))
    return scaled


@dataclass(frozen=True, eq=False)
class PartialInfluence:
    """What some train images contribute to one query at one timestep and one scale.

    Args:
        normaliser: of these train images.
        blocks: their top-k sums, in order of the train images.
    """

    normaliser: Normaliser
    blocks: tuple[Block, ...]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays to store or to send, for :meth:`from_arrays`."""
        return {
            "peak": self.normaliser.peak,
            "log_total": self.normaliser.log_total,
            "starts": np.array([block.start for block in self.blocks], np.int64),
            "stops": np.array([block.stop for block in self.blocks], np.int64),
            "block_peaks": np.stack([block.peak for block in self.blocks]),
            "sums": np.concatenate([block.sums for block in self.blocks]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> PartialInfluence:
        """The inverse of :meth:`arrays`."""
        ends = np.cumsum(arrays["stops"] - arrays["starts"])
        parts = np.split(arrays["sums"], ends[:-1])
        blocks = zip(arrays["starts"].tolist(), parts, arrays["block_peaks"], strict=True)
        return cls(Normaliser(arrays["peak"], arrays["log_total"]), tuple(Block(*block) for block in blocks))


def merge(partials: Iterable[PartialInfluence]) -> PartialInfluence:
    """Combine partial results of one query over disjoint shards; associative and commutative up to rounding.

    Raises:
        DataError: nothing to merge, partial results of other positions, or train images that come twice.
    """
    parts = list(partials)
    if not parts:
        raise DataError("No partial results to merge.")
    normaliser = parts[0].normaliser
    for part in parts[1:]:
        if part.normaliser.peak.shape != normaliser.peak.shape:
            raise DataError("Partial results of different patch sizes or images cannot be merged.")
        normaliser = normaliser.merged(part.normaliser)
    blocks = sorted((block for part in parts for block in part.blocks), key=lambda block: block.start)
    for before, after in itertools.pairwise(blocks):
        if before.stop > after.start:
            raise DataError(f"Train image {after.start} is in more than one partial result.")
    return PartialInfluence(normaliser, tuple(blocks))


def finish(partial: PartialInfluence) -> Tensor:
    """The scores of a partial result's train images, as if they were all there are.

    Returns:
        float64 ``(num_images,)``, in order of the train images; nonnegative, higher = stronger proponent.
    """
    return torch.cat([block.scores(partial.normaliser) for block in partial.blocks])
