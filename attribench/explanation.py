"""Where in the picture: a query's strongest train images with the regions and patches that make up their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attribench.data import ImageSet
from attribench.method import AttributionMethod, Queries, SpatialEvidence, score


@dataclass(frozen=True, eq=False)
class Explained:
    """One train image in a query's ranking.

    Attributes:
        rank: from 1.
        index: number of the train image.
        image_id: its name.
        image: uint8 ``(C, H, W)``.
        score: what the method gave it.
        evidence: where the score comes from.
    """

    rank: int
    index: int
    image_id: str
    image: Tensor
    score: float
    evidence: SpatialEvidence


@dataclass(frozen=True, eq=False)
class Explanation:
    """A query and its strongest train images."""

    query_id: str
    query: Tensor
    images: list[Explained]

    def summary(self) -> dict[str, Any]:
        """Plain values to be written down: scores, maps and matches."""
        return {
            "query": self.query_id,
            "images": [
                {
                    "rank": item.rank,
                    "train": item.image_id,
                    "index": item.index,
                    "score": item.score,
                    "query_map": item.evidence.query_map.tolist(),
                    "train_map": item.evidence.train_map.tolist(),
                    "matches": [vars(match) for match in item.evidence.matches],
                }
                for item in self.images
            ],
        }


def explain(method: AttributionMethod, query: Queries, top: int) -> Explanation:
    """Explain the ``top`` highest scores of one query by a method that has been started.

    Raises:
        UsageError: the method has no spatial evidence.
    """
    train = method.context.train
    scores = score(method, query)[0]
    indices = scores.argsort(descending=True, stable=True)[:top].tolist()
    return explained(method, query, indices, scores[indices].tolist(), train)


def explained(
    method: AttributionMethod, query: Queries, indices: Sequence[int], scores: Sequence[float], train: ImageSet
) -> Explanation:
    """The same for train images whose scores are known, the first one ranked 1."""
    found = method.explain(query, indices)
    images = [
        Explained(rank, index, train.ids[index], train.images[index], value, evidence)
        for rank, (index, value, evidence) in enumerate(zip(indices, scores, found, strict=True), start=1)
    ]
    return Explanation(query.ids[0], query.images[0], images)


def to_rgb(image: Tensor) -> Tensor:
    """uint8 ``(C, H, W)`` as ``(H, W, 3)``, grey repeated."""
    return (image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]).permute(1, 2, 0).to(torch.uint8)
