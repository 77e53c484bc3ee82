"""One grouped removal, readable from top to bottom: queries in groups → scores → removals → retraining → distances → record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.computing.seeding import derive_seed
from attribench.configuration.resolution import Config, MethodConfig
from attribench.method import Access
from attribench.metrics.removals import group_scores
from attribench.records.files import save_file
from attribench.records.lds import row_name
from attribench.records.removals import CONTROL, KNOWN, RANDOM, Distances, RemovalRecord
from attribench.settings import RemovalSettings, Runtime
from attribench.store.files import canonical, digest_text
from attribench.store.json_values import json_value
from attribench.truth.jobs import TrainJob, save_images
from attribench.workflows.checks import Method, instances, without_refused
from attribench.workflows.counterfactual import Clip
from attribench.workflows.distances import Rulers
from attribench.workflows.opening import method_description, setting_description
from attribench.workflows.removal_questions import Question, pose
from attribench.workflows.scoring import Scoring, chosen_scores, hardware, scorings, versions


@dataclass(frozen=True)
class Outcome:
    """What an evaluation made.

    Attributes:
        records: the control's, that of random removal, that of what is known to be right where something is, then one a
            method that ran.
        skipped: the reason of each method that could not run here, by name.
    """

    records: list[RemovalRecord]
    skipped: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Row:
    """What a row removes.

    Attributes:
        order: train images in order of removal, int64 ``(num_groups, num_seeds, largest size)``; None for the control.
    """

    kind: Literal["control", "random", "known", "method"]
    name: str
    order: Tensor | None = None
    method: MethodConfig | None = None
    scoring: Scoring | None = None


def run(
    config: Config,
    settings: RemovalSettings,
    runtime: Runtime,
    results: Path,
    progress: Progress,
    clip: Clip | None = None,
) -> Outcome:
    """Remove what each method ranks first for groups of queries, retrain, measure; each record is filed under ``results``.

    Retrainings are shared where two rows remove the same images, and resume like all retraining.

    Raises:
        UsageError: fewer queries or train images than the settings ask for.
        AttribenchError: something in it failed; what is finished stays in the store and is used next time.
    """
    rulers = Rulers(clip or Clip())
    made = retrain(config, settings, runtime, progress, rulers.look_at)
    question = made.question
    for name, reason in rulers.missing.items():
        progress.message(f"There is no {name}: {reason}")
    records = []
    for row, trained in zip(made.rows, made.jobs, strict=True):
        values = {name: rulers.measure(name, trained, question) for name in rulers.names}
        record, path = _file(row, values, question, settings, config, rulers.missing, results)
        progress.message(f"{row.name}: recorded in {path}")
        records.append(record)
    return Outcome(records, made.skipped)


@dataclass(frozen=True, eq=False)
class _Made:
    """What there is to measure once everything is retrained."""

    question: Question
    rows: list[_Row]
    jobs: list[list[list[list[TrainJob]]]]
    skipped: dict[str, str]


def retrain(
    config: Config,
    settings: RemovalSettings,
    runtime: Runtime,
    progress: Progress,
    look_at: Callable[[Question], None] = lambda question: None,
) -> _Made:
    """All of :func:`run` that is expensive: it ends up in the store, and several processes may share it.

    Args:
        look_at: called with the question before anything is trained.
    """
    methods = instances(config.methods)
    question = pose(config, settings, runtime, progress)
    look_at(question)  # what is wrong with the embedding is known before anything is trained
    experiment, skipped = question.experiment, dict[str, str]()
    rest = without_refused(methods, experiment, skipped)
    if settings.asked == "copies":
        # Nothing is retrained on subsets of this train set, which is made for the question.
        reason = "it is given retrained models, and of a train set with copies there are none."
        given = [config for config, method in rest if method.access >= Access.RETRAINED]
        skipped |= {row_name(config.name, config.changed): reason for config in given}
        rest = [(config, method) for config, method in rest if method.access < Access.RETRAINED]
    if not question.generated:
        _provide_target(question, rest)
    rows = [_Row("control", CONTROL), _random(question, settings)]
    if question.known is not None:
        rows.append(_Row("known", KNOWN, _order(question.known, question, settings)))
    for method_config, scoring in scorings(experiment, rest, skipped):
        if undefined := scoring.undefined_on({question.queries.name: question.queries}):
            skipped[scoring.name] = undefined[question.queries.name]
            continue
        scores = chosen_scores(scoring, question.queries, question.chosen)
        rows.append(_Row("method", scoring.name, _order(scores, question, settings), method_config, scoring))
    jobs = [_jobs(row, question, settings) for row in rows]
    _retrain(jobs, question, progress)
    return _Made(question, rows, jobs, skipped)


def training_seeds(root: int, count: int) -> list[int]:
    """The retrainings' seeds: those of the counterfactual's control, whose models are the same."""
    return [derive_seed(root, "training", "counterfactual", number) for number in range(count)]


def _provide_target(question: Question, methods: Sequence[Method]) -> None:
    """The target model, where a method looks at it."""
    experiment = question.experiment
    if all(method.access < Access.MODEL for _, method in methods):
        return
    if experiment.bundle is not None:
        experiment.prepare()
        return
    with experiment.progress.task(f"{experiment.label}: target model", experiment.target.cost) as task:
        experiment.train_only([experiment.target], task)


def _order(scores: Tensor, question: Question, settings: RemovalSettings) -> Tensor:
    """The strongest train images of each group, the same for every seed; ties by number."""
    ranked = group_scores(scores, question.groups).argsort(dim=1, descending=True, stable=True)
    return ranked[:, None, : question.sizes[-1]].expand(-1, settings.num_seeds, -1)


def _random(question: Question, settings: RemovalSettings) -> _Row:
    """Other images for every group and seed; of a smaller number the first ones."""
    generator = torch.Generator().manual_seed(derive_seed(0, "removals", "random"))
    count = len(question.experiment.train)
    order = [
        [torch.randperm(count, generator=generator)[: question.sizes[-1]] for _ in range(settings.num_seeds)]
        for _ in question.names
    ]
    return _Row("random", RANDOM, torch.stack([torch.stack(group) for group in order]))


def _jobs(row: _Row, question: Question, settings: RemovalSettings) -> list[list[list[TrainJob]]]:
    """``[group][size][seed]``; of the control one size."""
    experiment = question.experiment
    seeds = training_seeds(experiment.settings.training.seed, settings.num_seeds)
    if row.order is None:
        jobs = [experiment.train_job(f"control, seed {s}", None, seed) for s, seed in enumerate(seeds)]
        return [[jobs]] * len(question.names)

    def job(group: int, size: int, s: int, order: Tensor = row.order) -> TrainJob:
        kept = torch.ones(len(experiment.train), dtype=torch.bool)
        kept[order[group, s, :size]] = False
        name = f"model without {row.name}'s top {size} of {question.names[group]}, seed {s}"
        return experiment.train_job(name, tuple(kept.nonzero().flatten().tolist()), seeds[s])

    return [
        [[job(group, size, s) for s in range(settings.num_seeds)] for size in question.sizes]
        for group in range(len(question.names))
    ]


def _retrain(jobs: Sequence[list[list[list[TrainJob]]]], question: Question, progress: Progress) -> None:
    experiment = question.experiment
    training = _distinct(job for row in jobs for group in row for size in group for job in size)
    losses = [question.loss_job(job) for job in training]
    images = [question.generate_job(job) for job in training] if question.generated else []
    save_images(experiment.store, experiment.train)
    save_images(experiment.store, question.image_set)
    total = sum(job.cost for part in (training, losses, images) for job in part)
    missing = sum(job.find(experiment.store) is None for job in training)
    with progress.task(
        f"{experiment.label}: {len(training)} models, {missing} of them to train, and their queries", total
    ) as task:
        experiment.run_jobs(task, training, losses, images)


def _distinct(jobs: Iterable[TrainJob]) -> list[TrainJob]:
    return list({canonical(job.spec): job for job in jobs}.values())


def _file(
    row: _Row,
    values: dict[str, Tensor],
    question: Question,
    settings: RemovalSettings,
    config: Config,
    missing: dict[str, str],
    results: Path,
) -> tuple[RemovalRecord, Path]:
    experiment = question.experiment
    tensors = {f"values.{name}": found.float() for name, found in values.items()}
    if row.order is not None:
        own = row.order if row.kind == "random" else row.order[:, :1]
        tensors["removed"] = own.to(torch.int32)
    described = _described(config, settings, question)
    record = RemovalRecord(
        **setting_description(config, experiment),
        **_method_fields(row, question),
        **described,
        setting_hash=digest_text(canonical([experiment.train.content_hash, described["settings"]]))[:32],
        kind=row.kind,
        asked=settings.asked,  # type: ignore[arg-type]
        group_names=question.names,
        groups=[[question.explained.ids[place] for place in group] for group in question.groups],
        queries_hash=question.image_set.content_hash,
        sizes=[0] if row.order is None else question.sizes,
        train_seeds=training_seeds(experiment.settings.training.seed, settings.num_seeds),
        measures={name: by_group(found, question.groups) for name, found in values.items()},
        missing=missing,
    )
    return save_file(record, results, tensors, experiment.progress)


def by_group(values: Tensor, groups: Sequence[Sequence[int]]) -> Distances:
    """Means over a group's own queries, and over those of the other groups.

    Args:
        values: ``(num_groups, num_sizes, num_seeds, num_queries)``.
        groups: the queries of each group, by place.
    """
    everything = {place for group in groups for place in group}
    own, others = [], []
    for row, group in zip(values.double(), groups, strict=True):
        own.append(row[..., list(group)].mean(dim=-1).tolist())
        others.append(row[..., sorted(everything - set(group))].mean(dim=-1).tolist())
    return Distances(on_group=own, on_controls=others)


def _described(config: Config, settings: RemovalSettings, question: Question) -> dict[str, Any]:
    """What the numbers depend on: of the ground truth's section only how losses are measured."""
    everything = config.settings.stated
    truth = everything["ground_truth"]
    kept = {name: everything[name] for name in ("model", "training", "generation")}
    kept["ground_truth"] = {name: truth[name] for name in ("timestep_stride", "num_noise_draws", "seed")}
    asked = {**asdict(settings), "num_removed": question.sizes}
    if settings.asked != "copies":
        del asked["num_copies"]
    overrides = config.overrides_without("counterfactual")
    return {"overrides": json_value(overrides), "settings": {**kept, "removals": asked}}


def _method_fields(row: _Row, question: Question) -> dict[str, Any]:
    if row.method is not None and row.scoring is not None:
        return method_description(row.method, row.scoring)
    return {
        "method": row.name,
        "method_class": "",
        "options": {},
        "access": Access.DATA.name,
        "tuned_on": "",
        "versions": versions(),
        "hardware": hardware(resolve_device(question.experiment.runtime.accelerator)),
    }
