"""Attribution of one's own folders: no model and no retraining, only images compared with images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.configuration.resolution import MethodConfig
from attribench.data import ImageSet
from attribench.data.decoding import Channels
from attribench.data.files import some
from attribench.data.folders import Folder, read_folder, same_channels
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError
from attribench.method import Access, AttributionContext, AttributionMethod, Match, Queries, SpatialEvidence, start
from attribench.records.answers import Attributed, Explanation, Ranking
from attribench.records.lds import row_name
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.workflows.checks import instances
from attribench.workflows.decoys import DecoyRequest, Pool
from attribench.workflows.explanation import explained, knows_where, with_evidence
from attribench.workflows.scoring import Scoring, access_of, require, require_defined

#: Root of the noise; the seed of the benchmark's target model.
_SEED = 42

#: Raise it when evidence in the store must not be read any more.
_EVIDENCE_FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        train: folder of train images.
        queries: folder of images to explain.
        top: train images a query to report, 0 for all.
        image_size: side of the square all images are brought to, in pixels.
        channels: ``RGB``, ``grey``, or ``auto``: grey if no image has colour.
        heat_maps: for how many of a query's train images to show where the score comes from.
        decoys: what to judge the ranking against; None for nothing.
    """

    train: Path
    queries: Path
    top: int = 20
    image_size: int = 32
    channels: Channels = "auto"
    heat_maps: int = 20
    decoys: DecoyRequest | None = None

    def __post_init__(self) -> None:
        if self.top < 0:
            raise UsageError("--top must be 0 (all) or more.")
        if self.heat_maps < 0:
            raise UsageError("--heat-maps must be 0 or more.")
        if self.image_size < 2:
            raise UsageError("--image-size must be at least 2.")


def attribute(request: Request, config: MethodConfig, runtime: Runtime, progress: Progress) -> Attributed:
    """Rank the train images for every query.

    What is decoded and computed stays in the store under ``runtime.workdir``: a call that was stopped goes on.

    Raises:
        UsageError: the method needs a model, or is not defined on images that come from elsewhere.
        DataError: a folder does not exist, or holds no image that can be read.
    """
    if access_of(config.cls) > Access.DATA:
        raise UsageError(
            f"{config.name} looks at a model, and there is none here: use a method that compares images, such as nda, "
            "pixel or clip."
        )
    ((_, method),) = instances([config])
    device = resolve_device(runtime.accelerator)
    store = ArtifactStore(Path(runtime.workdir), lock_timeout=runtime.lock_timeout, report=progress.message)
    train, queries = same_channels(
        *(_read(folder, request, store, progress) for folder in (request.train, request.queries))
    )
    pool = Pool.of(
        train.images,
        request.decoys,
        lambda folder, channels: _read(folder, replace(request, channels=channels), store, progress),
        progress,
    )
    context = AttributionContext(
        train=pool.everything,
        schedule=NoiseSchedule(),
        device=device,
        seed=_SEED,
        store=store.scoped(f"methods/{config.cls.__qualname__}"),
        access=Access.DATA,
        progress=progress,
    )
    require(method, config.name, context)
    asked = Queries.of(queries.images, "queries")
    require_defined(method, config.name, asked)
    scoring = Scoring(store, method, config, context)
    everything = scoring.scores({"queries": asked})["queries"]
    scores = everything[:, : len(pool.train)]
    count = min(request.top or len(pool.train), len(pool.train))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    explanations = _explanations(
        method, context, scoring, asked, order[:, : request.heat_maps], scores, store, progress
    )
    rankings = [
        Ranking(indices.tolist(), row[indices].tolist(), explanation)
        for indices, row, explanation in zip(order, scores, explanations, strict=True)
    ]
    return Attributed(
        row_name(config.name, config.changed),
        config.options,
        pool.train,
        queries.images,
        rankings,
        {"train": train.skipped, "queries": queries.skipped},
        {"train": train.others, "queries": queries.others},
        pool.judge(everything),
    )


def _read(folder: Path, request: Request, store: ArtifactStore, progress: Progress) -> Folder:
    found = read_folder(folder, request.image_size, store, channels=request.channels, progress=progress)
    for name, reason in found.skipped.items():
        progress.message(f"Skipped {folder / name}: {reason}.")
    if found.others:
        progress.message(f"Passed over in {folder}, no pictures: {len(found.others)} ({some(found.others)}).")
    return found


def _explanations(
    method: AttributionMethod,
    context: AttributionContext,
    scoring: Scoring,
    queries: Queries,
    order: Tensor,
    scores: Tensor,
    store: ArtifactStore,
    progress: Progress,
) -> Sequence[Explanation | None]:
    """Evidence for the first train images of each query, kept in the store a query at a time."""
    if not knows_where(method) or order.shape[1] == 0:
        return [None] * len(queries)
    found = []
    with progress.task(f"{scoring.name}: heat maps of {len(queries)} queries", len(queries)) as task:
        for number, indices in enumerate(order):
            query = queries[number : number + 1]
            values = scores[number, indices].tolist()
            content = ImageSet(query.images, query.ids).content_hash
            spec: Spec = {
                **scoring.spec, "format": _EVIDENCE_FORMAT, "queries": content, "images": indices.tolist()
            }  # fmt: skip

            def build(
                staging: Staging, query: Queries = query, indices: Tensor = indices, values: list[float] = values
            ) -> None:
                if method._context is None:  # scores came from the store
                    start(method, context)
                shown = explained(method, query, indices.tolist(), values, context.train)
                _save(staging, shown)

            artifact = store.get_or_create("evidence", spec, build)
            evidence = _load(artifact.load_tensors("maps"), artifact.load_json("matches"))
            found.append(with_evidence(query, indices.tolist(), values, evidence, context.train))
            task.advance()
    return found


def _save(staging: Staging, shown: Explanation) -> None:
    evidence = [item.evidence for item in shown.images]
    staging.save_tensors(
        "maps",
        {
            "query": torch.stack([item.query_map for item in evidence]),
            "train": torch.stack([item.train_map for item in evidence]),
        },
    )
    staging.save_json("matches", [[vars(match) for match in item.matches] for item in evidence])


def _load(maps: dict[str, Tensor], matches: list[list[dict[str, Any]]]) -> list[SpatialEvidence]:
    def match(values: dict[str, Any]) -> Match:
        boxes = {name: tuple(values[name]) for name in ("query_box", "train_box")}
        return Match(**{**values, **boxes})

    return [
        SpatialEvidence(query_map, train_map, tuple(match(values) for values in pairs))
        for query_map, train_map, pairs in zip(maps["query"], maps["train"], matches, strict=True)
    ]
