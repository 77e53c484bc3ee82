"""One run, readable from top to bottom: data → target model → queries → scores → evaluation → record."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from attribench.computing.progress import Progress
from attribench.configuration.options import typed
from attribench.configuration.protocol import ProtocolName
from attribench.configuration.resolution import Config, MethodConfig, after_changes
from attribench.records.choices import load_choice
from attribench.records.lds import Record, row_name, save_record
from attribench.settings import Runtime
from attribench.truth.experiment import Experiment
from attribench.workflows.checks import instances, without_refused
from attribench.workflows.evaluation import Evaluation
from attribench.workflows.opening import lds_description, method_description, open_experiment, setting_hash
from attribench.workflows.scoring import scorings
from attribench.workflows.tuning import is_tunable


@dataclass(frozen=True)
class Outcome:
    """What a run made.

    Attributes:
        records: one a method that ran.
        skipped: the reason of each method that could not run here, by name.
    """

    records: list[Record] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def run(
    config: Config,
    runtime: Runtime,
    results: Path,
    progress: Progress,
    *,
    protocol: ProtocolName = "standard",
    tuned: bool = False,
) -> Outcome:
    """Run the benchmark: every method of ``config`` on every query set; each record is filed under ``results``.

    Args:
        protocol: ``"strict"`` reports only on the queries and subsets that no options were chosen on; methods whose options
            were chosen on others too are skipped, unless ``tuned``.
        tuned: apply the options that ``attribench tune`` chose under the same protocol, but for those set by hand.

    Raises:
        AttribenchError: something in it failed; what is finished stays in the store and is used next time.
    """
    experiment = open_experiment(config, runtime, progress)
    chosen = (
        [apply_choice(method, experiment, config, results, protocol) for method in config.methods] if tuned else None
    )
    halves = experiment.halves if protocol == "strict" else None
    outcome = Outcome()
    configs = config.methods if chosen is None else chosen
    if protocol == "strict" and not tuned:
        configs = _without_chosen(configs, config, experiment.label, outcome.skipped)
    methods = without_refused(instances(configs), experiment, outcome.skipped)
    if not methods:
        return outcome

    experiment.prepare()
    parts = {name: Evaluation.reported(experiment, name, halves) for name in experiment.query_sets}
    queries = {name: part.asked for name, part in parts.items()}
    for method, scoring in scorings(experiment, methods, outcome.skipped):
        undefined = scoring.undefined_on(queries)
        defined = {name: asked for name, asked in queries.items() if name not in undefined}
        if not defined:
            outcome.skipped[scoring.name] = "; ".join(f"{name} queries: {why}" for name, why in undefined.items())
            continue
        scores = scoring.scores(defined)
        record = Record(
            **lds_description(config, experiment),
            **method_description(method, scoring),
            protocol=protocol,
            results={name: parts[name].evaluate(scores[name], by_band=True) for name in defined},
            undefined=undefined,
            cost=scoring.cost,
        )
        shown = experiment.train if config.files_images else None
        beside = [parts[name].attached(scores[name], shown) for name in defined]
        record, path = save_record(record, results, dict(ChainMap(*beside)), progress)
        progress.message(f"{scoring.name}: recorded in {path}")
        outcome.records.append(record)
    return outcome


def _without_chosen(
    methods: Sequence[MethodConfig], config: Config, dataset: str, skipped: dict[str, str]
) -> list[MethodConfig]:
    """The methods none of whose options were chosen on data; of the others the reason is put into ``skipped``."""
    for method in methods:
        if method.tuned_on:
            way = (
                f"Run: attribench tune --method {method.name} --dataset {dataset} --preset {config.preset} --protocol strict, "
                "then attribench run with --protocol strict --tuned."
                if is_tunable(method.cls)
                else "It cannot be tuned on its own; options that are all set by hand (--method.…) are reported."
            )
            skipped[row_name(method.name, method.changed)] = (
                f"its options were chosen on {method.tuned_on}; the strict protocol reports on some of these. {way}"
            )
    return [method for method in methods if not method.tuned_on]


def apply_choice(
    method: MethodConfig, experiment: Experiment, config: Config, results: Path, protocol: ProtocolName
) -> MethodConfig:
    """The method with the options that were chosen for it under this protocol; those set by hand stay as they are.

    Where there is nothing to tune, the method as it is.

    Raises:
        UsageError: it was not tuned in this setting.
    """
    if not is_tunable(method.cls):
        return method
    identity = setting_hash(experiment, config)
    choice = load_choice(results, experiment.label, config.preset, method.name, protocol, identity)
    by_hand = {name: method.options[name] for name in method.fixed}
    options = typed(method.cls, "method", {**choice.options, **by_hand})
    changed = {name: value for name, value in by_hand.items() if value != choice.options.get(name)}
    tuned_on = after_changes(choice.tuned_on, set(choice.options), changed)
    return replace(method, name=f"{method.name} tuned", options=options, changed=changed, tuned_on=tuned_on)
