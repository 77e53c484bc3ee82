"""Features of many images, of which only some are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class FeatureSet:
    """Features of some images, on disk; only what is iterated over is in memory.

    Attributes:
        num_samples: N.
        dimensions: D.
    """

    def __init__(self, loaders: Sequence[Callable[[], Tensor]], num_samples: int, dimensions: int) -> None:
        self._loaders = loaders
        self.num_samples, self.dimensions = num_samples, dimensions

    @classmethod
    def of(cls, chunks: Sequence[Tensor]) -> FeatureSet:
        """Take matrices ``(n, D)`` that are in memory already."""
        return cls([chunk.clone for chunk in chunks], sum(map(len, chunks)), chunks[0].shape[1])

    def blocks(self, max_bytes: int = 256 * 2**20) -> Iterator[Tensor]:
        """Iterate over float32 ``(n, D)`` on the CPU, in order: whole chunks, as many as ``max_bytes`` hold, or one."""
        held: list[Tensor] = []
        for loader in self._loaders:
            chunk = loader()
            if held and sum(part.nbytes for part in held) + chunk.nbytes > max_bytes:
                yield torch.cat(held)
                held = []
            held.append(chunk)
        if held:
            yield torch.cat(held) if len(held) > 1 else held[0]

    def load(self) -> Tensor:
        """All of it: float32 ``(N, D)``."""
        return torch.cat([loader() for loader in self._loaders])
