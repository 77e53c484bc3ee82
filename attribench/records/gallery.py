"""The images behind a few scores: some queries with their strongest proponents and opponents, kept with a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attribench.data import ImageSet
from attribench.method import Queries

#: Queries that are kept of a query set, and train images of each, at either end of the ranking.
NUM_QUERIES, NUM_IMAGES = 6, 8


@dataclass(frozen=True, eq=False)
class Gallery:
    """Some queries of a query set and the train images a method ranked first and last.

    Args:
        queries: int64 ``(n,)``: which queries of the set.
        images: uint8 ``(n, C, H, W)``: the queries.
        indices: int64 ``(n, 2, k)``: the train images, strongest proponents first; then strongest opponents first.
        scores: ``(n, 2, k)``, float32 or float64 as they were given.
        train_images: uint8 ``(n, 2, k, C, H, W)``.
    """

    queries: Tensor
    images: Tensor
    indices: Tensor
    scores: Tensor
    train_images: Tensor

    @classmethod
    def of(cls, queries: Queries, scores: Tensor, train: ImageSet) -> Gallery:
        """Of the first queries of a set, with their scores ``(num_queries, num_train)``."""
        chosen = torch.arange(min(NUM_QUERIES, len(queries)))
        order = scores[chosen].argsort(dim=1, descending=True, stable=True)
        count = min(NUM_IMAGES, scores.shape[1])
        indices = torch.stack([order[:, :count], order.flip(1)[:, :count]], dim=1)
        picked = scores[chosen][:, None].expand(-1, 2, -1).gather(2, indices)
        return cls(chosen, queries.images[chosen], indices, picked, train.images[indices])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """To be stored; every name begins with ``prefix``."""
        return {f"{prefix}.{name}": value for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str) -> Gallery | None:
        """The inverse of :meth:`tensors`; None if there is none of this prefix."""
        if f"{prefix}.queries" not in tensors:
            return None
        return cls(**{name: tensors[f"{prefix}.{name}"] for name in cls.__dataclass_fields__})
