"""One counterfactual evaluation, readable from top to bottom: queries → scores → removals → retraining → images → record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.computing.seeding import derive_seed
from attribench.configuration.resolution import Config, MethodConfig
from attribench.data import ImageSet
from attribench.embeddings.clip_models import find_model
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.errors import UsageError
from attribench.method import Access, Queries
from attribench.metrics.counterfactual import embedding_cosine, pixel_distance
from attribench.records.counterfactual import CONTROL, ClipValues, CounterfactualRecord
from attribench.records.files import save_file
from attribench.settings import CounterfactualSettings, Runtime
from attribench.store.files import canonical, digest_text
from attribench.store.json_values import json_value
from attribench.truth.experiment import Experiment
from attribench.truth.generation import GenerateJob
from attribench.truth.jobs import save_images
from attribench.workflows.checks import instances, without_refused
from attribench.workflows.opening import method_description, open_experiment, setting_description
from attribench.workflows.scoring import Scoring, chosen_scores, hardware, scorings, versions

#: ``random_state`` of the published choice of queries.
_QUERY_SEED = 42


@dataclass(frozen=True)
class Clip:
    """Which CLIP model compares the images; see :class:`attribench.embeddings.image_embedder.ImageEmbedder`."""

    model: str = "ViT-B-32"
    pretrained: str = "openai"
    checkpoint: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What an evaluation made.

    Attributes:
        records: the control's, then one a method that ran.
        skipped: the reason of each method that could not run here, by name.
    """

    records: list[CounterfactualRecord] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    """A method's removals, or none of them for the control: a list of retrainings for each query, one a seed."""

    name: str
    method: MethodConfig | None
    scoring: Scoring | None
    removed: Tensor
    retrainings: list[list[GenerateJob]]


def run(config: Config, runtime: Runtime, results: Path, progress: Progress, clip: Clip | None = None) -> Outcome:
    """Evaluate every method of ``config`` on generated queries; each record is filed under ``results``.

    Retrainings are shared where two methods remove the same images, and resume like all retraining.

    Raises:
        UsageError: fewer generated images, or train images, than the settings ask for.
        AttribenchError: something in it failed; what is finished stays in the store and is used next time.
    """
    embedder = embedder_of(clip or Clip())
    made = retrain(config, runtime, progress)
    experiment, outcome = made.experiment, Outcome(skipped=made.skipped)
    if made.explained is None:
        return outcome
    missing = no_clip(embedder, experiment)
    if missing:
        progress.message(f"Images are compared by pixels alone. {missing}")
    for row in made.rows:
        regenerated = torch.stack(
            [_images(jobs, number, experiment) for jobs, number in zip(row.retrainings, made.chosen, strict=True)]
        )
        record, path = _file(
            row, made.explained, regenerated, embedder, missing or "", config, experiment, results, clip or Clip()
        )
        progress.message(f"{row.name}: recorded in {path}")
        outcome.records.append(record)
    return outcome


@dataclass(frozen=True)
class _Made:
    """What there is to compare once everything is retrained and generated."""

    experiment: Experiment
    rows: list[_Row] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    explained: Queries | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def retrain(config: Config, runtime: Runtime, progress: Progress) -> _Made:
    """All of :func:`run` that is expensive: it ends up in the store, and several processes may share it."""
    experiment = open_experiment(config, runtime, progress)
    settings = config.settings.counterfactual
    _check(settings, experiment)
    skipped: dict[str, str] = {}
    methods = without_refused(instances(config.methods), experiment, skipped)
    if not methods:
        return _Made(experiment, skipped=skipped)
    with progress.task(f"{experiment.label}: target model and queries", _first_cost(experiment)) as task:
        save_images(experiment.store, experiment.train)
        queries = experiment.queries("generation", task)
    chosen = choose_queries(len(queries), settings.num_queries)

    rows = [_control(experiment, chosen, settings)]
    for method_config, scoring in scorings(experiment, methods, skipped):
        undefined = scoring.undefined_on({"generation": queries})
        if undefined:
            skipped[scoring.name] = undefined["generation"]
            continue
        scores = chosen_scores(scoring, queries, chosen)
        rows.append(_row(method_config, scoring, scores, experiment, chosen, settings))
    _retrain(rows, experiment, progress)
    return _Made(experiment, rows, chosen, queries.select(chosen), skipped)


def choose_queries(num_images: int, num_queries: int) -> list[int]:
    """Which generated images are explained: as published, ``train_test_split(..., random_state=42)``, in that order."""
    if num_queries >= num_images:
        return list(range(num_images))
    found: list[int] = train_test_split(list(range(num_images)), test_size=num_queries, random_state=_QUERY_SEED)[1]
    return found


def strongest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest-scored train images of each query, int64 ``(num_queries, count)``; ties by number."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def _check(settings: CounterfactualSettings, experiment: Experiment) -> None:
    if not experiment.has_model:
        raise UsageError("This ground truth holds no model: there is nothing to compare retrained models with.")
    num_train, num_images = len(experiment.train), experiment.settings.generation.num_images
    if settings.num_removed >= num_train:
        raise UsageError(
            f"--counterfactual.num_removed {settings.num_removed} would leave nothing of {num_train} train images."
        )
    if settings.num_queries > num_images:
        raise UsageError(
            f"--counterfactual.num_queries {settings.num_queries} is more than the {num_images} generated images "
            "(--generation.num_images)."
        )


def _first_cost(experiment: Experiment) -> float:
    generation = experiment.settings.generation
    return experiment.target.cost + generation.num_images * generation.num_inference_steps


def _seeds(experiment: Experiment, settings: CounterfactualSettings, control: bool) -> list[int]:
    root = experiment.settings.training.seed
    seeds = [derive_seed(root, "training", "counterfactual", number) for number in range(settings.num_seeds)]
    return seeds if control or not settings.target_seed else [root, *seeds[1:]]


def _control(experiment: Experiment, chosen: list[int], settings: CounterfactualSettings) -> _Row:
    """All train images, other seeds: how far images move for no reason."""
    jobs = [
        GenerateJob(
            experiment.train_job(f"control, seed {number}", None, seed), tuple(chosen), experiment.settings.generation
        )
        for number, seed in enumerate(_seeds(experiment, settings, control=True))
    ]
    return _Row(CONTROL, None, None, torch.empty(len(chosen), 0, dtype=torch.int64), [jobs] * len(chosen))


def _row(
    method: MethodConfig,
    scoring: Scoring,
    scores: Tensor,
    experiment: Experiment,
    chosen: list[int],
    settings: CounterfactualSettings,
) -> _Row:
    name, removed = scoring.name, strongest(scores, settings.num_removed)
    retrainings = []
    for number, gone in zip(chosen, removed, strict=True):
        kept = torch.ones(len(experiment.train), dtype=torch.bool)
        kept[gone] = False
        indices = tuple(kept.nonzero().flatten().tolist())
        retrainings.append(
            [
                GenerateJob(
                    experiment.train_job(
                        f"model without {name}'s top {len(gone)} of query {number}, seed {s}", indices, seed
                    ),
                    (number,),
                    experiment.settings.generation,
                )
                for s, seed in enumerate(_seeds(experiment, settings, control=False))
            ]
        )
    return _Row(name, method, scoring, removed, retrainings)


def _retrain(rows: Sequence[_Row], experiment: Experiment, progress: Progress) -> None:
    generating = _distinct(job for row in rows for jobs in row.retrainings for job in jobs)
    training = list({canonical(job.trained.spec): job.trained for job in generating}.values())
    total = sum(job.cost for job in training) + sum(job.cost for job in generating)
    with progress.task(f"{experiment.label}: {len(training)} models without proponents, and images", total) as task:
        experiment.run_jobs(task, training, generating)


def _distinct(jobs: Iterable[GenerateJob]) -> list[GenerateJob]:
    """Methods that remove the same images share the retraining."""
    return list({canonical([job.trained.spec, job.seeds]): job for job in jobs}.values())


def _images(jobs: Sequence[GenerateJob], number: int, experiment: Experiment) -> Tensor:
    """One query regenerated with each seed's model: uint8 ``(num_seeds, C, H, W)``."""
    return torch.stack([job.load(experiment.store)[job.seeds.index(number)] for job in jobs])


def no_clip(embedder: ImageEmbedder, experiment: Experiment) -> str | None:
    """Why images cannot be compared by CLIP here, or None."""
    channels = experiment.train.image_shape[0]
    return (
        embedder.unavailable()
        if channels in (1, 3)
        else f"CLIP sees grey or RGB images; these have {channels} channels."
    )


def embedder_of(clip: Clip) -> ImageEmbedder:
    """What embeds images with it."""
    model = find_model(clip.model, clip.pretrained, own_weights=clip.checkpoint is not None)
    return ImageEmbedder(model, clip.checkpoint, checkpoint_option="--clip_checkpoint")


def _file(
    row: _Row,
    queries: Queries,
    regenerated: Tensor,
    embedder: ImageEmbedder,
    missing: str,
    config: Config,
    experiment: Experiment,
    results: Path,
    clip: Clip,
) -> tuple[CounterfactualRecord, Path]:
    tensors = {"originals": queries.images, "regenerated": regenerated} if config.files_images else {}
    if row.method is not None:
        tensors["removed"] = row.removed.to(torch.int32)
    record = CounterfactualRecord(
        **setting_description(config, experiment),
        **_method_fields(row, experiment),
        overrides=json_value(config.overrides_without("ground_truth")),
        settings=config.settings.without("ground_truth"),
        setting_hash=digest_text(canonical([experiment.train.content_hash, config.settings.without("ground_truth")]))[
            :32
        ],
        query_ids=list(queries.ids),
        queries_hash=ImageSet(queries.images, queries.ids).content_hash,
        num_removed=row.removed.shape[1],
        train_seeds=_seeds(experiment, config.settings.counterfactual, control=row.method is None),
        l2=pixel_distance(queries.images, regenerated).tolist(),
        clip=None if missing else _clip_values(embedder, queries.images, regenerated, experiment, clip),
        clip_missing=missing,
    )
    return save_file(record, results, tensors, experiment.progress)


def _clip_values(
    embedder: ImageEmbedder, originals: Tensor, regenerated: Tensor, experiment: Experiment, clip: Clip
) -> ClipValues:
    device = resolve_device(experiment.runtime.accelerator)
    moved = embedder.embed(regenerated.flatten(0, 1), device).reshape(*regenerated.shape[:2], -1)
    return ClipValues(
        model=clip.model,
        weights=Path(clip.checkpoint).name if clip.checkpoint else clip.pretrained,
        sha256=str(embedder.spec["weights"]),
        values=embedding_cosine(embedder.embed(originals, device), moved).tolist(),
    )


def _method_fields(row: _Row, experiment: Experiment) -> dict[str, Any]:
    if row.method is not None and row.scoring is not None:
        return method_description(row.method, row.scoring)
    return {
        "method": CONTROL,
        "method_class": "",
        "options": {},
        "access": Access.DATA.name,
        "tuned_on": "",
        "versions": versions(),
        "hardware": hardware(resolve_device(experiment.runtime.accelerator)),
    }
