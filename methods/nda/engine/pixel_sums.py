"""What each train image gives to a position of the query, not cut off at the k largest: Σ_q w, and Σ_q w y(q) of pixels.

Two engines: :class:`CompiledSums` on the CPU; :class:`TorchSums` in torch operations, for GPUs, and as the readable reference.
Both give :class:`PartialInfluence` with blocks whose ``sums`` are ``(num_images, 1 + C, positions)``: the sum of weights, then
that of weighted pixels, a channel each; pixels in [-1, 1], that in the middle of the patch. Tasks are of full resolution and
odd patch size; their ``top_k`` has no effect.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from attribench.methods.nda.engine._pixel_sums import pixel_sums
from attribench.methods.nda.engine.compiled import GROUPS_PER_UNIT, THRESHOLD, Engine, _Query, _Unit
from attribench.methods.nda.engine.layout import TrainLayout, needs_float64
from attribench.methods.nda.engine.partial import Block, Normaliser, PartialInfluence
from attribench.methods.nda.engine.torch_engine import TorchEngine, candidates
from attribench.methods.nda.task import PatchTask


class CompiledSums(Engine):
    """On the CPU, compiled by numba.

    Args:
        threads: how many threads compute; None for all cores this process may use. Sums do not depend on it.
        cut: candidates whose logit is further below the best one of all images, in units of ln 2, count as none; at most 120.
    """

    def __init__(self, threads: int | None = None, cut: float = THRESHOLD) -> None:
        super().__init__(threads)
        self.cut = cut

    def _sums_of_image(self, query: _Query) -> tuple[int, ...]:
        return 1 + query.shape.channels, *super()._sums_of_image(query)

    def _compute(self, unit: _Unit, train: TrainLayout, sums: bool) -> None:
        query, shape = unit.query, unit.query.shape
        lanes, space = train.lanes(shape), self._work_space(shape)
        groups = min(GROUPS_PER_UNIT, lanes.groups - unit.first)
        unit.peak = query.best()
        found = np.empty((groups * shape.lanes, *self._sums_of_image(query)), np.float32) if not sums else unit.sums
        pixel_sums(
            query.x, lanes.maps, lanes.rows, lanes.edges, shape.numbers(), shape.dtype.type(query.beta), float(self.cut),
            unit.first, groups, unit.peak, found, np.empty((groups, len(unit.peak))), space.column_sums, space.products,
            np.empty(shape.row_stride + 2 * shape.width, shape.dtype),
            np.empty(shape.geometry.grid[1] * (1 + shape.channels) * shape.width, shape.dtype),
            space.at_x, space.at_y, space.mask, space.scratch,
        )  # fmt: skip
        unit.total = found[:, 0].sum(0, dtype=np.float64)


class TorchSums(TorchEngine):
    """In torch operations, on any device torch has; nothing is cut off.

    In float64, sums as well, if the images or the query are, or if weights are too sharp for float32.

    Args:
        device: where to compute.
        memory_limit: see :class:`TorchEngine`.
    """

    def _partial(self, task: PatchTask, train: TrainLayout, start: int, sums: bool) -> PartialInfluence:
        geometry, channels = task.geometry, train.images.shape[1]
        wide = torch.float64 in (train.images.dtype, task.noisy_query.dtype)
        double = wide or needs_float64(geometry, channels, task.alpha_bar)
        dtype = torch.float64 if double else torch.float32
        inside = max(0, geometry.height - task.patch_size + 1) * max(0, geometry.width - task.patch_size + 1)
        per_image = 4 * (inside**2 + task.num_positions * (geometry.height + geometry.width)) * dtype.itemsize
        chunk = max(1, self.memory_limit // per_image)
        normaliser, blocks = Normaliser.empty(task.num_positions), []
        for first in range(0, len(train), chunk):
            images = train.unit_range(slice(first, first + chunk)).to(self.device, dtype)
            peak = torch.full((task.num_positions,), -math.inf, dtype=torch.float64, device=self.device)
            kept = torch.zeros((len(images), 1 + channels, task.num_positions), dtype=dtype, device=self.device)
            for part in candidates(task, images):
                reference = part.logits.amax((0, 2)).floor()
                peak[part.positions] = reference.to(torch.float64)
                weights = torch.exp2(part.logits - reference[:, None])
                kept[:, 0, part.positions] = weights.sum(2)
                for channel in range(channels):
                    pixels = images[:, channel].flatten(1)[:, part.partners]
                    kept[:, 1 + channel, part.positions] = (weights * pixels).sum(2)
            found, top = kept.cpu().numpy(), peak.cpu().numpy()
            normaliser = normaliser.with_total(top, found[:, 0].sum(0, dtype=np.float64))
            if sums:
                blocks.append(Block(start + first, found, top))
        return PartialInfluence(normaliser, tuple(blocks))


def warm_up() -> None:
    """Compile the kernel, or load it from the disk's cache."""
    for dtype in (torch.float32, torch.float64):
        task = PatchTask(torch.zeros(1, 2, 2, dtype=dtype), 0.5, 1, 1)
        CompiledSums(1).partial(task, TrainLayout(torch.zeros(1, 1, 2, 2, dtype=dtype)))
