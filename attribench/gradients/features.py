"""Projected gradients as features: computed once, kept in chunks, shared by every method that asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.progress import Task
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.diffusion.digests import model_digest
from attribench.diffusion.parameters import choose, parameters_spec
from attribench.errors import AttribenchError
from attribench.gradients.budget import shortage
from attribench.gradients.factored import FactoredProjection
from attribench.gradients.feature_set import FeatureSet, Origin
from attribench.gradients.kronecker import kronecker_layers
from attribench.gradients.needs import LIBRARY_BYTES, PIECE, joined, stored_bytes
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import Example, num_parameters, summed_gradients
from attribench.gradients.plan import Part, Plan
from attribench.gradients.projection import Projection
from attribench.method import AttributionContext, Needs, Queries
from attribench.store.artifacts import Artifact, Spec, Staging
from attribench.store.code import ROOT, source_hash
from attribench.store.files import canonical

_KIND = "gradients"

#: The files that decide features; relative to the package.
DECISIVE = (
    "gradients/features.py", "gradients/feature_set.py", "gradients/factored.py", "gradients/kronecker.py",
    "gradients/layerwise.py", "gradients/options.py",
    "gradients/outputs.py", "gradients/per_sample.py",
    "gradients/plan.py", "gradients/projection.py", "diffusion/digests.py", "diffusion/inputs.py",
    "diffusion/noise.py", "diffusion/parameters.py", "data/image_sets.py", "computing/device.py", "computing/seeding.py",
)  # fmt: skip

_LAYERS_ONLY = "needs a network made of 2-d convolutions, linear layers, group and layer norms, and no other parameters"

#: Bytes of gradients that wait for their projection together: making the random matrix costs the same for one row as
#: for many.
_GATHERED_BYTES = {"cpu": 2**30, "cuda": 8 * 2**30}

#: Bytes of a chunk whose gradients are kept as they are; a killed computation loses one chunk at most.
_CHUNK_BYTES = 64 * 2**20
_LARGEST_CHUNK = 1024


class GradientFeatures:
    """Per-sample gradients of a model output: averaged over timesteps and draws of noise, projected, and kept.

    Features are found again by what they are: the weights, the options, the seed and the images' content. So methods that
    ask for the same ones share them, and the last checkpoint shares those of the target model it is. More timesteps or draws
    of noise add to what fewer of them left, see
    :attr:`attribench.gradients.options.FeatureOptions.stages`.

    Args:
        context: of the method that asks; it needs ``Access.MODEL`` at least.
        options: what the features are made of.

    Raises:
        AccessError: the method declared ``Access.DATA``.
    """

    #: Of their artifacts, in the shared store.
    KIND = _KIND

    def __init__(self, context: AttributionContext, options: FeatureOptions) -> None:
        self._context, self._options = context, options
        self._shared = context.shared_store()
        self._known: tuple[nn.Module, _Layout] | None = None

    def of(self, model: nn.Module, images: ImageSet | Queries) -> FeatureSet:
        """The features of ``images``; chunks that are not in the store are computed.

        Args:
            model: the target model or a checkpoint, as the context gave it.

        Raises:
            UsageError: the options name layers that the model does not have.
            AttribenchError: they do not fit into memory or on the disk; nothing has been computed then.
        """
        model = choose(model, self._options.layers)
        plan = self.plan(model, images)
        if plan.missing:
            reason = self._shortage([plan])
            if reason is not None:
                raise AttribenchError(reason)
        passes = sum(len(part.images) * len(part.terms) for part in plan.missing)
        with self._context.progress.task(f"gradients of {self._options.f} on {len(images)} images", passes) as task:
            loaders, chunks = [], []
            for parts in plan.chunks:
                made = [self._shared.get_or_create(_KIND, part.spec, self._builder(plan, part, task)) for part in parts]
                loaders.append(_mean(parts, made))
                chunks.append(([artifact.digest for artifact in made], sum(len(part.terms) for part in parts)))
        return FeatureSet(loaders, len(images), plan.projection.dim, Origin(self._shared, chunks))

    def needs(self, images: ImageSet, num_queries: int, checkpoints: bool = False) -> Needs:
        """What the features of ``images``, and of so many queries, take.

        Args:
            images: the train images.
            checkpoints: at every checkpoint, not at the target model.
        """
        context = self._context
        parts = []
        for model in self._models(checkpoints):
            plan = self.plan(model, images)
            trial = plan.trial(context, self._options) if plan.missing or num_queries else 0.0
            missing = [len(part.images) * len(part.terms) for part in plan.missing]
            terms = sum(len(stage) for stage in self._options.stages)
            pieces = [min(PIECE, num_queries - begin) for begin in range(0, num_queries, PIECE)]
            chunks = [len(part.images) for part in plan.missing] + pieces * len(self._options.stages)
            parts.append(
                Needs(
                    max((plan.memory(rows) for rows in chunks), default=0),
                    stored_bytes(plan.projection.dim, sum(chunks), len(chunks)),
                    trial * (sum(missing) + num_queries * terms) + sum(plan.projecting(rows) for rows in chunks),
                )
            )
        return joined(*parts)

    def trial(self, model: nn.Module, images: ImageSet) -> float:
        """Seconds that the gradient of one image at one timestep and draw takes, found out with a few."""
        return self.plan(choose(model, self._options.layers), images).trial(self._context, self._options)

    def layout(self, images: ImageSet, checkpoints: bool = False) -> tuple[int, int]:
        """The length of a feature, and how many images' are stored together.

        Raises:
            AttribenchError: the projection is not for this network.
        """
        layout = self._layout(self._first_model(checkpoints), images)
        return layout.projection.dim, min(layout.size, len(images))

    def left_over(self, images: ImageSet, checkpoints: bool = False) -> int:
        """Bytes that stay in use after features were made, see :meth:`attribench.gradients.plan.Plan.left_over`."""
        plan = self.plan(self._first_model(checkpoints), images)
        return plan.left_over(max(len(chunk[0].images) for chunk in plan.chunks))

    def _first_model(self, checkpoints: bool) -> nn.Module:
        return next(self._models(checkpoints))

    def _models(self, checkpoints: bool) -> Iterator[nn.Module]:
        context = self._context
        models: Iterable[nn.Module] = context.checkpoints() if checkpoints else [context.target_model()]
        return (choose(model, self._options.layers) for model in models)

    def refusal(self, images: ImageSet, checkpoints: bool = False) -> str | None:
        """Say why the features of ``images`` cannot be had here, or return None: for a method's ``skip_reason``.

        Args:
            checkpoints: of every checkpoint, not of the target model.
        """
        context = self._context
        if context.models is None:
            return "it needs a trained model, and there is none in this run"
        plans: list[Plan] = []
        try:
            for model in self._models(checkpoints):
                if not plans:  # before the store is searched for every chunk, of which there may be as many as images
                    reason = self._surely_lacking(model, images)
                    if reason is not None:
                        return reason
                plans.append(self.plan(model, images))
            return self._shortage(plans)
        except AttribenchError as error:
            return str(error)

    def _surely_lacking(self, model: nn.Module, images: ImageSet) -> str | None:
        """Say that there is no room on the disk even if all gradients in the store are among those asked for."""
        layout, stages, store = self._layout(model, images), len(self._options.stages), self._shared.store
        found = store.count(_KIND)
        rows = max(0, stages * len(images) - layout.size * found)
        parts = max(0, stages * math.ceil(len(images) / layout.size) - found)
        return self._lack(num_parameters(model), layout.projection, 0, stored_bytes(layout.projection.dim, rows, parts))

    def _layout(self, model: nn.Module, images: ImageSet | Queries) -> _Layout:
        if self._known is None or self._known[0] is not model:
            self._known = model, self._new_layout(model, images)
        return self._known[1]

    def _new_layout(self, model: nn.Module, images: ImageSet | Queries) -> _Layout:
        device = self._context.device
        length = num_parameters(model)
        projection_seed = derive_seed(self._context.seed, "projection") % 2**31  # trak's kernels take 32 bits
        options, inputs = self._options, self._context.inputs
        example = Example.of(inputs, inputs.seen(images))
        projection: Projection | FactoredProjection
        if options.projection == "factored":
            layers = kronecker_layers(model, example.shape, device, example.conditions)
            if layers is None:
                raise AttribenchError(f"--method.projection factored {_LAYERS_ONLY}.")
            projection = FactoredProjection(layers, length, options.proj_dim, projection_seed, device)
            length = projection.dim
        else:
            projection = Projection(options.projection, length, options.proj_dim, projection_seed, device)
        budget = _CHUNK_BYTES
        if projection.name not in ("identity", "factored"):
            budget = _GATHERED_BYTES.get(device.type, _GATHERED_BYTES["cpu"])
        return _Layout(example, projection, length, max(1, min(_LARGEST_CHUNK, budget // (4 * length))))

    def plan(self, model: nn.Module, images: ImageSet | Queries) -> Plan:
        """What is to be computed of the features of ``images``, and what of it is not in the store."""
        device, options = self._context.device, self._options
        images = self._context.inputs.seen(images)
        layout = self._layout(model, images)
        projection, length, size = layout.projection, layout.length, layout.size
        common = {
            "code": source_hash(*(ROOT / name for name in DECISIVE)),
            **model_spec(self._context, model),
            "f": options.f,
            "projection": projection.spec,
            "seed": self._context.seed,
            **({"normalized": True} if options.normalized else {}),
        }
        chunks = []
        for begin in range(0, len(images), size):
            chunk = images[begin : begin + size]
            own = {**common, "images": chunk.content_hash}
            chunks.append([Part(chunk, terms, {**own, "timesteps_and_draws": terms}) for terms in options.stages])
        missing = [part for chunk in chunks for part in chunk if self._shared.store.find(_KIND, part.spec) is None]
        return Plan(
            model,
            layout.example,
            num_parameters(model),
            length,
            projection,
            chunks,
            missing,
            device,
            options.normalized,
        )

    def _builder(self, plan: Plan, part: Part, task: Task) -> Callable[[Staging], None]:
        context, options, images = self._context, self._options, part.images

        def build(staging: Staging) -> None:
            with measure(context.device) as cost:
                gradients = summed_gradients(
                    plan.model,
                    context.inputs.clean(images),
                    images.ids,
                    part.terms,
                    output_function(options.f),
                    derive_seed(context.seed, "gradients"),
                    context.schedule,
                    context.device,
                    plan.row_bytes,
                    task.advance,
                    options.normalized,
                    plan.projection if isinstance(plan.projection, FactoredProjection) else None,
                    context.inputs.conditions(images),
                )
                features = plan.projection(gradients)
            if not torch.isfinite(features).all():
                raise AttribenchError(
                    f"The gradients of {options.f} of an image among {images.ids[0]!r}…{images.ids[-1]!r} are not finite."
                )
            staging.save_tensors("features", {"features": features})
            staging.note(peak_bytes=cost.peak_bytes)

        return build

    def make(self, model: nn.Module, images: ImageSet, spec: Spec, staging: Staging, task: Task) -> bool:
        """Write the payload of one missing part of a plan that was made anywhere; False: it is of another model or device."""
        plan = self.plan(model, images)
        for part in plan.missing:
            if canonical(part.spec) == canonical(spec):
                self._builder(plan, part, task)(staging)
                return True
        return False

    def _shortage(self, plans: Sequence[Plan]) -> str | None:
        plans = [plan for plan in plans if plan.missing]
        if not plans:
            return None
        memory, disk = max(plan.memory() for plan in plans), sum(plan.disk() for plan in plans)
        return self._lack(plans[0].num_parameters, plans[0].projection, memory, disk)

    def _lack(
        self, num_parameters: int, projection: Projection | FactoredProjection, memory: int, disk: int
    ) -> str | None:
        return shortage(
            f"Computing gradients of {num_parameters:,} parameters",
            memory + LIBRARY_BYTES,
            self._context.device,
            disk,
            self._shared.store.root,
            "A smaller --method.proj_dim needs less." if projection.name != "identity" else "",
        )


@dataclass(frozen=True, eq=False)
class _Layout:
    """How one model's gradients are projected, and in chunks of how many images they are kept."""

    example: Example
    projection: Projection | FactoredProjection
    length: int  # of what is added up for an image: a gradient, or a factored one
    size: int


def model_spec(context: AttributionContext, model: nn.Module) -> Spec:
    """What identifies a model in the specification of something made with it.

    That is its weights, which of them gradients are of, its noise schedule and its inputs.
    """
    return {"weights": model_digest(model), **parameters_spec(model), **context.schedule.spec, **context.inputs.spec}


def _mean(parts: Sequence[Part], artifacts: Sequence[Artifact]) -> Callable[[], Tensor]:
    """Loads the features of a chunk: the sums in ``artifacts`` over the number of their terms."""

    def load() -> Tensor:
        total, *others = (artifact.load_tensors("features")["features"] for artifact in artifacts)
        for other in others:
            total += other
        return total.div_(sum(len(part.terms) for part in parts))

    return load
