"""How much of what models lose on queries is due to which images they were trained on: from a ground truth alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from attribench.computing.progress import Progress
from attribench.configuration.resolution import Config
from attribench.data import AttributionDataModule
from attribench.data.fewer import Fewer
from attribench.errors import UsageError
from attribench.metrics.resampling import Interval
from attribench.metrics.variance import attributability
from attribench.records.attributability import AttributabilityPoint, AttributabilityRecord, AttributabilityResult
from attribench.records.lds import IntervalRecord
from attribench.settings import Runtime
from attribench.store.json_values import json_value
from attribench.truth.experiment import Experiment
from attribench.workflows.evaluation import Evaluation, ceiling
from attribench.workflows.opening import open_experiment, recorded_data
from attribench.workflows.scoring import versions

#: The fewest subsets that variance between them is estimated from.
_FEWEST = 4


def measure(config: Config, runtime: Runtime, progress: Progress) -> AttributabilityRecord:
    """Of a setting's ground truth, retrained where it is not there: all of it, and the halves of the strict protocol.

    Raises:
        UsageError: there is one training seed a subset, or fewer than four subsets.
    """
    experiment = open_experiment(config, runtime, progress)
    _check(config, experiment)
    experiment.prepare()
    results = []
    for name in experiment.query_sets:
        results.append(_result(Evaluation.reported(experiment, name), "standard"))
        if len(experiment.masks) >= 2 * _FEWEST and len(experiment.validation) > 1:
            results.append(_result(Evaluation.reported(experiment, name, experiment.halves), "strict"))
    point = AttributabilityPoint(
        num_train=len(experiment.train), train_hash=experiment.train.content_hash, results=results
    )
    return _record(config, experiment, [point])


def series(config: Config, sizes: Sequence[int], runtime: Runtime, progress: Progress) -> AttributabilityRecord:
    """The same on the validation queries, with several numbers of train images; each size retrains all models.

    The sizes are nested: the images of a smaller one are among those of a larger one. Queries, subsets and seeds a size, and
    epochs are the setting's.

    Raises:
        UsageError: sizes that are not there, fewer than two of them, a ground truth that was made elsewhere, or as above.
    """
    if config.ground_truth:
        raise UsageError("--sizes retrains all models: it takes no --ground-truth.")
    sizes = sorted(set(sizes))
    if len(sizes) < 2:
        raise UsageError("--sizes needs two sizes or more, as --sizes '[125, 250, 500]'.")
    whole: AttributionDataModule = config.data_class(**config.data)
    parts = [Fewer(whole, size) for size in sizes]
    points = []
    experiments = [Experiment(data, config.settings, runtime, progress) for data in parts]
    _check(config, experiments[0])
    truth = config.settings.ground_truth
    progress.message(f"{truth.num_subsets * truth.num_seeds} models for each of {len(sizes)} sizes are needed.")
    for experiment in experiments:
        count = len(experiment.train)
        models = [job for jobs in experiment.retrainings for job in jobs]
        losses = len(truth.timesteps) * truth.num_noise_draws * len(models) * len(experiment.validation)
        with progress.task(f"{count} train images", sum(job.cost for job in models) + losses) as task:
            experiment.train_only(models, task)
            experiment.measure_losses("validation", task)
        found = _result(Evaluation.reported(experiment, "validation"), "standard")
        points.append(AttributabilityPoint(num_train=count, train_hash=experiment.train.content_hash, results=[found]))
        progress.message(f"{count} train images: {found.text}")
    return _record(config, experiments[0], points)


def _check(config: Config, experiment: Experiment) -> None:
    """Refuse, before anything is trained, what cannot be told."""
    truth = config.settings.ground_truth
    subsets, seeds = truth.num_subsets, truth.num_seeds
    if experiment.bundle is not None:
        subsets, seeds, _ = experiment.ground_truth(experiment.query_sets[0]).losses.shape
    if seeds < 2:
        how = "use one with more" if experiment.bundle else "add --ground_truth.num_seeds 2"
        raise UsageError(
            "This ground truth has one training seed a subset: what is due to the images cannot be told from what is due to "
            f"the seed, whatever the number of noise draws; {how}."
        )
    if subsets < _FEWEST:
        raise UsageError(f"Variance between subsets needs at least {_FEWEST} of them; there are {subsets}.")


def _result(part: Evaluation, protocol: Literal["standard", "strict"]) -> AttributabilityResult:
    truth = part.truth
    found = attributability(truth.losses)
    subsets, seeds, _ = truth.losses.shape
    return AttributabilityResult(
        query_set=part.queries.name,
        protocol=protocol,
        ground_truth_hash=truth.hash,
        num_subsets=subsets,
        num_seeds=seeds,
        query_ids=list(part.queries.ids),
        share=found.share,
        interval=_interval(found.interval),
        per_query=found.per_query.tolist(),
        p_values=found.p_values.tolist(),
        found=found.found(),
        responding=found.responding,
        responding_interval=_interval(found.responding_interval),
        ceiling=ceiling(truth),
    )


def _interval(interval: Interval) -> IntervalRecord:
    return IntervalRecord(low=interval.low, high=interval.high, level=interval.level, resampled="queries and subsets")


def _record(config: Config, experiment: Experiment, points: list[AttributabilityPoint]) -> AttributabilityRecord:
    return AttributabilityRecord(
        dataset=experiment.label,
        preset=config.preset,
        overrides=json_value(config.overrides_without("counterfactual")),
        settings=config.settings.without("counterfactual"),
        data=recorded_data(config),
        ground_truth=experiment.bundle.header.name if experiment.bundle else "",
        points=points,
        versions=versions(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
