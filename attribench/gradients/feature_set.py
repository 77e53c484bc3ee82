"""Features of many images, of which only some are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribench.store.shared import SharedStore


@dataclass(frozen=True)
class Origin:
    """Where features lie.

    Attributes:
        shared: the store.
        chunks: what identifies each chunk of them: the digests of what it is the sum of, and the number of terms.
    """

    shared: SharedStore
    chunks: list[tuple[list[str], int]]


class FeatureSet:
    """Features of some images, on disk; only what is iterated over is in memory.

    Attributes:
        num_samples: N.
        dimensions: D.
        origin: where they were found; None if they are in no store.
    """

    def __init__(
        self,
        loaders: Sequence[Callable[[], Tensor]],
        num_samples: int,
        dimensions: int,
        origin: Origin | None = None,
    ) -> None:
        self._loaders = loaders
        self.origin = origin
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
