"""What is answered about queries: rankings of train images, with the regions that their scores come from."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attribench.data import ImageSet
from attribench.method import SpatialEvidence
from attribench.records.judgement import Judgement
from attribench.store.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True, eq=False)
class Attributed:
    """The answer.

    Attributes:
        method: the row's name.
        options: the method's.
        train: the train images.
        queries: the images explained.
        scores: ``(num_queries, num_train)``; higher = stronger proponent.
        rankings: of each query, its strongest train images.
        model: the model that was looked at, in a line; empty if none was.
        skipped: pictures left out, with the reason, of both folders.
        others: files that are no pictures, of both folders.
        judgement: what stands out from decoys, if there were any.
    """

    method: str
    options: dict[str, Any]
    train: ImageSet
    queries: ImageSet
    scores: Tensor
    rankings: list[Ranking]
    model: str = ""
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)
    judgement: Judgement | None = None


@dataclass(frozen=True, eq=False)
class Ranking:
    """A query's strongest train images.

    Attributes:
        indices: of the train images, the strongest first.
        scores: theirs.
        explanation: where they come from, for the first ones; None if the method does not know.
    """

    indices: list[int]
    scores: list[float]
    explanation: Explanation | None = None


def score_table(result: Attributed) -> pd.DataFrame:
    """A table with columns ``query``, ``train``, ``rank`` from 1, ``score``.

    With decoys also ``p_value``, ``adjusted`` (by Benjamini and Hochberg over the train images) and ``stands_out``.
    """
    import pandas as pd

    rows = [
        (query, result.train.ids[index], rank, score)
        for query, ranking in zip(result.queries.ids, result.rankings, strict=True)
        for rank, (index, score) in enumerate(zip(ranking.indices, ranking.scores, strict=True), start=1)
    ]
    table = pd.DataFrame(rows, columns=["query", "train", "rank", "score"])
    table = table.astype({"rank": "int64", "score": "float64"})
    if result.judgement is not None:
        places = [(query, index) for query, ranking in enumerate(result.rankings) for index in ranking.indices]
        rows_of, columns_of = zip(*places, strict=True)
        table["p_value"] = result.judgement.p_values[list(rows_of), list(columns_of)].numpy()
        table["adjusted"] = result.judgement.adjusted[list(rows_of), list(columns_of)].numpy()
        table["stands_out"] = table["adjusted"] <= result.judgement.rate
    return table


def save_scores(result: Attributed, path: Path) -> None:
    """Write :func:`score_table` as a Parquet file."""
    buffer = io.BytesIO()
    score_table(result).to_parquet(buffer, index=False)
    atomic_write(path, buffer.getvalue())
