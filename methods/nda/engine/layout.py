"""Train images and queries in the form the CPU kernel reads: images side by side in vector lanes, patch energies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attribench.data import to_unit_range
from attribench.methods.nda.engine._products import FRESH_TAPS
from attribench.methods.nda.engine._simd import BYTES
from attribench.methods.nda.patches import Geometry, check_images

#: Column sums of one query row and all rows of the train images should stay in a core's second-level cache.
CACHE_BYTES = 2**21

#: No product reaches this; subtracted from a logit, it makes a candidate that does not exist.
NEVER = 1.0e30

#: float32 serves where (signal : noise power) × (numbers in a patch) stays below this, else float64: logits grow with
#: that product, and so does their rounding. At the limit, scores were off by up to 9e-5 of the largest one where all train
#: images were nearly equal, and by 5e-6 among photographs.
FLOAT32_LIMIT = 6_000.0


def needs_float64(geometry: Geometry, channels: int, alpha_bar: float) -> bool:
    """Whether weights at this noise level are too sharp for float32."""
    height = min(geometry.patch_size, geometry.height)
    width = min(geometry.patch_size, geometry.width)
    # Sums over patches that hang over all edges were three times less accurate, and are few.
    edge = 3.0 if geometry.patch_size > min(geometry.height, geometry.width) else 1.0
    return edge * alpha_bar / (1.0 - alpha_bar) * channels * height * width > FLOAT32_LIMIT


@dataclass(frozen=True)
class LaneShape:
    """How images and patches of one geometry lie in memory.

    Args:
        geometry: image size, patch size and resolution.
        channels: of the images.
        double: float64 instead of float32.
    """

    geometry: Geometry
    channels: int
    double: bool

    @property
    def dtype(self) -> np.dtype[np.float32] | np.dtype[np.float64]:
        """Of all that the kernel computes with."""
        return np.dtype(np.float64) if self.double else np.dtype(np.float32)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return BYTES // self.dtype.itemsize

    @property
    def step(self) -> int:
        """Distance of a patch's entries in a map."""
        return self.geometry.downsample

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of a map: the image's, or one more for the pooled one with its half-empty border."""
        return self.geometry.height + self.step - 1, self.geometry.width + self.step - 1

    @property
    def inside(self) -> tuple[int, int]:
        """Rows and columns of positions whose patch lies inside the image."""
        size = self.geometry.patch_size
        return max(0, self.geometry.height - size + 1), max(0, self.geometry.width - size + 1)

    @property
    def lanes(self) -> int:
        """Images side by side: a vector full, or fewer where the column sums would not fit into the cache."""
        lanes = self.width
        if self.geometry.taps <= FRESH_TAPS:
            return lanes
        per_image = max(1, self.inside[0]) * self.map_size[0] * self.map_size[1] * self.dtype.itemsize
        while lanes > 1 and lanes * per_image > CACHE_BYTES:
            lanes //= 2
        return lanes

    def _padded(self, length: int, vectors: int = 1) -> int:
        unit = vectors * self.width
        return -(-length // unit) * unit

    @property
    def map_stride(self) -> int:
        """Length of a row of maps or column sums, all lanes, in whole tiles of the kernel (four vectors)."""
        return self._padded(self.map_size[1] * self.lanes, 4)

    @property
    def row_stride(self) -> int:
        """Length of a row of candidates inside the image."""
        return self._padded(self.inside[1] * self.lanes)

    @property
    def edge_stride(self) -> int:
        """Length of a row of all positions; a vector may be read from any of them."""
        return self.geometry.grid[1] * self.lanes + self.width

    def numbers(self) -> tuple[int, ...]:
        """What the kernel needs to know, in its order."""
        height, width = self.map_size
        return (
            self.channels, height, width, *self.geometry.grid, self.geometry.padding, self.step, self.geometry.taps,
            *self.inside, self.lanes, width + self.step, self.map_stride, self.row_stride, self.edge_stride,
        )  # fmt: skip


class WorkSpace:
    """What one thread of the kernel writes: about 2 × ``CACHE_BYTES``, whatever the number of train images."""

    def __init__(self, shape: LaneShape) -> None:
        width, slots = shape.width, max(shape.inside[0], 1)
        columns = shape.geometry.grid[1]
        track = -(-shape.map_size[1] // shape.step) + 1
        tracks = 1 if shape.geometry.taps <= FRESH_TAPS else slots
        sizes = (
            tracks * track * shape.map_stride + 8 * width,  # column sums
            2 * max(shape.row_stride, width) + 2 * width,  # products
            columns * (slots * max(shape.row_stride, width) + 4 * width) + 8 * width,  # weights
            columns * 3 * width,  # sum, number and largest of a position's candidates
            width,  # mask of lanes
            columns * 2 * width,  # thresholds found, and density there
            2 * width,
        )
        arrays = aligned(sizes, shape.dtype)
        self.column_sums, self.products, self.weights, self.found, self.mask, self.guess, self.scratch = arrays
        self.mask[shape.lanes :] = -NEVER
        self._guesses = self.guess.reshape(columns, 2, width)
        self.kept = np.zeros(columns, np.int64)
        self.at_x = np.zeros(shape.channels * max(shape.geometry.taps, 2), np.int64)
        self.at_y = np.zeros_like(self.at_x)

    def arguments(self) -> tuple[NDArray[Any], ...]:
        """In the kernel's order; without memory of what this thread did before, which would show in the last bits."""
        self._guesses[:] = np.array([-2.0, 30.0])[:, None]
        return (
            self.column_sums, self.products, self.weights, self.found, self.kept, self.at_x, self.at_y, self.mask,
            self.guess, self.scratch,
        )  # fmt: skip


def aligned(sizes: tuple[int, ...], dtype: np.dtype[np.float32] | np.dtype[np.float64]) -> list[NDArray[np.float64]]:
    """Flat arrays of zeros that start at multiples of a vector."""
    per_vector = BYTES // dtype.itemsize
    rounded = [-(-size // per_vector) * per_vector for size in sizes]
    memory = np.zeros(sum(rounded) + per_vector, dtype)
    start = -memory.ctypes.data % BYTES // dtype.itemsize
    arrays = []
    for size, length in zip(sizes, rounded, strict=True):
        arrays.append(memory[start : start + size])
        start += length
    return arrays


@dataclass(frozen=True, eq=False)
class Lanes:
    """A shard of train images in lanes: the kernel's ``y``, ``rows`` and ``edges``."""

    maps: NDArray[np.float64]
    rows: NDArray[np.float64]
    edges: NDArray[np.float64]
    groups: int


class TrainLayout:
    """A shard of train images, laid out once for all queries and timesteps.

    Args:
        images: ``(num_images, C, H, W)``: uint8, or floating point in [-1, 1].

    Raises:
        DataError: not images, none, or with values that are not finite.
    """

    def __init__(self, images: Tensor) -> None:
        check_images(images)
        self.images = images.detach()
        self._maps: dict[tuple[int, bool, int], NDArray[np.float64]] = {}
        self._lanes: dict[LaneShape, Lanes] = {}

    def __len__(self) -> int:
        return len(self.images)

    def unit_range(self, part: slice = slice(None)) -> Tensor:
        """The images, or some of them, in [-1, 1], floating point."""
        images = self.images[part]
        return to_unit_range(images) if images.dtype == torch.uint8 else images

    def lanes(self, shape: LaneShape) -> Lanes:
        """The images in lanes of ``shape``; computed once."""
        if shape not in self._lanes:
            self._lanes[shape] = self._lay_out(shape)
        return self._lanes[shape]

    def _lay_out(self, shape: LaneShape) -> Lanes:
        groups, lanes = -(-len(self) // shape.lanes), shape.lanes
        maps = pool(self.unit_range().to(torch.float64 if shape.double else torch.float32), shape.step)
        key = (shape.step, shape.double, lanes)
        if key not in self._maps:
            height, width = shape.map_size
            (flat,) = aligned((groups * shape.channels * height * shape.map_stride + 4 * shape.width,), shape.dtype)
            rows = flat[: groups * shape.channels * height * shape.map_stride].reshape(-1, shape.map_stride)
            rows[:, : width * lanes] = _side_by_side(maps, lanes, 0.0).reshape(-1, width * lanes).numpy()
            self._maps[key] = flat
        energy = _side_by_side(patch_energy(maps, shape), lanes, NEVER).numpy()
        grid_height, grid_width = shape.geometry.grid
        sizes = (groups * grid_height * shape.row_stride, groups * grid_height * shape.edge_stride + shape.width)
        rows, edges = aligned((sizes[0] + shape.width, sizes[1]), shape.dtype)
        rows.fill(NEVER)
        edges.fill(NEVER)
        first, count = shape.geometry.padding, shape.inside[1]
        rows[: sizes[0]].reshape(groups, grid_height, shape.row_stride)[..., : count * lanes] = energy[
            :, :, first : first + count
        ].reshape(groups, grid_height, -1)
        edges[: -shape.width].reshape(groups, grid_height, shape.edge_stride)[..., : grid_width * lanes] = (
            energy.reshape(groups, grid_height, -1)
        )
        return Lanes(self._maps[key], rows, edges, groups)


def _side_by_side(maps: Tensor, lanes: int, missing: float) -> Tensor:
    """``(N, ..., width)`` to ``(groups, ..., width, lanes)``; images that do not exist are ``missing``."""
    short = -len(maps) % lanes
    if short:
        maps = torch.cat([maps, maps.new_full((short, *maps.shape[1:]), missing)])
    return maps.view(-1, lanes, *maps.shape[1:]).movedim(1, -1).contiguous()


def pool(images: Tensor, step: int) -> Tensor:
    """The maps patches are taken from: the images, or ½ of the sum over 2×2 pixels, also of those half outside."""
    if step == 1:
        return images
    padded = F.pad(images, [1, 1, 1, 1])
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return (rows[..., 1:] + rows[..., :-1]) / 2


def patch_energy(maps: Tensor, shape: LaneShape) -> Tensor:
    """Σ over each patch and all channels of the maps' squares, ``(N, grid height, grid width)``."""
    squares = maps.square().sum(1, dtype=torch.float64)
    for axis, count in ((1, shape.geometry.grid[0]), (2, shape.geometry.grid[1])):
        squares = _box(squares.movedim(axis, -1), shape, count).movedim(-1, axis)
    return squares.to(maps.dtype)


def _box(values: Tensor, shape: LaneShape, count: int) -> Tensor:
    """Sums of ``taps`` values ``step`` apart, from where each of ``count`` positions begins; zero outside."""
    step, taps = shape.step, shape.geometry.taps
    before = shape.geometry.padding - (step - 1) + step  # one more tap, so that differences of running sums suffice
    after = max(0, count - 1 - shape.geometry.padding + step * taps - values.shape[-1] + step - 1)
    length = before + values.shape[-1] + after
    padded = F.pad(values, [before, after + -length % step])
    running = padded.reshape(*padded.shape[:-1], -1, step).cumsum(-2).flatten(-2)
    return running[..., step * taps : step * taps + count] - running[..., :count]


def query_maps(noisy_query: Tensor, shape: LaneShape, alpha_bar: float) -> tuple[NDArray[np.float64], float]:
    """The kernel's ``x`` and ``beta``."""
    height, width = shape.map_size
    scale = math.sqrt(alpha_bar) / ((1.0 - alpha_bar) * math.log(2.0))
    maps = pool(noisy_query.detach().to("cpu", torch.float64), shape.step) * scale
    x = np.zeros((2, shape.channels, height, width + shape.step), shape.dtype)
    x[0, :, :, :width] = maps.numpy()
    x[1] = -x[0]
    return x.reshape(-1), alpha_bar / (2.0 * (1.0 - alpha_bar) * math.log(2.0))
