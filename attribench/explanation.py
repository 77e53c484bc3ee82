"""Where in the picture: a query's strongest train images with the regions and patches that make up their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribench.artifacts import atomic_write
from attribench.benchmark import open_experiment
from attribench.checks import instances, require_early
from attribench.configuration import Config
from attribench.data import ImageSet
from attribench.errors import UsageError, nearest
from attribench.method import AttributionMethod, Queries, SpatialEvidence, score, start
from attribench.progress import terminal_progress
from attribench.record_files import safe
from attribench.records import row_name
from attribench.scoring import make_context, require
from attribench.settings import QUERY_SETS, Runtime


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


def explain_query(
    config: Config, runtime: Runtime, query_set: str, query: str, top: int, out: Path
) -> tuple[Explanation, list[Path]]:
    """Explain a query's ``top`` train images; a figure (SVG, PNG) and the maps (JSON) are written into ``out``.

    Raises:
        UsageError: no such query, more than one method, or one without spatial evidence.
    """
    if len(config.methods) != 1:
        raise UsageError("attribench explain takes one --method.")
    if query_set not in QUERY_SETS:
        raise UsageError(
            f"Unknown --query_set {query_set!r}.{nearest(query_set, QUERY_SETS)} Known: {', '.join(QUERY_SETS)}."
        )
    if top < 1:
        raise UsageError("--top must be at least 1.")
    (method_config,) = config.methods
    ((_, method),) = instances(config.methods)
    if not knows_where(method):
        raise UsageError(f"{method_config.name} compares images as a whole: it has no evidence by region to show.")
    experiment = open_experiment(config, runtime, terminal_progress())
    number = _number(query, query_set, experiment.query_ids(query_set))
    require_early([(method_config, method)], experiment)
    queries = experiment.queries(query_set)
    context = make_context(experiment, method, method_config)
    require(method, method_config.name, context)
    start(method, context)
    found = explain(method, queries[number : number + 1], min(top, len(experiment.train)))

    from attribench.reporting.pictures import explanation
    from attribench.reporting.style import save

    name = row_name(method_config.name, method_config.changed)
    stem = out / f"{safe(experiment.label)}-{query_set}-{number}-{safe(name)}"
    paths = save(explanation(found, name), stem)
    maps = stem.with_name(f"{stem.name}.json")
    atomic_write(maps, (json.dumps({"method": name, **found.summary()}, ensure_ascii=False) + "\n").encode())
    return found, [*paths, maps]


def knows_where(method: AttributionMethod) -> bool:
    """Whether a method has spatial evidence."""
    return type(method).explain is not AttributionMethod.explain


def _number(query: str, query_set: str, ids: Sequence[str]) -> int:
    if query in ids:
        return ids.index(query)
    if query.isdecimal() and int(query) < len(ids):
        return int(query)
    raise UsageError(
        f"There is no query {query!r} in {query_set}: a number from 0 to {len(ids) - 1}, or an id such as {ids[0]!r}."
    )
