"""One run, readable from top to bottom: data → target model → queries → scores → evaluation → record."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribench.artifacts import Artifact, ArtifactStore, Spec, Staging, canonical, digest_text
from attribench.choices import load_choice
from attribench.configuration import Config, MethodConfig, typed
from attribench.cost import measure
from attribench.data import AttributionDataModule, ImageSet
from attribench.device import resolve_device
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AttribenchError, UsageError
from attribench.experiment import Experiment, GroundTruth
from attribench.method import Access, AttributionContext, AttributionMethod, Queries, score, start
from attribench.metrics.lds import linear_datamodeling_score, predict_outputs, undefined_queries
from attribench.metrics.resampling import lds_interval, published_bootstrap, standard_error
from attribench.progress import Progress
from attribench.protocol import Halves, ProtocolName
from attribench.records import (
    CostRecord,
    IntervalRecord,
    PublishedBootstrap,
    QuerySetResult,
    Record,
    row_name,
    save_record,
)
from attribench.registry import DATAMODULES
from attribench.settings import QUERY_SETS, Runtime
from attribench.shared import SharedStore, Usage

# Scores are kept in pieces of this many queries, so that a killed run loses at most one piece.
_QUERIES_PER_PIECE = 64

# Raise it when what is kept beside the scores changes, so that older artifacts are not misread.
_SCORING_FORMAT = 3


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
    # Bad options fail before any work.
    methods = [(method, method.cls(**method.options)) for method in chosen or config.methods]
    halves = experiment.halves if protocol == "strict" else None

    experiment.prepare()
    queries = {name: experiment.queries(name) for name in QUERY_SETS}
    ground_truths = {name: experiment.ground_truth(name) for name in QUERY_SETS}

    outcome = Outcome()
    for method_config, method in methods:
        name = row_name(method_config.name, method_config.changed)
        context = make_context(experiment, method, method_config)
        reason = method.skip_reason(context)
        if reason is not None:
            outcome.skipped[name] = reason
            continue
        scoring = Scoring(experiment, method, method_config, context)
        scores = scoring.scores(queries)
        evaluated = {
            key: evaluate(*reported(scores[key], queries[key], ground_truths[key], halves)) for key in QUERY_SETS
        }
        record = make_record(config, experiment, method_config, evaluated, scoring, protocol)
        path = save_record(record, results)
        progress.message(f"{name}: recorded in {path}")
        outcome.records.append(record)
    return outcome


def open_experiment(config: Config, runtime: Runtime, progress: Progress) -> Experiment:
    """Load the data and put it together with the setting.

    Raises:
        UsageError: the data set's label is another known data set's name, so their results would be mixed.
    """
    resolve_device(runtime.accelerator)  # a wrong --accelerator fails before any work
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
    index = halves.reporting_queries if queries.name == "validation" else list(range(len(queries)))
    subsets = halves.reporting_subsets
    return (
        scores[index],
        Queries(queries.images[index], tuple(queries.ids[i] for i in index), queries.name),
        GroundTruth(truth.masks[subsets], truth.losses[subsets][:, :, index], f"{truth.hash}/{subsets}"),
    )


def make_context(experiment: Experiment, method: AttributionMethod, config: MethodConfig) -> AttributionContext:
    """What ``method`` gets to work with; models, and what was made from them, only as far as it declared."""
    access = getattr(type(method), "access", None)
    if not isinstance(access, Access):
        raise AttribenchError(f"{type(method).__name__} must declare `access = Access.DATA`, MODEL or CHECKPOINTS.")
    return AttributionContext(
        train=experiment.train,
        schedule=NoiseSchedule(),
        device=resolve_device(experiment.runtime.accelerator),
        seed=experiment.settings.training.seed,
        store=experiment.store.scoped(f"methods/{config.cls.__qualname__}"),
        access=access,
        models=experiment.models(),
        progress=experiment.progress,
        shared=SharedStore(experiment.store.scoped("shared")) if access >= Access.MODEL else None,
    )


class Scoring:
    """Scores of one method, kept in the store with what they cost.

    The cost is what the method costs on its own: shared artifacts that another method has paid for are added.
    """

    def __init__(
        self, experiment: Experiment, method: AttributionMethod, config: MethodConfig, context: AttributionContext
    ) -> None:
        self._store: ArtifactStore = experiment.store
        self._method, self._context, self._progress = method, context, experiment.progress
        self._name = row_name(config.name, config.changed)
        target = experiment.target.find(experiment.store) if context.access >= Access.MODEL else None
        self.spec: Spec = {
            "format": _SCORING_FORMAT,
            "method": f"{config.cls.__module__}.{config.cls.__qualname__}",
            "options": config.options,
            "code": code_hash(config.cls),
            "train": experiment.train.content_hash,
            "seed": context.seed,
            "weights": target.digest if target else None,
        }
        inputs = method.inputs_hash()
        if inputs:
            self.spec = {**self.spec, "inputs": inputs}
        self.cost = CostRecord(prepare_seconds=0, seconds_per_query=0, peak_bytes=0, stored_bytes=0)
        self.hardware: dict[str, Any] = {}
        self.versions: dict[str, str] = {}

    def scores(self, query_sets: Mapping[str, Queries]) -> dict[str, Tensor]:
        """float32 ``(num_queries, num_train)`` for every query set; computed where they are not in the store."""
        pieces = {
            (name, begin): queries[begin : begin + _QUERIES_PER_PIECE]
            for name, queries in query_sets.items()
            for begin in range(0, len(queries), _QUERIES_PER_PIECE)
        }
        found = {key: self._store.find("scores", self._piece_spec(piece)) for key, piece in pieces.items()}
        prepared = self._store.find("preparations", self.spec)
        if prepared is None or None in found.values():
            prepared = self._prepare()
            total = sum(len(piece) for key, piece in pieces.items() if found[key] is None)
            with self._progress.task(f"{self._name}: scoring {total} queries", total) as task:
                for key, piece in pieces.items():
                    if found[key] is None:
                        found[key] = self._score(piece)
                        task.advance(len(piece))
        artifacts = {key: artifact for key, artifact in found.items() if artifact is not None}
        self._add_up(prepared, list(artifacts.values()), sum(len(piece) for piece in pieces.values()))
        return {
            name: torch.cat([artifacts[key].load_tensors("scores")["scores"] for key in pieces if key[0] == name])
            for name in query_sets
        }

    def _prepare(self) -> Artifact:
        with self._measure() as cost:
            start(self._method, self._context)

        def build(staging: Staging) -> None:
            staging.save_json("cost", {**cost, "hardware": hardware(self._context.device), "versions": versions()})

        return self._store.get_or_create("preparations", self.spec, build)

    def _score(self, piece: Queries) -> Artifact:
        def build(staging: Staging) -> None:
            with self._measure() as cost:
                scores = score(self._method, piece)
            staging.save_tensors("scores", {"scores": scores})
            costs.append(cost)

        costs: list[dict[str, Any]] = []
        artifact = self._store.get_or_create("scores", self._piece_spec(piece), build)
        if costs:
            # Apart from the scores, whose checksum must not depend on the clock.
            self._store.get_or_create("scoring-costs", self._piece_spec(piece), lambda s: s.save_json("cost", costs[0]))
        return artifact

    @contextmanager
    def _measure(self) -> Iterator[dict[str, Any]]:
        """Yield what fills with the cost of the block: its own, and that of the shared artifacts it found."""
        result: dict[str, Any] = {}
        shared = self._context.shared
        with measure(self._context.device) as cost, shared.watch() if shared else nullcontext(Usage()) as usage:
            yield result
        result["seconds"] = cost.seconds + usage.seconds
        result["compile_seconds"] = cost.compile_seconds
        result["peak_bytes"] = max(cost.peak_bytes, usage.peak_bytes)
        # What the method keeps for these data and options; its folder also holds that of other runs.
        result["stored"] = {**self._context.store.used, **usage.stored}

    def _piece_spec(self, piece: Queries) -> Spec:
        return {**self.spec, "queries": ImageSet(piece.images, piece.ids).content_hash}

    def _add_up(self, prepared: Artifact, artifacts: list[Artifact], num_queries: int) -> None:
        preparation = prepared.load_json("cost")
        pieces = [self._store.find("scoring-costs", artifact.spec) for artifact in artifacts]
        costs = [piece.load_json("cost") for piece in pieces if piece is not None]
        self.hardware, self.versions = preparation["hardware"], preparation["versions"]
        stored = {name: size for cost in (preparation, *costs) for name, size in cost["stored"].items()}
        self.cost = CostRecord(
            prepare_seconds=preparation["seconds"],
            seconds_per_query=sum(cost["seconds"] for cost in costs) / num_queries,
            peak_bytes=max([preparation["peak_bytes"], *(cost["peak_bytes"] for cost in costs)]),
            stored_bytes=sum(stored.values()),
            compile_seconds=preparation["compile_seconds"] + sum(cost["compile_seconds"] for cost in costs),
        )


def evaluate(scores: Tensor, queries: Queries, truth: GroundTruth) -> QuerySetResult:
    """The LDS of scores against a ground truth, with its intervals."""
    per_query = linear_datamodeling_score(scores, truth.masks, truth.outputs)
    predictions = predict_outputs(scores, truth.masks)
    interval = lds_interval(predictions, truth.outputs)
    mean, std = published_bootstrap(predictions, truth.outputs)
    return QuerySetResult(
        lds=per_query.mean().item(),
        interval=IntervalRecord(
            low=interval.low, high=interval.high, level=interval.level, resampled="queries and subsets"
        ),
        published_bootstrap=PublishedBootstrap(mean=mean, std=std, num_resamples=64),
        standard_error=standard_error(per_query),
        undefined_queries=int(undefined_queries(scores, truth.masks, truth.outputs).sum()),
        per_query=per_query.tolist(),
        query_ids=list(queries.ids),
        queries_hash=ImageSet(queries.images, queries.ids).content_hash,
        ground_truth_hash=truth.hash,
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
    settings = asdict(config.settings)
    # Where data lies and whether it may be downloaded is this machine's affair; what it holds is in the hash.
    data = {key: value for key, value in config.data.items() if key not in ("root", "download")}
    return Record(
        dataset=experiment.label,
        preset=config.preset,
        protocol=protocol,
        overrides=config.overrides,
        method=row_name(method.name, method.changed),
        method_class=f"{method.cls.__module__}.{method.cls.__qualname__}",
        options=method.options,
        access=method.cls.access.name,
        tuned_on=method.tuned_on,
        settings=settings,
        data=data,
        num_train=len(experiment.train),
        image_shape=list(experiment.train.image_shape),
        train_hash=experiment.train.content_hash,
        setting_hash=setting_hash(experiment, config),
        results=results,
        cost=scoring.cost,
        versions=scoring.versions,
        hardware=scoring.hardware,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def setting_hash(experiment: Experiment, config: Config) -> str:
    """Identifies data and settings: what records of one table share, and what a choice of options is bound to."""
    hashes = [experiment.train.content_hash, experiment.validation.content_hash]
    return digest_text(canonical([*hashes, asdict(config.settings)]))[:32]


def code_hash(cls: type[Any]) -> str:
    """SHA-256 of the source a method consists of, so that scores of an edited method are not taken for the new one's.

    The class's module; for a module inside a package of its own (not directly among the built-ins), all of the package's
    modules.
    """
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return ""
    path = Path(file)
    package = cls.__module__.rpartition(".")[0]
    whole = (path.parent / "__init__.py").is_file() and package != "attribench.methods"
    sources = sorted(path.parent.glob("*.py")) if whole else [path]
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def hardware(device: torch.device) -> dict[str, Any]:
    """What the costs were measured on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"machine": platform.machine(), "cpu_cores": os.cpu_count(), "device": str(device), "gpu": gpu}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("attribench", "torch", "lightning", "diffusers", "numpy", "scikit-learn", "traker")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
