"""How an option moves the LDS: one option varied, another one a series of curves, everything else fixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attribench.computing.progress import Progress
from attribench.configuration.options import typed
from attribench.configuration.resolution import Config, MethodConfig
from attribench.errors import UsageError
from attribench.records.files import save_file
from attribench.records.lds import MeasuredLDS
from attribench.records.sweep import Point, SweepRecord
from attribench.settings import Runtime
from attribench.store.json_values import json_value
from attribench.workflows.checks import instances, require_early
from attribench.workflows.evaluation import Evaluation
from attribench.workflows.opening import lds_description, method_description, open_experiment
from attribench.workflows.scoring import Scoring, make_context, require


@dataclass(frozen=True)
class Axis:
    """An option and the values it takes."""

    option: str
    values: list[Any]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read ``option=[value, value, ...]``, values in YAML.

        Raises:
            UsageError: it is something else.
        """
        import yaml

        option, equals, values = text.partition("=")
        try:
            found = yaml.safe_load(values)
        except yaml.YAMLError:
            found = None
        if not (option and equals and isinstance(found, list) and found):
            raise UsageError(f"{text!r}: a list of values is needed, as in patch_size=[3, 5, 7].")
        return cls(option.strip(), found)


def sweep(
    config: Config,
    runtime: Runtime,
    results: Path,
    progress: Progress,
    vary: Axis,
    series: Axis | None = None,
) -> tuple[SweepRecord, Path]:
    """Measure the LDS of one method, on the query sets it is defined on, at every combination, and file the record.

    Nothing is chosen by it, and nothing retrained. Scores stay in the store, so that a longer sweep adds to a shorter one.

    Raises:
        UsageError: not exactly one method, an unknown option, a value that the method refuses, or no query set that it is
            defined on.
    """
    if len(config.methods) != 1:
        raise UsageError("A sweep is of one --method.")
    (base,) = config.methods
    if series is not None and series.option == vary.option:
        raise UsageError(f"{vary.option} cannot be varied and tell the curves apart at once.")
    combinations = [(value, other) for other in (series.values if series else [None]) for value in vary.values]
    configs = [_changed(base, vary, value, series, other) for value, other in combinations]
    methods = instances(configs)
    experiment = open_experiment(config, runtime, progress)
    require_early(methods, experiment)
    experiment.prepare()
    parts = {name: Evaluation.reported(experiment, name) for name in experiment.query_sets}
    queries = {name: part.asked for name, part in parts.items()}
    points = []
    undefined: dict[str, str] = {}
    scoring = None
    with progress.task(f"{base.name}: {len(configs)} combinations", len(configs)) as task:
        for (value, other), (item, method) in zip(combinations, methods, strict=True):
            context = make_context(experiment, method, item)
            require(method, base.name, context)
            scoring = Scoring.of(experiment, method, item, context)
            missing = scoring.undefined_on(queries)
            defined = {name: asked for name, asked in queries.items() if name not in missing}
            if not defined:
                raise UsageError(f"{base.name} cannot run here: {'; '.join(missing.values())}")
            undefined |= missing
            scores = scoring.scores(defined)
            found = {name: parts[name].evaluate(scores[name]) for name in defined}
            points.append(
                Point(
                    value=json_value(value),
                    series=json_value(other),
                    results={name: MeasuredLDS(lds=r.lds, interval=r.interval) for name, r in found.items()},
                    cost=scoring.cost,
                )
            )
            task.advance()
    assert scoring is not None
    record = SweepRecord(
        **lds_description(config, experiment),
        **method_description(base, scoring),
        vary=vary.option,
        series_option=series.option if series else "",
        points=points,
        num_queries={
            name: len(part.queries) for name, part in parts.items() if any(name in point.results for point in points)
        },
        ground_truth_hashes={name: part.truth.hash for name, part in parts.items()},
        undefined=undefined,
    )
    return save_file(record, results, progress=progress)


def _changed(base: MethodConfig, vary: Axis, value: Any, series: Axis | None, other: Any) -> MethodConfig:
    changes = {vary.option: value, **({series.option: other} if series else {})}
    options = typed(base.cls, "method", {**base.options, **changes})
    return replace(base, options=options, changed={**base.changed, **{name: options[name] for name in changes}})
