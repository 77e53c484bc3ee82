"""The k best candidates of every position of a query in a train image: what a score adds up, with its places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attribench.methods.nda.engine._simd import BYTES
from attribench.methods.nda.engine._tracing import best_candidates
from attribench.methods.nda.engine.partial import NEGLIGIBLE, Normaliser
from attribench.methods.nda.task import PatchTask

#: Below 2^-53 of a sum, a weight does not show in float64.
_BITS = 53


@dataclass(frozen=True, eq=False)
class Traced:
    """Some positions of a query and their best candidates in a train image.

    Args:
        positions: where they stand in the grid of positions, flat.
        logits: float64 ``(positions, k)``, in units of ln 2, in no order; −∞ where there are fewer than k.
        partners: int32, likewise: the candidates' positions in the train image, flat.
    """

    positions: slice
    logits: NDArray[np.float64]
    partners: NDArray[np.int32]


class Tracer:
    """Finds the candidates that a task's scores are made of.

    Args:
        task: the query, timestep and scale.
        normaliser: of all train images; candidates too weak to show in any score are left out.
        memory_limit: bytes that a block of positions and what is computed of it may take; met as far as one row allows.
    """

    def __init__(self, task: PatchTask, normaliser: Normaliser, memory_limit: int) -> None:
        self._geometry, noise = task.geometry, 1.0 - task.alpha_bar
        geometry, width = self._geometry, BYTES // 8
        self._rows, self._columns = geometry.grid
        inside = [max(0, size - task.patch_size + 1) for size in (geometry.height, geometry.width)]
        self._k = min(task.top_k, max(1, inside[0] * inside[1]))
        self._floor = normaliser.peak - (NEGLIGIBLE + math.ceil(math.log2(self._k)) + _BITS)
        # Logits, weights, their shares and their logarithms, and partners as int32 and int64.
        self._rows_at_once = max(1, memory_limit // (self._columns * self._k * (4 * 8 + 4 + 8)))
        self._beta = task.alpha_bar / (2.0 * noise * math.log(2.0))
        scale = math.sqrt(task.alpha_bar) / (noise * math.log(2.0))
        query = geometry.maps(task.noisy_query.detach().to("cpu", torch.float64) * scale)
        channels, height, map_width = query.shape
        stride, step, first = -(-map_width // (4 * width)) * 4 * width, geometry.downsample, geometry.padding
        self._x = F.pad(torch.stack([query, -query]), [0, step]).flatten().numpy()
        #: Channels, height, width and stride of maps, columns of positions, those inside the image (first row, end, first
        #: column, end), distance of a patch's entries, their number along an axis, and k.
        self.shape = (
            channels, height, map_width, stride, self._columns, first, first + inside[0], first, first + inside[1], step,
            geometry.taps, self._k,
        )  # fmt: skip

    def blocks(self, image: Tensor) -> Iterator[Traced]:
        """The best candidates in a train image, float64 ``(C, height, width)`` in [-1, 1], rows by rows of positions."""
        channels, _, map_width, stride, *_ = self.shape
        maps, width = self._geometry.maps(image), BYTES // 8
        energy = F.pad(self._geometry.box_sum(maps.square().sum(0)).flatten() * self._beta, [0, width]).numpy()
        y = F.pad(maps, [0, stride - map_width]).flatten().numpy()
        sums, products = np.zeros((map_width + 2) * stride), np.zeros(2 * self._columns + 2 * width)
        indices = np.zeros((2, channels * max(2, self._geometry.taps)), np.int64)
        for first in range(0, self._rows, self._rows_at_once):
            end = min(first + self._rows_at_once, self._rows)
            positions = slice(first * self._columns, end * self._columns)
            size = positions.stop - positions.start
            logits, partners = np.full(size * self._k, -np.inf), np.zeros(size * self._k, np.int32)
            best_candidates(
                self._x, y, energy, self.shape, first, end, self._floor[positions].copy(), np.zeros(size, np.int64),
                logits, partners, sums, products, *indices,
            )  # fmt: skip
            yield Traced(positions, logits.reshape(size, self._k), partners.reshape(size, self._k))
