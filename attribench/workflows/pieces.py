"""A method's scores of some queries: made with what it may look at, and stored with what they cost, on any machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from attribench.computing.cost import measure
from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress, silent_progress
from attribench.configuration.resolution import MethodConfig
from attribench.data import ImageSet
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AttribenchError
from attribench.method import (
    Access,
    AttributionContext,
    AttributionMethod,
    ModelProvider,
    Queries,
    RetrainedModels,
    Sampling,
    score,
    start,
)
from attribench.settings import Runtime
from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging
from attribench.store.code import method_hash
from attribench.store.files import canonical
from attribench.store.parts import Distribute
from attribench.store.shared import SharedStore, Usage, added
from attribench.truth.experiment import Experiment, TargetModels
from attribench.truth.jobs import Job, Report, TrainJob, load_images, save_images
from attribench.truth.resources import Memory


def access_of(cls: type[Any]) -> Access:
    """What a method class declares.

    Raises:
        AttribenchError: it declares nothing.
    """
    access = getattr(cls, "access", None)
    if not isinstance(access, Access):
        raise AttribenchError(f"{cls.__name__} must declare `access = Access.DATA`, MODEL, CHECKPOINTS or RETRAINED.")
    return access


def context_of(
    cls: type[Any],
    train: ImageSet,
    store: ArtifactStore,
    runtime: Runtime,
    seed: int,
    models: ModelProvider | None,
    *,
    progress: Progress = silent_progress,
    retrained: RetrainedModels | None = None,
    distribute: Distribute | None = None,
) -> AttributionContext:
    """What a method gets to work with; models, and what was made from them, only as far as it declared."""
    access = access_of(cls)
    return AttributionContext(
        train=train,
        schedule=NoiseSchedule(),
        device=resolve_device(runtime.accelerator),
        seed=seed,
        store=store.scoped(f"methods/{cls.__qualname__}"),
        access=access,
        models=models,
        progress=progress,
        shared=SharedStore(store.scoped("shared")) if access >= Access.MODEL else None,
        retrained=retrained,
        distribute=distribute,
    )


@contextmanager
def measured(context: AttributionContext) -> Iterator[dict[str, Any]]:
    """Yield what fills with the cost of the block: its own, and that of the shared artifacts it found."""
    result: dict[str, Any] = {}
    shared = context.shared
    with measure(context.device) as cost, shared.watch() if shared else nullcontext(Usage()) as usage:
        yield result
    result["seconds"] = cost.seconds + usage.seconds
    result["others_seconds"] = added(cost.others_seconds, usage.others_seconds)
    result["compile_seconds"] = cost.compile_seconds
    result["peak_bytes"] = max(cost.peak_bytes, usage.peak_bytes)
    # What the method keeps for these data and options; its folder also holds that of other runs.
    result["stored"] = {**context.store.used, **usage.stored}


def score_piece(
    store: ArtifactStore, method: AttributionMethod, spec: Spec, piece: Queries, *, wait: bool = True
) -> Artifact:
    """The scores of some queries, computed unless they are in the store.

    Args:
        method: started.
        wait: wait for another process that is at it.
    """

    def build(staging: Staging) -> None:
        with measured(method.context) as cost:
            scores = score(method, piece)
        staging.save_tensors("scores", {"scores": scores})
        # Apart from the scores, whose checksum must not depend on the clock; and before them, so that none lack it.
        store.get_or_create("scoring-costs", spec, lambda s: s.save_json("cost", cost))

    return store.get_or_create("scores", spec, build, wait=wait)


@dataclass(frozen=True, eq=False)
class ScoreJob(Job):
    """Scores some queries; a process that has prepared the method keeps it for the next ones.

    Attributes:
        method: its class and options.
        queries: their content hash; they are in the store, as train images are.
        query_set, sampling: what else is known of them.
        target: what trained the target model, for methods that look at it.
        seed: of the run.
        spec: of the scores.
        prepared: kinds and specifications of what preparing the method reads.
        memory_needed: bytes beside images and libraries.
    """

    method: MethodConfig
    train: str
    queries: str
    query_set: str
    sampling: Sampling | None
    target: TrainJob | None
    seed: int
    spec: Spec
    prepared: tuple[tuple[str, Spec], ...]
    memory_needed: int
    image_bytes: int
    num_queries: int

    @property
    def name(self) -> str:
        return f"scores of {self.method.name} on {self.num_queries} queries {self.queries[:8]}"

    @property
    def cost(self) -> float:
        return float(self.num_queries)

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        # Images as bytes and as floats.
        return Memory.of(self.memory_needed, 5 * self.image_bytes, cuda=cuda)

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        images: list[tuple[str, Spec]] = [("images", {"content": content}) for content in (self.train, self.queries)]
        return [*images, *(self.target.outcome if self.target else []), *self.prepared]

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        return "scores", self.spec

    def find(self, store: ArtifactStore) -> Artifact | None:
        return store.find("scores", self.spec)

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        if method_hash(self.method.cls) != self.spec["code"]:  # type: ignore[arg-type]
            raise AttribenchError(
                f"The code of {self.method.name} here is not that of the command. Install the same on all nodes."
            )
        found = load_images(store, self.queries)
        piece = Queries.of(found, self.query_set, self.sampling)
        return score_piece(store, self._started(store, runtime), self.spec, piece, wait=False)

    def _started(self, store: ArtifactStore, runtime: Runtime) -> AttributionMethod:
        key = canonical([str(store.root), self.method.options, self.spec["method"], self.spec["code"], self.train, self.seed,
                         self.spec["weights"], runtime.accelerator])  # fmt: skip
        if _kept and _kept[0][0] == key:
            return _kept[0][1]
        _kept.clear()
        models = TargetModels(store, self.target) if self.target else None
        context = context_of(self.method.cls, load_images(store, self.train), store, runtime, self.seed, models)
        method: AttributionMethod = self.method.cls(**self.method.options)
        start(method, context)
        _kept.append((key, method))
        return method


#: The method that this process prepared last.
_kept: list[tuple[str, AttributionMethod]] = []

#: Has scores of pieces made on other machines: specifications and queries, what preparing the method read, its needs.
Elsewhere = Callable[[list[tuple[Spec, Queries]], AttributionMethod], None]


def on_nodes(experiment: Experiment, config: MethodConfig) -> Elsewhere:
    """Has pieces scored by the executor of ``experiment``."""
    sees_model = access_of(config.cls) >= Access.MODEL
    store, train = experiment.store, experiment.train

    def score_there(pieces: list[tuple[Spec, Queries]], method: AttributionMethod) -> None:
        context, jobs = method.context, []
        read = {**context.store.used, **(context.shared.store.used if context.shared else {})}
        found = (store.find_key(*name.rsplit("/", 1)) for name in read)
        prepared = tuple((artifact.kind, artifact.spec) for artifact in found if artifact is not None)
        needs = method.needs(context, max(len(piece) for _, piece in pieces))
        save_images(store, train)
        for spec, piece in pieces:
            images = ImageSet(piece.images, piece.ids, piece.labels)
            save_images(store, images)
            jobs.append(
                ScoreJob(
                    method=config,
                    train=train.content_hash,
                    queries=images.content_hash,
                    query_set=piece.name,
                    sampling=piece.sampling,
                    target=experiment.target if sees_model else None,
                    seed=context.seed,
                    spec=spec,
                    prepared=prepared,
                    memory_needed=needs.memory if needs else 0,
                    image_bytes=train.images.nbytes + piece.images.nbytes,
                    num_queries=len(piece),
                )
            )
        total = sum(len(piece) for _, piece in pieces)
        with experiment.progress.task(f"{config.name}: scoring {total} queries on all nodes", total) as task:
            experiment.run_jobs(task, jobs)

    return score_there
