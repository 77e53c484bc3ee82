"""NDA's patch scores by convolution, in PyTorch, with bounded memory, on the CPU or a GPU.

The score is that of "Nonparametric Data Attribution" (arXiv 2510.14269). For a query x_t and the train images √ᾱ y_n,

    d(p, q)    = Σ over the P×P patch and channels of (x_t(p + δ) − √ᾱ y_n(q + δ))²
    w(p; n, q) = exp(−d(p, q) / 2(1−ᾱ)), normalised over all positions q of all train images n
    score(n)   = Σ_p Σ of the k largest w(p; n, ·)

``‖a − b‖² = ‖a‖² − 2⟨a, b⟩ + ‖b‖²`` turns d into a convolution of the train images with the query's patches; ‖a‖² is
the same for all candidates of p and drops out of the softmax. Patches that hang over an edge are never mixed with
others (see :mod:`attribench.methods.nda.patches`), so no large padding constant enters and nothing has to cancel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from attribench.computing.device import exact_float32
from attribench.data import to_unit_range
from attribench.data.copies import Copies
from attribench.errors import DataError, UsageError
from attribench.methods.nda.patches import Geometry, check_images, check_query
from attribench.methods.nda.position_sums import PositionSums

MEMORY_LIMIT = 256 * 2**20

#: Largest tolerated estimate of the relative rounding error of a weight in float32; beyond it, float64 is used. The
#: estimate is a worst case: errors measured, relative to the largest score, are some hundred times smaller.
FLOAT32_TOLERANCE = 2e-3

#: Copies of a block of logits that are alive at once, at most: the convolution's output in its own layout and in
#: PyTorch's, the rows whose largest entries are sought, and those entries with their indices.
BUFFERS = 5


def patch_influence(
    noisy_query: Tensor,
    train: Tensor,
    alpha_bar: float,
    patch_size: int,
    top_k: int,
    downsample: int = 1,
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> Tensor:
    """Score every train image for one query at one timestep and one scale (arXiv 2510.14269).

    Args:
        noisy_query: x_t = √ᾱ x + √(1−ᾱ) ε, ``(C, H, W)``, any channels.
        train: the train images, at least one, ``(num_train, C, H, W)``, in [-1, 1], not scaled by √ᾱ; or uint8.
        alpha_bar: ᾱ_t of the timestep, strictly between 0 and 1.
        patch_size: side P of the patches, at least 1; may exceed the image. An odd P has H×W positions, an even P
            (H−1)×(W−1).
        top_k: how many positions of a train image count for each position of the query, at least 1; more than there
            are means all.
        downsample: 1 for full resolution, 2 for the low resolution: patches (P even) pooled by 2×2 blocks anchored at
            the patch's own corner, a block contributing ½ of its sum.
        memory_limit: bytes of working memory, beside the arguments and the result. Met as far as one train image and
            one position of the query at a time allow; it changes the scores by rounding at most.

    Returns:
        Scores ``(num_train,)`` on the arguments' device, float64 if an argument is and float32 otherwise. Nonnegative,
        higher = stronger proponent; they sum to at most the number of positions, and to exactly that if no position
        is cut off by ``top_k``.

    Raises:
        UsageError: a parameter is out of range, or P is odd at low resolution.
        DataError: the tensors are not images of one shape, hold values that are not finite, or no patch fits them.
    """
    noisy_query, train = _checked(noisy_query, train, alpha_bar, top_k)
    copies = Copies.of(train)
    scores = torch.zeros(len(copies.first), dtype=torch.float64, device=train.device)
    for _, influence in _influence(noisy_query, train, copies, alpha_bar, patch_size, top_k, downsample, memory_limit):
        scores += influence.sum(1, dtype=torch.float64)
    scores = scores[copies.which]
    return scores if torch.float64 in (noisy_query.dtype, train.dtype) else scores.to(torch.float32)


def position_influence(
    noisy_query: Tensor,
    train: Tensor,
    alpha_bar: float,
    patch_size: int,
    top_k: int,
    downsample: int = 1,
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the terms of :func:`patch_influence`, which takes the same arguments, by position of the query.

    Yields:
        Flat indices ``(num_positions,)`` into the grid of positions, and the influence ``(num_train, num_positions)``
        of every train image there. Every position comes once; summed over positions, influences are the scores.
    """
    noisy_query, train = _checked(noisy_query, train, alpha_bar, top_k)
    copies = Copies.of(train)
    for positions, influence in _influence(
        noisy_query, train, copies, alpha_bar, patch_size, top_k, downsample, memory_limit
    ):
        yield positions, influence[copies.which]


def _checked(noisy_query: Tensor, train: Tensor, alpha_bar: float, top_k: int) -> tuple[Tensor, Tensor]:
    """The images, known to be such, without their gradients."""
    check_images(train)
    check_query(noisy_query, train.shape, alpha_bar, top_k)
    if noisy_query.device != train.device:
        raise DataError(f"The query is on {noisy_query.device}, the train images are on {train.device}.")
    return noisy_query.detach(), train.detach()


def _influence(
    noisy_query: Tensor, train: Tensor, copies: Copies, alpha_bar: float, patch_size: int, top_k: int, downsample: int,
    memory_limit: int,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """:func:`position_influence` of the distinct train images alone, among all of them."""
    if memory_limit < 1:
        raise UsageError(f"memory_limit must be at least 1 byte; got {memory_limit}.")
    geometry = Geometry(noisy_query.shape[1], noisy_query.shape[2], patch_size, downsample)
    query = _Query.of(noisy_query, train, alpha_bar, geometry)
    for items in _passes(query, len(train), memory_limit):
        chunk = max(1, memory_limit // 2 // max(query.bytes_per_image(item) for item in items))
        counts = [len(item.positions) for item in items]
        kept = torch.empty((len(copies.first), sum(counts)), dtype=query.maps.dtype, device=train.device)
        sums = [PositionSums(part, top_k, chunk, copies.number) for part in torch.split(kept, counts, dim=1)]
        for start in range(0, len(kept), chunk):
            candidates = _Candidates(train[copies.first[start : start + chunk]], query)
            for item, item_sums in zip(items, sums, strict=True):
                item_sums.add(start, item.logits(query, candidates))
        for item_sums in sums:
            item_sums.finish()
        yield torch.cat([item.positions for item in items]), kept
        del kept, sums  # before the next run makes its own


@dataclass(frozen=True)
class _Query:
    """One query at one timestep and scale.

    Args:
        geometry: of its patches.
        maps: of the centred query, ``(C, map height, map width)``; their dtype is the one to compute in.
        center: what is subtracted from both sides, ``(C, 1, 1)``.
        alpha_bar: ᾱ of the timestep.
    """

    geometry: Geometry
    maps: Tensor
    center: Tensor
    alpha_bar: float

    @classmethod
    def of(cls, noisy_query: Tensor, train: Tensor, alpha_bar: float, geometry: Geometry) -> _Query:
        # Subtracting one constant from both sides changes no difference, but makes the products smaller and with them
        # their rounding. (Padding with zeros then stands for padding with that constant, which cancels like any other.)
        images = noisy_query.to(torch.float64)
        center = images.mean((1, 2), keepdim=True)
        maps = geometry.maps(images - center)
        wide = torch.float64 in (noisy_query.dtype, train.dtype)
        wide = wide or _float32_error(maps, center, alpha_bar, geometry) > FLOAT32_TOLERANCE
        dtype = torch.float64 if wide else torch.float32
        return cls(geometry, maps.to(dtype), center.to(dtype), float(alpha_bar))

    @property
    def temperature(self) -> float:
        """2(1−ᾱ): distances are divided by it."""
        return 2.0 * (1.0 - self.alpha_bar)

    def bytes_per_image(self, item: _Block | _Singles) -> int:
        """Working memory a train image of a chunk takes at most (estimated) while ``item`` is computed."""
        channels, height, width = self.maps.shape
        # Scaled, padded and pooled maps, a difference and its square; sums over patches.
        maps = 8 * (5 * channels + 3) * height * width
        return maps + BUFFERS * item.num_candidates * len(item.positions) * self.maps.element_size()


class _Candidates:
    """A chunk of train images ``(n, C, H, W)``, ready to be compared with a query."""

    def __init__(self, images: Tensor, query: _Query) -> None:
        self._query = query
        images = to_unit_range(images) if images.dtype == torch.uint8 else images
        scaled = images.to(query.maps.dtype) * math.sqrt(query.alpha_bar)
        self.maps = query.geometry.maps(scaled - query.center)

    @cached_property
    def norms(self) -> Tensor:
        """‖b‖² / 2(1−ᾱ) of every patch, ``(n, rows, columns)``."""
        squares = self.maps.square().sum(1)
        return (self._query.geometry.box_sum(squares) / self._query.temperature).to(self.maps.dtype)

    @cached_property
    def own_distances(self) -> Tensor:
        """d(p, p) / 2(1−ᾱ), float64 ``(n, rows, columns)``."""
        squares = (self.maps - self._query.maps).square().sum(1)
        return self._query.geometry.box_sum(squares) / self._query.temperature


class _Block:
    """Positions of the query in a rectangle within which every position matches every other one, or a part of them.

    Args:
        rows: of the rectangle.
        columns: of the rectangle.
        part: which of its positions, counted row by row.
        geometry: of the patches.
        device: of the positions.
    """

    def __init__(self, rows: range, columns: range, part: range, geometry: Geometry, device: torch.device) -> None:
        self._rows, self._columns = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        self._part = slice(part.start, part.stop)
        self.num_candidates = len(rows) * len(columns)
        grid = torch.arange(math.prod(geometry.grid), device=device).view(geometry.grid)
        self.positions = grid[self._rows, self._columns].flatten()[self._part]

    def logits(self, query: _Query, candidates: _Candidates) -> Tensor:
        """−d(p, q) / 2(1−ᾱ) + ‖a‖² / 2(1−ᾱ), ``(n, positions, candidate positions)``."""
        reach = query.geometry.span - 1
        patches = query.geometry.windows(query.maps)[:, self._rows, self._columns].flatten(1, 2)[:, self._part]
        area = candidates.maps[
            :, :, self._rows.start : self._rows.stop + reach, self._columns.start : self._columns.stop + reach
        ]
        with exact_float32():
            products = F.conv2d(
                area, patches.transpose(0, 1) * (2.0 / query.temperature), dilation=query.geometry.downsample
            )
        return products.sub_(candidates.norms[:, None, self._rows, self._columns]).flatten(2)


class _Singles:
    """Positions that match only themselves, in the query and in each train image."""

    num_candidates = 1

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions

    def logits(self, query: _Query, candidates: _Candidates) -> Tensor:
        """−d(p, p) / 2(1−ᾱ), ``(n, positions, 1)``."""
        return -candidates.own_distances.flatten(1)[:, self.positions, None]


def _passes(query: _Query, num_train: int, memory_limit: int) -> Iterator[list[_Block | _Singles]]:
    """Divide the query's positions into runs over the train images, such that each run's sums fit into memory."""
    itemsize = query.maps.element_size()
    capacity = max(1, memory_limit // 4 // (itemsize * max(num_train, 1)))
    run: list[_Block | _Singles] = []
    for item in _items(query, capacity, memory_limit):
        if run and sum(len(other.positions) for other in run) + len(item.positions) > capacity:
            yield run
            run = []
        run.append(item)
    yield run


def _items(query: _Query, capacity: int, memory_limit: int) -> Iterator[_Block | _Singles]:
    """All positions of the query, at most ``capacity`` together, and few enough for one train image to fit."""
    geometry, device = query.geometry, query.maps.device
    for rows, columns in geometry.blocks():
        count = len(rows) * len(columns)
        largest = memory_limit // 2 // (BUFFERS * count * query.maps.element_size())
        step = max(1, min(count, capacity, largest))
        for start in range(0, count, step):
            yield _Block(rows, columns, range(start, min(start + step, count)), geometry, device)
    singles = geometry.single_positions().to(device)
    for start in range(0, len(singles), capacity):
        yield _Singles(singles[start : start + capacity])


def _float32_error(maps: Tensor, center: Tensor, alpha_bar: float, geometry: Geometry) -> float:
    """Estimate the largest error of a weight, relative, when logits are computed in float32.

    A weight is exp((⟨a, b⟩ − ½‖b‖²) / (1−ᾱ)); ⟨a, b⟩ is rounded by up to about ‖a‖‖b‖ · 2⁻²⁴ and ½‖b‖² by ½‖b‖² · 2⁻²⁴.
    ‖a‖ is the largest norm of the query's patches, ‖b‖ the largest one that pixels in [-1, 1] can give.
    """
    query_norm = math.sqrt(geometry.box_sum(maps.square().sum(0)).max().item())
    largest_entry = geometry.downsample * (math.sqrt(alpha_bar) + center.abs().max().item())
    train_norm = geometry.taps * math.sqrt(len(maps)) * largest_entry
    return train_norm * (query_norm + train_norm / 2) * 2.0**-24 / (1.0 - alpha_bar)
