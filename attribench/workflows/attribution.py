"""Attribution of one's own images: compared with each other, or by the gradients of the model that was trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attribench.computing.progress import Progress
from attribench.configuration.resolution import MethodConfig
from attribench.data import ImageSet
from attribench.method import Access, AttributionContext, AttributionMethod, Match, Queries, SpatialEvidence, start
from attribench.records.answers import Attributed, Explanation, Ranking
from attribench.records.lds import row_name
from attribench.settings import Runtime
from attribench.store.artifacts import Spec, Staging
from attribench.workflows.checks import check_names, instances
from attribench.workflows.explanation import explained, knows_where, with_evidence
from attribench.workflows.forecast import Planned, forecast
from attribench.workflows.model_space import in_pixels
from attribench.workflows.own_images import OwnImages, Request, check_methods, open_images
from attribench.workflows.pieces import access_of
from attribench.workflows.scoring import Scoring, require, require_defined

#: Raise it when evidence in the store must not be read any more.
_EVIDENCE_FORMAT = 1


def attribute(
    request: Request, configs: Sequence[MethodConfig], runtime: Runtime, progress: Progress
) -> Iterator[Attributed]:
    """Rank the train images for every query, by one method after the other.

    What is decoded and computed stays in the store under ``runtime.workdir``: a call that was stopped goes on. Nothing is
    computed before it is known that all methods can run.

    Raises:
        UsageError: a method needs a model, or its checkpoints, and there are none; it cannot run here, or is not defined on
            images that come from elsewhere; or there are too few decoys.
        ModelError: the model cannot be read, or does not take such images.
        DataError: a folder does not exist, or holds no image that can be read.
    """
    check_methods(request, configs)
    methods = instances(configs)
    check_names(configs)
    looked_at = any(access_of(config.cls) >= Access.MODEL for config in configs)
    own = open_images(request, runtime, progress, looked_at)
    tasks = [_Task(own, config, method) for config, method in methods]
    for task in tasks:
        require_defined(task.method, task.config.name, task.asked)
    for task in tasks:
        if not task.tells_needs:
            require(task.method, task.config.name, task.context)
    missing = [
        task for task in tasks if task.tells_needs and not task.done
    ]  # of the others nothing is computed any more
    forecast([task.planned for task in missing], len(own.queries.images), progress)
    for task in missing:  # after the forecast, which names the option that would do
        require(task.method, task.config.name, task.context)
    for task in tasks:
        yield task.run(request)


class _Task:
    """One method on one's own images."""

    def __init__(self, own: OwnImages, config: MethodConfig, method: AttributionMethod) -> None:
        self._own, self.config, self.method = own, config, method
        self.context = own.context(config)
        self.asked = own.asked(self.context.access)

    @property
    def tells_needs(self) -> bool:
        """Whether the method says what it takes."""
        return type(self.method).needs is not AttributionMethod.needs

    @property
    def planned(self) -> Planned:
        """For a forecast of what it takes."""
        return Planned(self.config, self.method, self.context)

    @cached_property
    def _scoring(self) -> Scoring:
        return Scoring(self._own.store, self.method, self.config, self.context, self._own.weights(self.context))

    @property
    def done(self) -> bool:
        """Whether the scores are in the store."""
        return self._scoring.complete({"queries": self.asked})

    @property
    def _model_words(self) -> str:
        """What of the model was looked at."""
        model = self._own.model
        if model is None or (self.context.models is None and not self.context.train.latent):
            return ""
        return model.description if self.context.models is not None else f"latents and noise schedule of {model.name}"

    def run(self, request: Request) -> Attributed:
        """Score, rank and explain."""
        own, context, pool = self._own, self.context, self._own.pool
        everything = self._scoring.scores({"queries": self.asked})["queries"]
        scores = everything[:, : len(pool.train)]
        count = min(request.top or len(pool.train), len(pool.train))
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
        explanations = _explanations(
            self.method,
            context,
            self._scoring,
            self.asked,
            order[:, : request.heat_maps],
            scores,
            own,
        )
        rankings = [
            Ranking(indices.tolist(), row[indices].tolist(), explanation)
            for indices, row, explanation in zip(order, scores, explanations, strict=True)
        ]
        return Attributed(
            row_name(self.config.name, self.config.changed),
            self.config.options,
            pool.train,
            own.queries.images,
            scores,
            rankings,
            self._model_words,
            {"train": own.train.skipped, "queries": own.queries.skipped},
            {"train": own.train.others, "queries": own.queries.others},
            pool.judge(everything),
        )


def _explanations(
    method: AttributionMethod,
    context: AttributionContext,
    scoring: Scoring,
    queries: Queries,
    order: Tensor,
    scores: Tensor,
    own: OwnImages,
) -> Sequence[Explanation | None]:
    """Evidence for the first train images of each query, kept in the store a query at a time."""
    store, progress = own.store, own.progress
    pictures, train = Queries.of(own.queries.images, queries.name), own.pool.everything
    if not knows_where(method) or order.shape[1] == 0:
        return [None] * len(queries)
    found = []
    with progress.task(f"{scoring.name}: heat maps of {len(queries)} queries", len(queries)) as task:
        for number, indices in enumerate(order):
            query = queries[number : number + 1]
            values = scores[number, indices].tolist()
            content = ImageSet(query.images, query.ids, latent=query.latent).content_hash
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
            if query.latent and own.space is not None:
                evidence = [in_pixels(shown, own.space.factor) for shown in evidence]
            picture = pictures[number : number + 1]
            found.append(with_evidence(picture, indices.tolist(), values, evidence, train))
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
