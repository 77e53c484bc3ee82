"""One run, readable from top to bottom: data → target model → queries → scores → evaluation → record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.configuration.protocol import Halves, ProtocolName
from attribench.configuration.resolution import Config, MethodConfig, typed
from attribench.data import AttributionDataModule, ImageSet
from attribench.errors import UsageError
from attribench.method import Queries
from attribench.metrics.ceiling import noise_ceiling
from attribench.metrics.comparison import ranks_over_subsets
from attribench.metrics.lds import linear_datamodeling_score, predict_outputs, undefined_queries
from attribench.metrics.resampling import Interval, lds_interval, published_bootstrap, standard_error
from attribench.records.choices import load_choice
from attribench.records.gallery import Gallery
from attribench.records.lds import (
    CeilingRecord,
    IntervalRecord,
    PublishedBootstrap,
    QuerySetResult,
    Record,
    row_name,
    save_record,
)
from attribench.registry import DATAMODULES
from attribench.settings import QUERY_SETS, Runtime
from attribench.store.artifacts import canonical, digest_text
from attribench.store.json_values import json_value
from attribench.truth.experiment import Experiment, GroundTruth
from attribench.workflows.checks import instances, without_refused
from attribench.workflows.scoring import Scoring, scorings


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
    """Run the benchmark: every method of ``config`` on both query sets; each record is filed under ``results``.

    Args:
        protocol: ``"strict"`` reports only on the queries and subsets that no options were chosen on.
        tuned: apply the options that ``attribench tune`` chose under the same protocol.

    Raises:
        AttribenchError: something in it failed; what is finished stays in the store and is used next time.
    """
    experiment = open_experiment(config, runtime, progress)
    chosen = (
        [apply_choice(method, experiment, config, results, protocol) for method in config.methods] if tuned else None
    )
    halves = experiment.halves if protocol == "strict" else None
    outcome = Outcome()
    methods = without_refused(instances(chosen or config.methods), experiment, outcome.skipped)
    if not methods:
        return outcome

    experiment.prepare()
    queries = {name: experiment.queries(name) for name in QUERY_SETS}
    ground_truths = {name: experiment.ground_truth(name) for name in QUERY_SETS}

    ceilings = {key: ceiling(restricted(ground_truths[key], key, halves)) for key in QUERY_SETS}

    for method_config, scoring in scorings(experiment, methods, outcome.skipped):
        scores = scoring.scores(queries)
        parts = {key: reported(scores[key], queries[key], ground_truths[key], halves) for key in QUERY_SETS}
        evaluated = {key: evaluate(*part, ceilings[key]) for key, part in parts.items()}
        tensors = {name: value for part in parts.values() for name, value in attached(*part, experiment.train).items()}
        record = make_record(config, experiment, method_config, evaluated, scoring, protocol)
        record, path = save_record(record, results, tensors, progress)
        progress.message(f"{scoring.name}: recorded in {path}")
        outcome.records.append(record)
    return outcome


def open_experiment(config: Config, runtime: Runtime, progress: Progress) -> Experiment:
    """Load the data and put it together with the setting.

    Raises:
        UsageError: the data set's label is another known data set's name, so their results would be mixed, or its
            options are such as no record can hold.
    """
    resolve_device(runtime.accelerator)  # a wrong --accelerator fails before any work
    recorded_data(config)
    data: AttributionDataModule = config.data_class(**config.data)
    if data.label != config.dataset and data.label in DATAMODULES.names():
        raise UsageError(f"This data set may not be called {data.label!r}: another data set is. Change its label.")
    return Experiment(data, config.settings, runtime, progress)


def apply_choice(
    method: MethodConfig, experiment: Experiment, config: Config, results: Path, protocol: ProtocolName
) -> MethodConfig:
    """The method with the options that were chosen for it under this protocol.

    Raises:
        UsageError: it was not tuned in this setting, or options were given by hand as well.
    """
    if method.changed:
        raise UsageError("--tuned applies chosen options: give no --method.OPTION beside it.")
    identity = setting_hash(experiment, config)
    choice = load_choice(results, experiment.label, config.preset, method.name, protocol, identity)
    options = typed(method.cls, "method", choice.options)
    return replace(method, name=f"{method.name} tuned", options=options, tuned_on=choice.tuned_on)


def reported(
    scores: Tensor, queries: Queries, truth: GroundTruth, halves: Halves | None
) -> tuple[Tensor, Queries, GroundTruth]:
    """What of scores and ground truth is reported: all of it, or the halves nothing was chosen on.

    Of generated queries, which no choice looks at, all are reported, on the reporting half of the subsets.
    """
    if halves is None:
        return scores, queries, truth
    index = _reported_queries(queries.name, len(queries), halves)
    part = Queries(queries.images[index], tuple(queries.ids[i] for i in index), queries.name)
    return scores[index], part, restricted(truth, queries.name, halves)


def restricted(truth: GroundTruth, query_set: str, halves: Halves | None) -> GroundTruth:
    """The part of a ground truth that is reported; see :func:`reported`."""
    if halves is None:
        return truth
    index, subsets = _reported_queries(query_set, truth.draws.shape[-1], halves), halves.reporting_subsets
    return GroundTruth(truth.masks[subsets], truth.draws[subsets][..., index], f"{truth.hash}/{subsets}")


def _reported_queries(query_set: str, count: int, halves: Halves) -> list[int]:
    return halves.reporting_queries if query_set == "validation" else list(range(count))


def ceiling(truth: GroundTruth) -> CeilingRecord | None:
    """The noise ceiling, from training seeds if there are several, else from noise draws; None if neither is."""
    _, seeds, draws, _ = truth.draws.shape
    if len(truth.masks) < 4 or max(seeds, draws) < 2:
        return None
    found = noise_ceiling(truth.losses if seeds > 1 else truth.draws[:, 0])
    if found is None:
        return None
    return CeilingRecord(
        lds=found.lds,
        interval=_interval(found.interval) if truth.draws.shape[-1] > 1 else None,
        replicates="training seeds" if seeds > 1 else "noise draws",
        num_replicates=seeds if seeds > 1 else draws,
        agreement=found.agreement,
    )


def attached(scores: Tensor, queries: Queries, truth: GroundTruth, train: ImageSet) -> dict[str, Tensor]:
    """What is filed beside a record for one query set; see :class:`attribench.records.lds.Record`."""
    return {
        f"{queries.name}.predictions": ranks_over_subsets(predict_outputs(scores, truth.masks)),
        f"{queries.name}.outputs": ranks_over_subsets(truth.outputs),
        **Gallery.of(queries, scores, train).tensors(f"{queries.name}.gallery"),
    }


def _interval(interval: Interval) -> IntervalRecord:
    return IntervalRecord(low=interval.low, high=interval.high, level=interval.level, resampled="queries and subsets")


def evaluate(
    scores: Tensor, queries: Queries, truth: GroundTruth, ceiling: CeilingRecord | None = None
) -> QuerySetResult:
    """The LDS of scores against a ground truth, with its intervals where there are several queries."""
    per_query = linear_datamodeling_score(scores, truth.masks, truth.outputs)
    predictions = predict_outputs(scores, truth.masks)
    mean, std = published_bootstrap(predictions, truth.outputs)
    return QuerySetResult(
        lds=per_query.mean().item(),
        interval=_interval(lds_interval(predictions, truth.outputs)) if len(queries) > 1 else None,
        published_bootstrap=PublishedBootstrap(mean=mean, std=std, num_resamples=64),
        standard_error=standard_error(per_query) if len(queries) > 1 else None,
        undefined_queries=int(undefined_queries(scores, truth.masks, truth.outputs).sum()),
        per_query=per_query.tolist(),
        query_ids=list(queries.ids),
        queries_hash=ImageSet(queries.images, queries.ids).content_hash,
        ground_truth_hash=truth.hash,
        ceiling=ceiling,
    )


def make_record(
    config: Config,
    experiment: Experiment,
    method: MethodConfig,
    results: dict[str, QuerySetResult],
    scoring: Scoring,
    protocol: ProtocolName,
) -> Record:
    """Put everything about one row together."""
    return Record(
        **setting_description(config, experiment),
        **method_description(method, scoring),
        overrides=json_value(config.overrides_without("counterfactual")),
        settings=config.settings.without("counterfactual"),
        setting_hash=setting_hash(experiment, config),
        protocol=protocol,
        results=results,
        cost=scoring.cost,
    )


def recorded_data(config: Config) -> dict[str, Any]:
    """The data set's options as records have them.

    Where data lies and whether it may be downloaded is this machine's affair; what it holds is in the hash.

    Raises:
        UsageError: one of them has no JSON form.
    """
    return {
        key: json_value(value, f"data.{key}") for key, value in config.data.items() if key not in ("root", "download")
    }


def setting_description(config: Config, experiment: Experiment) -> dict[str, Any]:
    """Fields of a :class:`~attribench.records.files.MethodRecord` that all rows of a table share."""
    return {
        "dataset": experiment.label,
        "preset": config.preset,
        "data": recorded_data(config),
        "num_train": len(experiment.train),
        "image_shape": list(experiment.train.image_shape),
        "train_hash": experiment.train.content_hash,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def method_description(method: MethodConfig, scoring: Scoring) -> dict[str, Any]:
    """Fields of a :class:`~attribench.records.files.MethodRecord` that describe a method and its scores."""
    return {
        "method": row_name(method.name, method.changed),
        "method_class": f"{method.cls.__module__}.{method.cls.__qualname__}",
        "options": json_value(method.options),
        "access": method.cls.access.name,
        "tuned_on": method.tuned_on,
        "versions": scoring.versions,
        "hardware": scoring.hardware,
    }


def setting_hash(experiment: Experiment, config: Config) -> str:
    """Identifies data and settings: what records of one table share, and what a choice of options is bound to."""
    hashes = [experiment.train.content_hash, experiment.validation.content_hash]
    return digest_text(canonical([*hashes, config.settings.without("counterfactual")]))[:32]
