"""``attribench explain``: one query of a data set, explained by a method that knows where its scores come from."""

from __future__ import annotations

import json
from pathlib import Path

from attribench.artifacts import atomic_write
from attribench.benchmark import open_experiment
from attribench.configuration import Config
from attribench.errors import UsageError, nearest
from attribench.explanation import Explanation, explain
from attribench.method import Queries, start
from attribench.progress import terminal_progress
from attribench.record_files import safe
from attribench.records import row_name
from attribench.scoring import make_context
from attribench.settings import QUERY_SETS, Runtime


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
    method = method_config.cls(**method_config.options)
    experiment = open_experiment(config, runtime, terminal_progress())
    queries = experiment.queries(query_set)
    number = _number(query, queries)
    context = make_context(experiment, method, method_config)
    reason = method.skip_reason(context)
    if reason is not None:
        raise UsageError(f"{method_config.name} cannot run here: {reason}")
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


def _number(query: str, queries: Queries) -> int:
    if query in queries.ids:
        return queries.ids.index(query)
    if query.isdecimal() and int(query) < len(queries):
        return int(query)
    raise UsageError(
        f"There is no query {query!r} in {queries.name}: a number from 0 to {len(queries) - 1}, or an id such as "
        f"{queries.ids[0]!r}."
    )
