"""Where in the picture: a query's strongest train images with the regions and patches that make up their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attribench.computing.progress import Progress
from attribench.configuration.resolution import Config
from attribench.data import ImageSet
from attribench.errors import UsageError, nearest
from attribench.method import AttributionMethod, Queries, SpatialEvidence, score, start
from attribench.records.answers import Explained, Explanation
from attribench.records.files import safe
from attribench.records.lds import row_name
from attribench.settings import QUERY_SETS, Runtime
from attribench.workflows.checks import instances, require_early
from attribench.workflows.opening import open_experiment
from attribench.workflows.scoring import make_context, require, require_defined


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
    return with_evidence(query, indices, scores, method.explain(query, indices), train)


def with_evidence(
    query: Queries,
    indices: Sequence[int],
    scores: Sequence[float],
    evidence: Sequence[SpatialEvidence],
    train: ImageSet,
) -> Explanation:
    """The same where the evidence is at hand."""
    images = [
        Explained(rank, index, train.ids[index], train.images[index], value, shown)
        for rank, (index, value, shown) in enumerate(zip(indices, scores, evidence, strict=True), start=1)
    ]
    return Explanation(query.ids[0], query.images[0], images)


@dataclass(frozen=True, eq=False)
class ExplainedQuery:
    """A query of a data set explained.

    Attributes:
        method: the row's name.
        file_name: for what is written about it, without suffix.
        explanation: its strongest train images.
    """

    method: str
    file_name: str
    explanation: Explanation


def explain_query(
    config: Config, runtime: Runtime, query_set: str, query: str, top: int, progress: Progress
) -> ExplainedQuery:
    """Explain a query's ``top`` train images.

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
    experiment = open_experiment(config, runtime, progress)
    number = _number(query, query_set, experiment.query_ids(query_set))
    require_early([(method_config, method)], experiment)
    queries = experiment.queries(query_set)
    context = make_context(experiment, method, method_config)
    require(method, method_config.name, context)
    require_defined(method, method_config.name, queries)
    start(method, context)
    found = explain(method, queries[number : number + 1], min(top, len(experiment.train)))
    name = row_name(method_config.name, method_config.changed)
    return ExplainedQuery(name, f"{safe(experiment.label)}-{query_set}-{number}-{safe(name)}", found)


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
