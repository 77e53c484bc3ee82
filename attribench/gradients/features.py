"""Projected gradients as features: computed once, kept in chunks, shared by every method that asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.progress import Task
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.diffusion.noise import NUM_TIMESTEPS
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.budget import shortage
from attribench.gradients.outputs import ModelOutput, output_function
from attribench.gradients.per_sample import batch_size, mean_gradients, num_parameters
from attribench.gradients.projection import Projection, ProjectionName
from attribench.method import AttributionContext, Queries
from attribench.store.artifacts import Artifact, Spec, Staging
from attribench.store.code import ROOT, source_hash

_KIND = "gradients"

#: The files that decide features; relative to the package.
_DECISIVE = (
    "gradients/features.py", "gradients/outputs.py", "gradients/per_sample.py", "gradients/projection.py",
    "diffusion/noise.py", "data/image_sets.py", "computing/device.py", "computing/seeding.py",
)  # fmt: skip

#: Bytes of gradients that wait for their projection together: making the random matrix costs the same for one row as
#: for many.
_GATHERED_BYTES = {"cpu": 2**30, "cuda": 8 * 2**30}

#: Bytes of a chunk whose gradients are kept as they are; a killed computation loses one chunk at most.
_CHUNK_BYTES = 64 * 2**20
_LARGEST_CHUNK = 1024


@dataclass(frozen=True)
class FeatureOptions:
    """What features are made of.

    Args:
        f: the model output whose gradients are taken; see :func:`attribench.gradients.outputs.output_function`.
        num_timesteps: K: gradients are averaged over ``range(0, 1000, 1000 // K)``, which are more than K timesteps where
            K does not divide 1000.
        projection: see :class:`attribench.gradients.projection.Projection`.
        proj_dim: length of a projected gradient.

    Raises:
        UsageError: an option is out of range.
    """

    f: ModelOutput = "loss"
    num_timesteps: int = 10
    projection: ProjectionName = "auto"
    proj_dim: int = 32768

    def __post_init__(self) -> None:
        output_function(self.f)
        if not 1 <= self.num_timesteps <= NUM_TIMESTEPS:
            raise UsageError(f"num_timesteps must lie in 1..{NUM_TIMESTEPS}; got {self.num_timesteps}.")
        if self.projection != "cuda":  # whether that one works depends on the device
            Projection(self.projection, 1, self.proj_dim, 0, torch.device("cpu"))

    @property
    def timesteps(self) -> list[int]:
        """The timesteps gradients are averaged over."""
        return list(range(0, NUM_TIMESTEPS, NUM_TIMESTEPS // self.num_timesteps))


class FeatureSet:
    """Features of some images, on disk; only what is iterated over is in memory.

    Attributes:
        num_samples: N.
        dimensions: D.
    """

    def __init__(self, loaders: Sequence[Callable[[], Tensor]], num_samples: int, dimensions: int) -> None:
        self._loaders = loaders
        self.num_samples, self.dimensions = num_samples, dimensions

    @classmethod
    def of(cls, chunks: Sequence[Tensor]) -> FeatureSet:
        """Take matrices ``(n, D)`` that are in memory already."""
        return cls([chunk.clone for chunk in chunks], sum(map(len, chunks)), chunks[0].shape[1])

    def blocks(self, max_bytes: int = 256 * 2**20) -> Iterator[Tensor]:
        """Iterate over float32 ``(n, D)`` on the CPU, in order: whole chunks, as many as ``max_bytes`` hold, or one."""
        held: list[Tensor] = []
        for loader in self._loaders:
            chunk = loader()
            if held and sum(part.nbytes for part in held) + chunk.nbytes > max_bytes:
                yield torch.cat(held)
                held = []
            held.append(chunk)
        if held:
            yield torch.cat(held) if len(held) > 1 else held[0]

    def load(self) -> Tensor:
        """All of it: float32 ``(N, D)``."""
        return torch.cat([loader() for loader in self._loaders])


class GradientFeatures:
    """Per-sample gradients of a model output: averaged over timesteps, projected, and kept.

    Features are found again by what they are: the weights, the options, the seed and the images' content. So methods that
    ask for the same ones share them, and the last checkpoint shares those of the target model it is.

    Args:
        context: of the method that asks; it needs ``Access.MODEL`` at least.
        options: what the features are made of.

    Raises:
        AccessError: the method declared ``Access.DATA``.
    """

    def __init__(self, context: AttributionContext, options: FeatureOptions) -> None:
        self._context, self._options = context, options
        self._shared = context.shared_store()

    def of(self, model: nn.Module, images: ImageSet | Queries) -> FeatureSet:
        """The features of ``images``; chunks that are not in the store are computed.

        Args:
            model: the target model or a checkpoint, as the context gave it.

        Raises:
            AttribenchError: they do not fit into memory or on the disk; nothing has been computed then.
        """
        plan = self._plan(model, images)
        if plan.missing:
            reason = self._shortage([plan])
            if reason is not None:
                raise AttribenchError(reason)
        artifacts = []
        count = len(self._options.timesteps)
        total = sum(len(plan.chunks[i]) for i in plan.missing) * count
        with self._context.progress.task(f"gradients of {self._options.f} on {len(images)} images", total) as task:
            for chunk, spec in zip(plan.chunks, plan.specs, strict=True):
                artifacts.append(self._shared.get_or_create(_KIND, spec, self._builder(plan, chunk, task)))
        loaders = [_loader(artifact) for artifact in artifacts]
        return FeatureSet(loaders, len(images), plan.projection.dim)

    def refusal(self, images: ImageSet, checkpoints: bool = False) -> str | None:
        """Say why the features of ``images`` cannot be had here, or return None: for a method's ``skip_reason``.

        Args:
            checkpoints: of every checkpoint, not of the target model.
        """
        context = self._context
        if context.models is None:
            return "it needs a trained model, and there is none in this run"
        models: Iterable[nn.Module] = context.checkpoints() if checkpoints else [context.target_model()]
        try:
            return self._shortage([self._plan(model, images) for model in models])
        except AttribenchError as error:
            return str(error)

    def _plan(self, model: nn.Module, images: ImageSet | Queries) -> _Plan:
        device = self._context.device
        length = num_parameters(model)
        projection_seed = derive_seed(self._context.seed, "projection") % 2**31  # trak's kernels take 32 bits
        options = self._options
        projection = Projection(options.projection, length, options.proj_dim, projection_seed, device)
        budget = _CHUNK_BYTES
        if projection.name != "identity":
            budget = _GATHERED_BYTES.get(device.type, _GATHERED_BYTES["cpu"])
        size = max(1, min(_LARGEST_CHUNK, budget // (4 * length)))
        chunks = [ImageSet(images.images[i : i + size], images.ids[i : i + size]) for i in range(0, len(images), size)]
        common = {
            "code": source_hash(*(ROOT / name for name in _DECISIVE)),
            "weights": model_digest(model),
            "f": options.f,
            "timesteps": options.timesteps,
            "projection": projection.spec,
            "seed": self._context.seed,
        }
        specs: list[Spec] = [{**common, "images": chunk.content_hash} for chunk in chunks]
        found = [self._shared.store.find(_KIND, spec) for spec in specs]
        missing = [i for i, artifact in enumerate(found) if artifact is None]
        return _Plan(model, length, projection, size, chunks, specs, missing)

    def _builder(self, plan: _Plan, chunk: ImageSet, task: Task) -> Callable[[Staging], None]:
        context, options = self._context, self._options

        def build(staging: Staging) -> None:
            with measure(context.device) as cost:
                gradients = mean_gradients(
                    plan.model,
                    chunk.images,
                    chunk.ids,
                    options.timesteps,
                    output_function(options.f),
                    derive_seed(context.seed, "gradients"),
                    context.schedule,
                    context.device,
                    task.advance,
                )
                features = plan.projection(gradients)
            if not torch.isfinite(features).all():
                raise AttribenchError(
                    f"The gradients of {options.f} of an image among {chunk.ids[0]!r}…{chunk.ids[-1]!r} are not finite."
                )
            staging.save_tensors("features", {"features": features})
            staging.note(peak_bytes=cost.peak_bytes)

        return build

    def _shortage(self, plans: Sequence[_Plan]) -> str | None:
        plans = [plan for plan in plans if plan.missing]
        if not plans:
            return None
        device = self._context.device
        return shortage(
            f"Computing gradients of {plans[0].num_parameters:,} parameters",
            max(plan.memory(device) for plan in plans),
            device,
            sum(plan.disk() for plan in plans),
            self._shared.store.root,
            "A smaller --method.proj_dim needs less." if plans[0].projection.name != "identity" else "",
        )


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to be computed for one model: chunks of images, and which of them are not in the store."""

    model: nn.Module
    num_parameters: int
    projection: Projection
    chunk_size: int
    chunks: list[ImageSet]
    specs: list[Spec]
    missing: list[int]

    def memory(self, device: torch.device) -> int:
        """Bytes needed at a time: weights, one batch's gradients, one chunk's, and of the projection what it holds.

        One batch's gradients are counted twice, since taking them needs about as much again; an eighth on top is for
        activations.
        """
        rows = max(len(self.chunks[i]) for i in self.missing)
        batch = min(rows, batch_size(self.num_parameters, device))
        gradients = 4 * self.num_parameters * (1 + 2 * batch + rows)
        return (gradients + self.projection.matrix_bytes + 2 * 4 * rows * self.projection.dim) * 9 // 8

    def disk(self) -> int:
        """Bytes that the missing chunks will take."""
        per_artifact = 4096  # specification and manifest
        return sum(4 * self.projection.dim * len(self.chunks[i]) + per_artifact for i in self.missing)


def model_digest(model: nn.Module) -> str:
    """SHA-256 of all that a model's outputs depend on: modules, configuration, parameters and buffers."""
    digest = hashlib.sha256(repr(model).encode())
    config = {key: value for key, value in dict(getattr(model, "config", {})).items() if not key.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _loader(artifact: Artifact) -> Callable[[], Tensor]:
    return lambda: artifact.load_tensors("features")["features"]
