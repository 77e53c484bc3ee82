"""Gradients along the ways by which queries were sampled, projected like those of train images, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap

from attribench.computing.cost import measure
from attribench.computing.device import single_thread
from attribench.computing.progress import Task
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.diffusion.inputs import PixelInputs
from attribench.diffusion.noise import sample_noise_batch
from attribench.diffusion.parameters import choose
from attribench.diffusion.trajectory import ddim_trajectory, to_pixels
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.factored import FactoredProjection
from attribench.gradients.feature_set import FeatureSet, Origin
from attribench.gradients.features import DECISIVE, model_spec
from attribench.gradients.kronecker import kronecker_layers
from attribench.gradients.layerwise import Take, whole
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import loss_weights, output_function
from attribench.gradients.per_sample import (
    batch_size,
    gradients_of,
    layerwise_bytes,
    num_parameters,
    pass_size,
    reproducible,
)
from attribench.gradients.projection import Projection
from attribench.method import AttributionContext, Queries
from attribench.store.artifacts import Artifact, Spec, Staging
from attribench.store.code import ROOT, source_hash

_KIND = "trajectory-gradients"

#: The files that decide these features; relative to the package.
_DECISIVE = ("gradients/trajectories.py", "diffusion/trajectory.py", *DECISIVE)

#: Queries whose trajectories are computed and whose features are stored together, and bytes of their gradients, at most.
_LARGEST_CHUNK = 64
_CHUNK_BYTES = 2**30

#: How far the end of a trajectory may be from the query that it is said to have led to: grey levels of 255, the mean over an
#: image. Other processors and batches round otherwise, which moves some values by a level; what another model, seed or
#: number of steps gives is further away by far.
TOLERANCE = 1.0

_NO_LAYERS = (
    "it needs a network made of 2-d convolutions, linear layers, group and layer norms, and no other parameters"
)

_OTHER_MODEL = (
    "it follows models that predict the noise of DDPM's schedule, in pixels and without classes, and this is another"
)


class TrajectoryFeatures:
    """Gradients of a model output at the images that the model predicted on its way to a query, averaged over the way.

    At a step of timestep t on a query's way the network predicts an image x̂₀. Noise of level t is added to it anew, and the
    gradient of f is taken there. The average over steps and draws of noise is projected as
    :class:`attribench.gradients.features.GradientFeatures` projects with the same options, and noise is the same function of
    seed, query, timestep and draw. Each draw is kept by itself, so that more of them add to what is there.

    Args:
        context: of the method that asks; it needs ``Access.MODEL`` at least.
        options: f, projection and draws of noise.
        num_steps: so many evenly spaced steps are taken, the one nearest to the image among them; all where there are no more.

    Raises:
        AccessError: the method declared ``Access.DATA``.
    """

    def __init__(self, context: AttributionContext, options: FeatureOptions, num_steps: int) -> None:
        self._context, self._options, self._num_steps = context, options, num_steps
        self._shared = context.shared_store()

    def of(self, model: nn.Module, queries: Queries) -> FeatureSet:
        """The features of ``queries``; those that are not in the store are computed.

        Args:
            model: the target model, as the context gave it.

        Raises:
            UsageError: how the queries were sampled is not known.
            AttribenchError: their trajectories lead elsewhere, the network has layers that are not known, or the model's noise
                schedule, prediction or inputs are not those of the benchmark.
        """
        model = choose(model, self._options.layers)
        gradients = _Gradients(self._context, model, self._options, queries.images.shape[1:])
        size = max(1, min(_LARGEST_CHUNK, _CHUNK_BYTES // (4 * gradients.length)))
        common = {
            "code": source_hash(*(ROOT / name for name in _DECISIVE)),
            **model_spec(self._context, model),
            "f": self._options.f,
            "projection": gradients.projection.spec,
            "seed": self._context.seed,
        }
        parts = []  # of each chunk: its way, and the specification of each draw of noise
        for begin in range(0, len(queries), size):
            way = Way(queries[begin : begin + size], model, self._num_steps, self._context.device)
            parts.append((way, [{**common, **way.spec, "draw": draw} for draw in range(self._options.noise_draws)]))
        missing = [way for way, specs in parts for spec in specs if self._shared.store.find(_KIND, spec) is None]
        passes = sum(len(way.queries) * len(way.positions) for way in missing)
        loaders, chunks = [], []
        title = f"gradients of {self._options.f} along {len(queries)} trajectories"
        with self._context.progress.task(title, passes) as task:
            for way, specs in parts:
                made = [
                    self._shared.get_or_create(_KIND, spec, gradients.builder(way, draw, task))
                    for draw, spec in enumerate(specs)
                ]
                way.forget()
                loaders.append(_mean(made))
                chunks.append(([artifact.digest for artifact in made], len(made)))
        return FeatureSet(loaders, len(queries), gradients.projection.dim, Origin(self._shared, chunks))

    def refusal(self) -> str | None:
        """Say why trajectories' gradients cannot be had here, or return None: for a method's ``skip_reason``."""
        if not _is_followed(self._context):
            return _OTHER_MODEL
        if self._context.models is None:
            return None  # features in general say so
        train = self._context.train
        try:
            model = choose(self._context.target_model(), self._options.layers)
        except AttribenchError as error:
            return str(error)
        return _NO_LAYERS if layerwise_bytes(model, train.image_shape, self._context.device) is None else None


class Way:
    """How the model came to some queries.

    Args:
        queries: with their sampling.
        model: that they were sampled from.
        num_steps: so many evenly spaced steps are looked at, or all.
        device: where the model is.

    Attributes:
        positions: of these steps, counted from the image.

    Raises:
        UsageError: how the queries were sampled is not known.
    """

    def __init__(self, queries: Queries, model: nn.Module, num_steps: int, device: torch.device) -> None:
        if queries.sampling is None:
            raise UsageError(f"How the queries of the set '{queries.name}' were sampled is not known: no trajectory.")
        self.queries, self._model, self._device, self._sampling = queries, model, device, queries.sampling
        total = self._sampling.num_inference_steps
        taken = min(num_steps, total)
        self.positions = [number * total // taken for number in range(taken)]
        self._predictions: list[tuple[int, Tensor]] = []

    @property
    def spec(self) -> Spec:
        """What identifies the queries and the steps."""
        content = ImageSet(self.queries.images, self.queries.ids).content_hash
        return {"queries": content, "sampling": vars(self._sampling), "steps": self.positions}

    def predictions(self) -> list[tuple[int, Tensor]]:
        """Timestep and x̂₀, ``(num_queries, C, H, W)``, of each of the steps; computed once.

        Raises:
            AttribenchError: the trajectories do not lead to the queries.
        """
        if not self._predictions:
            self._predictions = self._follow()
        return self._predictions

    def forget(self) -> None:
        """Leave the memory to others."""
        self._predictions = []

    def _follow(self) -> list[tuple[int, Tensor]]:
        sampling, images = self._sampling, self.queries.images
        channels, height, width = images.shape[1:]
        shape, total = (channels, height, width), sampling.num_inference_steps
        found = []
        with single_thread(self._device):
            steps = ddim_trajectory(self._model, sampling.seeds, shape, total, sampling.eta, self._device)
            for number, step in enumerate(steps, start=1):
                if total - number in self.positions:
                    found.append((step.timestep, step.predicted))
        distances = (to_pixels(step.sample).float() - images.float()).abs().mean((1, 2, 3))
        worst = int(distances.argmax())
        if distances[worst] > TOLERANCE:
            raise AttribenchError(
                f"The trajectory of query {self.queries.ids[worst]!r} ends {distances[worst]:.0f} grey levels away from it, on "
                "average: it was not sampled so from this model."
            )
        return found[::-1]


class _Gradients:
    """Takes and projects the gradients along ways.

    Attributes:
        length: of what is added up for a query.
        projection: applied to it.
    """

    def __init__(
        self, context: AttributionContext, model: nn.Module, options: FeatureOptions, image_shape: Sequence[int]
    ) -> None:
        self._context, self._model, self._f, device = context, model, options.f, context.device
        if not _is_followed(context):
            raise AttribenchError(f"Gradients along trajectories: {_OTHER_MODEL}.")
        row_bytes = layerwise_bytes(model, image_shape, device)
        if row_bytes is None:
            raise AttribenchError(f"Gradients along trajectories: {_NO_LAYERS}.")
        self.length = num_parameters(model)
        self._take: Callable[[Tensor], Take] = whole
        self.projection: Projection | FactoredProjection
        seed = derive_seed(context.seed, "projection") % 2**31  # as of the train images' features
        if options.projection == "factored":
            layers = kronecker_layers(model, image_shape, device)
            if layers is None:
                raise AttribenchError(f"--method.projection factored: {_NO_LAYERS}.")
            self.projection = factored = FactoredProjection(layers, self.length, options.proj_dim, seed, device)
            self.length, self._take = factored.dim, factored.take
            row_bytes += factored.row_bytes
        else:
            self.projection = Projection(options.projection, self.length, options.proj_dim, seed, device)
        self._rows = pass_size(row_bytes, device)

    def builder(self, way: Way, draw: int, task: Task) -> Callable[[Staging], None]:
        """Builds what is stored: the mean over steps, projected, ``(num_queries, dim)``."""

        def build(staging: Staging) -> None:
            with measure(self._context.device) as cost:
                features = self.projection(self._averaged(way, draw, task))
            if not torch.isfinite(features).all():
                raise AttribenchError(f"The gradients of {self._f} along a query's trajectory are not finite.")
            staging.save_tensors("features", {"features": features})
            staging.note(peak_bytes=cost.peak_bytes)

        return build

    def _averaged(self, way: Way, draw: int, task: Task) -> Tensor:
        """Of each query, the mean over steps: ``(num_queries, length)``."""
        device, ids, predictions = self._context.device, way.queries.ids, way.predictions()
        together = min(self._rows, len(predictions))
        samples = min(batch_size(self.length, device), self._rows // together)
        gradients, output = gradients_of(self._model, device), output_function(self._f)
        result = torch.zeros(len(ids), self.length, device=device, dtype=predictions[0][1].dtype)
        weights = loss_weights(self._context.schedule).to(result)
        with reproducible():
            for begin in range(0, len(ids), samples):
                some = slice(begin, begin + samples)
                for first in range(0, len(predictions), together):
                    noisy, noise, times = self._noised(predictions[first : first + together], ids, some, draw)

                    def total(predicted: Tensor, noise: Tensor = noise, weight: Tensor = weights[times]) -> Tensor:
                        return vmap(output)(predicted, noise, weight).sum()

                    gradients.visit(noisy, times, total, self._take(result[some]))
                    task.advance(float(len(times)))
        return result.div_(len(predictions))

    def _noised(
        self, predictions: Sequence[tuple[int, Tensor]], ids: Sequence[str], some: slice, draw: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Some queries at some steps, step by step: noised x̂₀, noise, timesteps."""
        seed = derive_seed(self._context.seed, "gradients")
        noisy, noise, times = [], [], []
        for timestep, images in predictions:
            images = images[some]
            drawn = sample_noise_batch(seed, ids[some], timestep, draw, images.shape[1:]).to(images)
            noisy.append(self._context.schedule.add_noise(images, drawn, timestep))
            noise.append(drawn)
            times += [timestep] * len(images)
        return torch.cat(noisy), torch.cat(noise), torch.tensor(times, device=self._context.device)


def _is_followed(context: AttributionContext) -> bool:
    """Whether :func:`ddim_trajectory` knows the way: that of the benchmark's models."""
    return not context.schedule.spec and context.inputs == PixelInputs()


def _mean(artifacts: Sequence[Artifact]) -> Callable[[], Tensor]:
    """Loads the features of a chunk: the mean over draws of noise."""

    def load() -> Tensor:
        total, *others = (artifact.load_tensors("features")["features"] for artifact in artifacts)
        for other in others:
            total += other
        return total.div_(len(artifacts))

    return load
