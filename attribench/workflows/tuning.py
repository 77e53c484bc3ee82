"""Honest tuning: options are chosen on data that is named with every result, and never on what is reported.

Standard protocol: chosen on the validation queries with all subsets, applied unchanged to the generated ones; the numbers on
validation queries are then the chosen-on ones, and records say so. A method that is not defined on validation queries is
tuned on the generated ones, and records say that. Strict protocol: chosen on half of the validation queries and half of the
subsets, from options that were chosen on nothing, and reported on the other halves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attribench.computing.progress import Progress
from attribench.configuration.options import typed
from attribench.configuration.protocol import PROTOCOLS, ProtocolName
from attribench.configuration.resolution import Config, MethodConfig
from attribench.errors import UsageError
from attribench.method import AttributionMethod
from attribench.records.choices import Choice, Trial, save_choice
from attribench.settings import Runtime
from attribench.store.json_values import json_value
from attribench.truth.experiment import Experiment
from attribench.workflows.checks import check_grid, instances, require_early
from attribench.workflows.evaluation import Evaluation
from attribench.workflows.opening import open_experiment, setting_hash
from attribench.workflows.scoring import Scoring, make_context, require, require_defined


@dataclass(frozen=True)
class _Evaluator:
    """Gives the mean LDS of options on the choosing data; every score it computes stays in the store.

    Options that the caller set by hand keep their value, and what is then the same is evaluated once.
    """

    experiment: Experiment
    config: MethodConfig
    data: Evaluation
    trials: list[Trial]
    progress: Progress

    def __call__(self, options: Mapping[str, Any]) -> float:
        given = {name: value for name, value in options.items() if name not in self.config.held}
        values = typed(self.config.cls, "method", {**self.config.options, **given})
        for trial in self.trials:
            if trial.options == json_value(values):
                return trial.lds
        config = replace(self.config, options=values, changed=given)
        method = self._make(values, sorted(set(options) - set(given)))
        # Nor does a method learn from retrained models that the strict protocol reports.
        within, queries = self.data.subsets, self.data.queries
        context = make_context(self.experiment, method, config, within=within)
        require(method, self.config.name, context)
        scoring = Scoring.of(self.experiment, method, config, context, within)
        lds = self.data.mean_lds(scoring.scores({queries.name: queries})[queries.name])
        changed = {key: value for key, value in values.items() if value != self.config.options.get(key)}
        self.trials.append(Trial(options=json_value(values), lds=lds))
        self.progress.message(f"{self.config.name} {changed or 'as configured'}: LDS×100 {100 * lds:.1f}")
        return lds

    def _make(self, values: Mapping[str, Any], held: Sequence[str]) -> AttributionMethod:
        try:
            method: AttributionMethod = self.config.cls(**values)
        except UsageError as error:
            if not held:
                raise
            raise UsageError(
                f"{self.config.name} searches {held[0]} together with others; leave --method.{held[0]} away. ({error})"
            ) from error
        return method


def tune(
    config: Config, method: MethodConfig, runtime: Runtime, results: Path, protocol: ProtocolName, progress: Progress
) -> tuple[Choice, Path]:
    """Choose the options of one method by its own search, and file the choice.

    Retrains nothing: the ground truth and all scores come from the store once they are there. The search begins with what is
    configured and what was set by hand; under the strict protocol without the options that a data set's YAML says were chosen.

    Raises:
        UsageError: the method has nothing to tune, cannot run here, or is not defined on the queries that the protocol
            chooses on.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"Unknown --protocol {protocol!r}. Known: {', '.join(PROTOCOLS)}.")
    candidates = {
        name: method.options[name] if name in method.fixed else list(values)
        for name, values in method.cls.search_from.items()
    }
    # What was chosen on all queries and subsets was chosen on those that the strict protocol reports.
    method = replace(method, options=method.start(unchosen=protocol == "strict"))
    check_tunable(method)
    experiment = open_experiment(config, runtime, progress)
    require_early(instances([method]), experiment)
    if protocol == "strict":
        _ = experiment.halves  # too few to halve is known before any work
    instance = method.cls(**method.options)
    on_validation = instance.undefined_on(experiment.queries("validation"))
    if on_validation is not None and protocol == "strict":
        raise UsageError(
            f"The strict protocol chooses on validation queries, and {method.name} is not defined on them: {on_validation}"
        )
    experiment.prepare()
    if on_validation is None:
        data = _choosing(experiment, protocol)
    else:
        data = Evaluation.of(experiment, "generation")
        require_defined(instance, method.name, data.asked)
        progress.message(
            f"{method.name} is not defined on validation queries: its options are chosen on the generated ones."
        )
    evaluate = _Evaluator(experiment, method, data, [], progress)
    found = method.cls.search(evaluate, {**method.options, **candidates})
    chosen = {name: value for name, value in found.items() if name not in method.held}
    options = typed(method.cls, "method", {**method.options, **chosen})
    lds = evaluate(chosen)
    choice = Choice(
        dataset=experiment.label,
        preset=config.preset,
        method=method.name,
        protocol=protocol,
        setting_hash=setting_hash(experiment, config),
        options=json_value(options),
        lds=lds,
        query_set=data.queries.name,
        query_ids=list(data.queries.ids),
        subsets=experiment.halves.choosing_subsets if protocol == "strict" else list(range(len(data.truth.masks))),
        trials=evaluate.trials,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    return choice, save_choice(choice, results)


def check_tunable(method: MethodConfig) -> None:
    """Insist that there is something to choose, and that the method takes all of it.

    Raises:
        UsageError: there is not, or it does not.
    """
    if not is_tunable(method.cls):
        raise UsageError(f"{method.name} has nothing to tune: its class declares no search_space.")
    if not _searches_itself(method.cls):
        check_grid(method)


def is_tunable(cls: type[AttributionMethod]) -> bool:
    """Whether a method declares anything to choose."""
    return bool(cls.search_space) or _searches_itself(cls)


def _searches_itself(cls: type[AttributionMethod]) -> bool:
    return cls.search.__func__ is not AttributionMethod.search.__func__  # type: ignore[attr-defined]


def _choosing(experiment: Experiment, protocol: ProtocolName) -> Evaluation:
    """What options are chosen on: never what the same protocol reports as not chosen on."""
    if protocol == "standard":
        return Evaluation.of(experiment, "validation")
    halves = experiment.halves
    return Evaluation.of(experiment, "validation", halves.choosing_queries, halves.choosing_subsets)
