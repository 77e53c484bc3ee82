"""Scores of a method on an experiment's queries: computed once, kept in the store with what they cost."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from attribench.configuration.resolution import MethodConfig
from attribench.data import ImageSet
from attribench.diffusion.spaces import LatentSpace, Space
from attribench.errors import UsageError
from attribench.method import Access, AttributionContext, AttributionMethod, Queries, RetrainedModels, start
from attribench.records.lds import CostRecord, row_name
from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging
from attribench.store.code import method_hash
from attribench.store.json_values import json_value
from attribench.store.shared import added
from attribench.truth.experiment import Experiment
from attribench.truth.folds import given, num_folds
from attribench.workflows.pieces import Elsewhere, access_of, context_of, measured, on_nodes, score_piece

# Scores are kept in pieces of this many queries, so that a killed run loses at most one piece.
_QUERIES_PER_PIECE = 64


def make_context(
    experiment: Experiment,
    method: AttributionMethod,
    config: MethodConfig,
    fold: int = 0,
    within: Sequence[int] | None = None,
) -> AttributionContext:
    """What ``method`` gets to work with; models, and what was made from them, only as far as it declared.

    Args:
        fold: the one that a method which is given retrained models is judged on.
        within: subsets whose models it may be given, by number; None for all.
    """
    space = _space_of(experiment, access_of(config.cls))
    context = context_of(
        config.cls,
        experiment.train,
        experiment.store,
        experiment.runtime,
        experiment.settings.training.seed,
        experiment.models(),
        progress=experiment.progress,
        retrained=_others(experiment, fold, within) if access_of(config.cls) >= Access.RETRAINED else None,
        # In this machine's other processes it would be no quicker: methods use all of its cores or its GPU already.
        distribute=experiment.distribute if experiment.runtime.executor == "ray" else None,
    )
    if not isinstance(space, LatentSpace):
        return context
    # Nodes of a cluster would have to be given the autoencoder too.
    return replace(
        context, train=space.seen(experiment.train), schedule=space.schedule, inputs=space.inputs, distribute=None
    )


def _space_of(experiment: Experiment, access: Access) -> Space | None:
    """What a method that looks at the target model works in; None for the others, which compare pixels."""
    sees = Access.MODEL <= access < Access.RETRAINED and experiment.has_model
    return experiment.space if sees else None


def _others(experiment: Experiment, fold: int, within: Sequence[int] | None) -> RetrainedModels | None:
    """The models retrained on subsets outside a fold; None if there are too few."""
    count = len(experiment.masks)
    try:
        folds = num_folds(count)
    except UsageError:
        return None
    kept = given(count, folds, fold, within)

    def losses(queries: Queries) -> Tensor:
        numbers = {name: number for number, name in enumerate(experiment.query_ids(queries.name))}
        outputs = experiment.ground_truth(queries.name).outputs
        return outputs[kept][:, [numbers[name] for name in queries.ids]]

    return RetrainedModels(experiment.masks[kept], losses)


def reason_to_skip(method: AttributionMethod, context: AttributionContext) -> str | None:
    """Why a method cannot run here, or None."""
    if context.access >= Access.RETRAINED:
        if context.retrained is None:
            return "it is given retrained models, and judged on others: four subsets at least are needed."
    elif context.access >= Access.MODEL and context.models is None:
        return "it looks at the target model, and this ground truth holds no model."
    return method.skip_reason(context)


def require(method: AttributionMethod, name: str, context: AttributionContext) -> None:
    """Insist that a method can run.

    Raises:
        UsageError: it cannot; with its reason.
    """
    reason = reason_to_skip(method, context)
    if reason is not None:
        raise UsageError(f"{name} cannot run here: {reason}")


def undefined_on(method: AttributionMethod, query_sets: Mapping[str, Queries]) -> dict[str, str]:
    """The reason of each query set that a method is not defined on, by name; the others are not in it."""
    reasons = {name: method.undefined_on(queries) for name, queries in query_sets.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def require_defined(method: AttributionMethod, name: str, queries: Queries) -> None:
    """Insist that a method is defined on a query set.

    Raises:
        UsageError: it is not; with its reason.
    """
    reason = method.undefined_on(queries)
    if reason is not None:
        raise UsageError(f"{name} is not defined on the query set '{queries.name}': {reason}")


class Scoring:
    """Scores of one method, kept in the store with what they cost.

    The cost is what the method costs on its own: shared artifacts that another method has paid for are added.

    Args:
        store: where scores are kept.
        method: not yet started; it is only where scores are missing.
        config: what it was made from.
        context: what it may work with.
        weights: digest of the target model, for methods that look at it.
        retrained: identifies the retrained models the method is given, for methods that are given any.
        elsewhere: has pieces scored on other machines; None: all are here.
    """

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        method: AttributionMethod,
        config: MethodConfig,
        context: AttributionContext,
        within: Sequence[int] | None = None,
    ) -> Scoring:
        """Scores in an experiment's store; of a method that is given retrained models, fold by fold.

        Args:
            within: what ``context`` was made with, see :func:`make_context`.
        """
        if context.access >= Access.RETRAINED:
            return CrossFitted(experiment, method, config, context, within)
        target = experiment.target.find(experiment.store) if context.access >= Access.MODEL else None
        if isinstance(space := _space_of(experiment, context.access), LatentSpace):
            found = cls(experiment.store, method, config, context, target.digest if target else None)
            found._seen = partial(_encoded, space)
            return found
        elsewhere = on_nodes(experiment, config) if experiment.runtime.executor == "ray" else None
        return cls(experiment.store, method, config, context, target.digest if target else None, elsewhere=elsewhere)

    def __init__(
        self,
        store: ArtifactStore,
        method: AttributionMethod,
        config: MethodConfig,
        context: AttributionContext,
        weights: str | None = None,
        retrained: str | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._store, self._elsewhere = store, elsewhere
        self._method, self._context, self._progress = method, context, context.progress
        self._seen: Callable[[Queries], Queries] = _as_they_are
        self.name = row_name(config.name, config.changed)
        inputs = method.inputs_hash()
        self.spec: Spec = {
            "method": f"{config.cls.__module__}.{config.cls.__qualname__}",
            "options": json_value(config.options, "method"),
            "code": method_hash(config.cls),  # type: ignore[arg-type]
            "train": context.train.content_hash,
            "seed": context.seed,
            "weights": weights,
            **({"inputs": inputs} if inputs else {}),
            **({"retrained": retrained} if retrained else {}),
        }
        self.cost = CostRecord(prepare_seconds=0, seconds_per_query=0, peak_bytes=0, stored_bytes=0)
        self.hardware: dict[str, Any] = {}
        self.versions: dict[str, str] = {}

    def undefined_on(self, query_sets: Mapping[str, Queries]) -> dict[str, str]:
        """The reason of each query set that the method is not defined on, by name; :meth:`scores` is for the others."""
        return undefined_on(self._method, query_sets)

    def complete(self, query_sets: Mapping[str, Queries]) -> bool:
        """Whether all scores are in the store, so that :meth:`scores` only reads them."""
        query_sets = {name: self._seen(queries) for name, queries in query_sets.items()}
        found = (self._store.find("scores", self._piece_spec(piece)) for piece in _pieces(query_sets).values())
        return self._store.find("preparations", self.spec) is not None and all(found)

    def scores(self, query_sets: Mapping[str, Queries]) -> dict[str, Tensor]:
        """Scores ``(num_queries, num_train)`` for every query set, see :func:`attribench.method.score`.

        Computed where they are not in the store.
        """
        query_sets = {name: self._seen(queries) for name, queries in query_sets.items()}
        pieces = _pieces(query_sets)
        found = {key: self._store.find("scores", self._piece_spec(piece)) for key, piece in pieces.items()}
        prepared = self._store.find("preparations", self.spec)
        if prepared is None or None in found.values():
            prepared = self._prepare()
            missing = {key: (self._piece_spec(piece), piece) for key, piece in pieces.items() if found[key] is None}
            if self._elsewhere is not None and missing and not self._method.distributes:
                self._elsewhere(list(missing.values()), self._method)
            total = sum(len(piece) for _, piece in missing.values())
            with self._progress.task(f"{self.name}: scoring {total} queries", total) as task:
                for key, (spec, piece) in missing.items():
                    found[key] = score_piece(self._store, self._method, spec, piece)
                    task.advance(len(piece))
        artifacts = {key: artifact for key, artifact in found.items() if artifact is not None}
        self._add_up(prepared, [(artifacts[key], len(piece)) for key, piece in pieces.items()])
        return {
            name: torch.cat([artifacts[key].load_tensors("scores")["scores"] for key in pieces if key[0] == name])
            for name in query_sets
        }

    def _prepare(self) -> Artifact:
        with measured(self._context) as cost:
            start(self._method, self._context)

        def build(staging: Staging) -> None:
            staging.save_json("cost", {**cost, "hardware": hardware(self._context.device), "versions": versions()})

        return self._store.get_or_create("preparations", self.spec, build)

    def _piece_spec(self, piece: Queries) -> Spec:
        content = self._context.inputs.seen(piece).content_hash
        return {**self.spec, "queries": content, **({"sampling": vars(piece.sampling)} if piece.sampling else {})}

    def _add_up(self, prepared: Artifact, artifacts: list[tuple[Artifact, int]]) -> None:
        preparation = prepared.load_json("cost")
        found = [(self._store.find("scoring-costs", artifact.spec), count) for artifact, count in artifacts]
        # A damaged one is set aside; the others speak for its queries.
        costs = [piece.load_json("cost") for piece, _ in found if piece is not None]
        num_queries = sum(count for piece, count in found if piece is not None)
        seconds = preparation["seconds"] + sum(cost["seconds"] for cost in costs)
        others = added(*(cost.get("others_seconds") for cost in (preparation, *costs)))
        self.hardware, self.versions = preparation["hardware"], preparation["versions"]
        stored = {name: size for cost in (preparation, *costs) for name, size in cost["stored"].items()}
        self.cost = CostRecord(
            prepare_seconds=preparation["seconds"],
            seconds_per_query=sum(cost["seconds"] for cost in costs) / max(1, num_queries),
            peak_bytes=max([preparation["peak_bytes"], *(cost["peak_bytes"] for cost in costs)]),
            stored_bytes=sum(stored.values()),
            compile_seconds=preparation["compile_seconds"] + sum(cost["compile_seconds"] for cost in costs),
            others_share=None if others is None or not seconds else min(1.0, others / seconds),
        )


class CrossFitted(Scoring):
    """Scores of a method that is given retrained models: for each fold of the subsets, made without that fold's models.

    The cost is that of one fold, on average.
    """

    def __init__(
        self,
        experiment: Experiment,
        method: AttributionMethod,
        config: MethodConfig,
        context: AttributionContext,
        within: Sequence[int] | None = None,
    ) -> None:
        target = experiment.target.find(experiment.store) if experiment.has_model else None
        weights, folds = target.digest if target else None, num_folds(len(experiment.masks))
        truth = "+".join(experiment.ground_truth(name).hash for name in experiment.query_sets)
        fold_methods = [method, *(config.cls(**config.options) for _ in range(1, folds))]
        later = [make_context(experiment, fold_methods[fold], config, fold, within) for fold in range(1, folds)]
        contexts = [context, *later]
        # Which models were given is part of what the scores are: by another rule of folds they are others.
        seen = [f"{truth} of {given(len(experiment.masks), folds, fold, within)}" for fold in range(folds)]
        self._folds = [
            Scoring(experiment.store, fold_methods[fold], config, contexts[fold], weights, seen[fold])
            for fold in range(folds)
        ]
        super().__init__(experiment.store, method, config, context, weights, " + ".join(seen))

    def complete(self, query_sets: Mapping[str, Queries]) -> bool:
        return all(fold.complete(query_sets) for fold in self._folds)

    def scores(self, query_sets: Mapping[str, Queries]) -> dict[str, Tensor]:
        """Scores ``(num_folds, num_queries, num_train)`` for every query set."""
        found = [fold.scores(query_sets) for fold in self._folds]
        first, costs = self._folds[0], [fold.cost for fold in self._folds]
        shares = [cost.others_share for cost in costs if cost.others_share is not None]
        self.hardware, self.versions = first.hardware, first.versions
        self.cost = CostRecord(
            prepare_seconds=fmean(cost.prepare_seconds for cost in costs),
            seconds_per_query=fmean(cost.seconds_per_query for cost in costs),
            peak_bytes=max(cost.peak_bytes for cost in costs),
            stored_bytes=max(cost.stored_bytes for cost in costs),
            compile_seconds=sum(cost.compile_seconds for cost in costs),
            others_share=max(shares) if len(shares) == len(costs) else None,
        )
        return {name: torch.stack([scores[name] for scores in found]) for name in query_sets}


def _as_they_are(queries: Queries) -> Queries:
    return queries


def _encoded(space: Space, queries: Queries) -> Queries:
    """Queries as methods that look at the model are given them."""
    images = ImageSet(queries.images, queries.ids, queries.labels, queries.captions)
    return Queries.of(space.seen(images), queries.name, queries.sampling)


def of_all_folds(scores: Tensor) -> Tensor:
    """Scores ``(num_queries, num_train)``: as they are, or the mean over folds."""
    return scores if scores.ndim == 2 else scores.mean(dim=0)


def chosen_scores(scoring: Scoring, queries: Queries, chosen: Sequence[int]) -> Tensor:
    """Scores of some queries of a set: those of the whole set, if an earlier run made them, else of these alone."""
    if scoring.complete({queries.name: queries}):
        return of_all_folds(scoring.scores({queries.name: queries})[queries.name])[list(chosen)]
    return of_all_folds(scoring.scores({queries.name: queries.select(chosen)})[queries.name])


def scorings(
    experiment: Experiment, methods: Sequence[tuple[MethodConfig, AttributionMethod]], skipped: dict[str, str]
) -> Iterator[tuple[MethodConfig, Scoring]]:
    """Scores of each method that can run here, one after the other; of the others the reason is put into ``skipped``.

    Models retrained on subsets are trained first if a method is given some and they are not there.
    """
    if any(method.access >= Access.RETRAINED for _, method in methods):
        experiment.prepare()
    for config, method in methods:
        context = make_context(experiment, method, config)
        reason = reason_to_skip(method, context)
        if reason is None:
            yield config, Scoring.of(experiment, method, config, context)
        else:
            skipped[row_name(config.name, config.changed)] = reason


def _pieces(query_sets: Mapping[str, Queries]) -> dict[tuple[str, int], Queries]:
    return {
        (name, begin): queries[begin : begin + _QUERIES_PER_PIECE]
        for name, queries in query_sets.items()
        for begin in range(0, len(queries), _QUERIES_PER_PIECE)
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What the costs were measured on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"machine": platform.machine(), "cpu_cores": os.cpu_count(), "device": str(device), "gpu": gpu}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("attribench", "torch", "lightning", "diffusers", "numpy", "scikit-learn", "traker")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
