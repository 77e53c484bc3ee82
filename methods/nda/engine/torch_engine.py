"""The fast engine's algorithm in plain torch operations: for CUDA, and on the CPU to be tested.

As on the CPU (:mod:`attribench.methods.nda.engine.compiled`), patch distances come from sums along fixed displacements, only
patches that hang over the edges alike are compared, and partial results merge. A GPU has the memory bandwidth to weigh
all candidates, so nothing is pruned; sums over a patch double their length step by step, which takes log₂ P additions.

All sums are written as additions of whole tensors. Library routines add up in an order that may depend on where in the
tensor an image stands and how many there are; this way, equal images get equal scores to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribench.methods.nda.engine.layout import TrainLayout, needs_float64
from attribench.methods.nda.engine.partial import Block, Normaliser, PartialInfluence
from attribench.methods.nda.patches import Geometry
from attribench.methods.nda.task import PatchTask

#: Bytes of working memory unless told otherwise: what a CPU's cache holds, or little of what a GPU has.
CPU_MEMORY, GPU_MEMORY = 2**26, 2**30

#: Copies of the logits alive at once, at most.
BUFFERS = 4


@dataclass(frozen=True, eq=False)
class Candidates:
    """Some positions of the query and all they are compared with.

    Args:
        positions: flat indices ``(positions,)`` into the grid of positions.
        partners: flat indices ``(positions, candidates)`` of the train images' positions.
        logits: ``(num_images, positions, candidates)``, in units of ln 2, up to a constant of the position.
    """

    positions: Tensor
    partners: Tensor
    logits: Tensor


class TorchEngine:
    """The fast engine on any device torch has; the interface of :class:`attribench.methods.nda.engine.compiled.Engine`.

    Args:
        device: where to compute.
        memory_limit: bytes of working memory, None for a default; met as far as one train image at a time allows.
    """

    def __init__(self, device: torch.device | str = "cpu", memory_limit: int | None = None) -> None:
        self.device = torch.device(device)
        default = CPU_MEMORY if self.device.type == "cpu" else GPU_MEMORY
        self.memory_limit = default if memory_limit is None else memory_limit

    def partials(
        self, tasks: Sequence[PatchTask], train: TrainLayout, start: int = 0, known: Sequence[Normaliser] | None = None
    ) -> list[PartialInfluence]:
        """See :meth:`Engine.partials`; ``known`` is not needed here."""
        for task in tasks:
            task.check(train.images.shape)
        return [self._partial(task, train, start, sums=True) for task in tasks]

    def partial(
        self, task: PatchTask, train: TrainLayout, start: int = 0, known: Normaliser | None = None
    ) -> PartialInfluence:
        """A shard's partial result for one task."""
        return self.partials([task], train, start)[0]

    def normalisers(
        self, tasks: Sequence[PatchTask], train: TrainLayout, known: Sequence[Normaliser] | None = None
    ) -> list[Normaliser]:
        """See :meth:`Engine.normalisers`."""
        for task in tasks:
            task.check(train.images.shape)
        return [self._partial(task, train, 0, sums=False).normaliser for task in tasks]

    def _partial(self, task: PatchTask, train: TrainLayout, start: int, sums: bool) -> PartialInfluence:
        geometry, channels = task.geometry, train.images.shape[1]
        wide = torch.float64 in (train.images.dtype, task.noisy_query.dtype)
        double = wide or needs_float64(geometry, channels, task.alpha_bar)
        dtype = torch.float64 if double else torch.float32
        inside = max(0, geometry.height - task.patch_size + 1) * max(0, geometry.width - task.patch_size + 1)
        per_image = BUFFERS * (inside**2 + task.num_positions * (geometry.height + geometry.width)) * dtype.itemsize
        chunk = max(1, self.memory_limit // per_image)
        normaliser, blocks = Normaliser.empty(task.num_positions), []
        for first in range(0, len(train), chunk):
            images = train.unit_range(slice(first, first + chunk)).to(self.device, dtype)
            peak = torch.full((task.num_positions,), -math.inf, dtype=torch.float64, device=self.device)
            total = torch.zeros_like(peak)
            kept = torch.zeros((len(images), task.num_positions), dtype=torch.float32, device=self.device)
            for part in candidates(task, images):
                # Each image's weights are relative to its own best candidate, and then scaled by a power of 2: what other
                # images there are, and where, makes no difference to the last bit.
                best = part.logits.amax(2)
                level = best.floor()
                reference = level.amax(0)
                scale, power = _exp2(best - level), _power_of_2(level - reference)
                weights = _exp2(part.logits - best[..., None])
                peak[part.positions] = reference.to(torch.float64)
                total[part.positions] = (_total(weights) * scale * power).sum(0, dtype=torch.float64)
                if sums:
                    if task.top_k < weights.shape[2]:
                        weights = weights.topk(task.top_k).values
                    kept[:, part.positions] = (_total(weights) * scale).to(torch.float32) * power
            top = peak.cpu().numpy()
            normaliser = normaliser.with_total(top, total.cpu().numpy())
            if sums:
                blocks.append(Block(start + first, kept.cpu().numpy(), top))
        return PartialInfluence(normaliser, tuple(blocks))


def candidates(task: PatchTask, images: Tensor) -> Iterator[Candidates]:
    """All comparisons of a task with train images in [-1, 1], ``(num_images, C, H, W)``, in the images' precision."""
    geometry, noise = task.geometry, 1.0 - task.alpha_bar
    query = geometry.maps(task.noisy_query.detach().to(images.device, torch.float64)) * (
        math.sqrt(task.alpha_bar) / noise
    )
    query = (query / math.log(2.0)).to(images.dtype)
    maps = geometry.maps(images)
    energy = _box(_box(_channel_sum(maps, maps), (1,), geometry), (2,), geometry).to(images.dtype)
    energy = energy * (task.alpha_bar / (2.0 * noise * math.log(2.0)))
    (rows, edge_rows), (columns, edge_columns) = (_inside_and_edge(geometry, axis, images.device) for axis in (0, 1))
    grid = torch.arange(task.num_positions, device=images.device).view(geometry.grid)
    block, across = _inside_rows(query, maps, geometry, len(rows), len(columns), edge_columns)
    if len(rows) and len(columns):
        own = grid[rows][:, columns].flatten()
        logits = block.flatten(3).flatten(1, 2) - energy[:, rows][:, :, columns].flatten(1)[:, None]
        yield Candidates(own, own.expand(len(own), -1), logits)
    if len(rows) and len(edge_columns):
        own = grid[rows][:, edge_columns]
        partner_energy = energy[:, rows][:, :, edge_columns].transpose(1, 2)  # (n, edge columns, rows)
        partners = own.T.expand(len(rows), -1, -1).flatten(0, 1)
        yield Candidates(own.flatten(), partners, (across - partner_energy[:, None]).flatten(1, 2))
    if len(edge_rows):
        sums = _box(_products(query, maps), (1,), geometry)[:, edge_rows]
        if len(columns):
            own = grid[edge_rows][:, columns]
            length = len(columns) + geometry.span - 1
            strip = sums.narrow(2, geometry.padding, length).narrow(3, geometry.padding, length)
            partner_energy = energy[:, edge_rows][:, :, columns]
            logits = _box(strip, (2, 3), geometry) - partner_energy[:, :, None]
            partners = own[:, None].expand(-1, len(columns), -1).flatten(0, 1)
            yield Candidates(own.flatten(), partners, logits.flatten(1, 2))
        if len(edge_columns):
            own = grid[edge_rows][:, edge_columns].flatten()
            products = _box(sums.diagonal(dim1=2, dim2=3), (2,), geometry)[:, :, edge_columns]
            logits = products - energy[:, edge_rows][:, :, edge_columns]
            yield Candidates(own, own[:, None], logits.flatten(1)[..., None])


def _inside_and_edge(geometry: Geometry, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along an axis, the positions whose patch lies inside the image, and those that match only themselves."""
    positions = torch.arange(geometry.grid[axis], device=device)
    size = (geometry.height, geometry.width)[axis]
    inside = (positions >= geometry.padding) & (positions < geometry.padding + size - geometry.patch_size + 1)
    return positions[inside], positions[~inside]


def _inside_rows(
    query: Tensor, maps: Tensor, geometry: Geometry, rows: int, columns: int, edge_columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Products of the patches in inside rows, displacement by displacement of the rows.

    Returns:
        ``(n, rows, columns, rows, columns)`` for inside columns, ``(n, rows, edge columns, rows)`` for the others.
    """
    block = maps.new_empty((len(maps), rows, columns, rows, columns))
    across = maps.new_empty((len(maps), rows, len(edge_columns), rows))
    length, width = rows + geometry.span - 1, columns + geometry.span - 1
    for shift in range(1 - rows, rows):
        x = query.narrow(1, geometry.padding + max(0, -shift), length - abs(shift))
        y = maps.narrow(2, geometry.padding + max(0, shift), length - abs(shift))
        sums = _box(_products(x, y), (1,), geometry)
        if columns:
            inside = sums.narrow(2, geometry.padding, width).narrow(3, geometry.padding, width)
            block.diagonal(shift, 1, 3).copy_(_box(inside, (2, 3), geometry).movedim(1, -1))
        if len(edge_columns):
            edge = _box(sums.diagonal(dim1=2, dim2=3), (2,), geometry)[:, :, edge_columns]
            across.diagonal(shift, 1, 3).copy_(edge.transpose(1, 2))
    return block, across


def _products(x: Tensor, y: Tensor) -> Tensor:
    """Σ over channels of the products of all pairs of columns: ``(C, u, h)`` and ``(n, C, u, v)`` to ``(n, u, h, v)``."""
    return _channel_sum(x[None, :, :, :, None], y[:, :, :, None])


def _channel_sum(a: Tensor, b: Tensor) -> Tensor:
    """Σ over the second dimension of a · b."""
    result = a[:, 0] * b[:, 0]
    for channel in range(1, a.shape[1]):
        result += a[:, channel] * b[:, channel]
    return result


def _total(values: Tensor) -> Tensor:
    """Sum over the last dimension, by halves."""
    while (length := values.shape[-1]) > 1:
        half = length // 2
        sums = values[..., :half] + values[..., half : 2 * half]
        values = torch.cat([sums, values[..., 2 * half :]], dim=-1) if length % 2 else sums
    return values[..., 0]


def _exp2(values: Tensor) -> Tensor:
    """2^values, every number by the same operations, no less than 2^-126."""
    if values.is_cuda:
        return values.exp2()
    # On a CPU, torch.exp2 computes what a vector does not hold by another function, with other last bits.
    whole = values.round()
    rest = (values - whole).mul_(math.log(2.0))
    terms = 8 if values.dtype == torch.float32 else 14
    result = torch.full_like(values, 1.0 / math.factorial(terms))
    for power in reversed(range(terms)):
        result.mul_(rest).add_(1.0 / math.factorial(power))
    return result.mul_(_power_of_2(whole))


def _power_of_2(n: Tensor) -> Tensor:
    """2^n for whole numbers n ≤ 0, exactly; float32, no less than 2^-126."""
    return ((n.clamp(min=-126.0) + 127.0).to(torch.int32) << 23).view(torch.float32)


def _box(values: Tensor, dims: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Sums over a patch's taps, along all ``dims`` at once: the diagonal, where there are two."""

    def part(tensor: Tensor, first: int, count: int) -> Tensor:
        for dim in dims:
            tensor = tensor.narrow(dim, first * geometry.downsample, count)
        return tensor

    length = values.shape[dims[0]] - geometry.span + 1
    result, power, width, done, left = None, values, 1, 0, geometry.taps
    while left:
        if left % 2:
            piece = part(power, done, length)
            result = piece if result is None else result + piece
            done += width
        left //= 2
        if left:
            count = power.shape[dims[0]] - width * geometry.downsample
            power = part(power, 0, count) + part(power, width, count)
            width *= 2
    assert result is not None
    return result
