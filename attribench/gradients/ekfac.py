"""The curvature of the training loss, layer by layer, in the eigenbasis of its Kronecker factors (EK-FAC)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.precision import to_float64
from attribench.computing.progress import Task
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.diffusion.noise import sample_noise_batch
from attribench.diffusion.parameters import choose, trainable
from attribench.errors import AttribenchError
from attribench.gradients.budget import shortage
from attribench.gradients.features import DECISIVE, model_spec
from attribench.gradients.kronecker import KroneckerLayer, kronecker_layers
from attribench.gradients.layerwise import LayerCall
from attribench.gradients.needs import LIBRARY_BYTES, products_seconds
from attribench.gradients.options import FeatureOptions
from attribench.gradients.per_sample import (
    Example,
    Pass,
    gradients_of,
    layerwise_bytes,
    noised_passes,
    num_parameters,
    own_bytes,
    pass_size,
    reproducible,
)
from attribench.method import AttributionContext, Needs
from attribench.store.artifacts import Artifact, Staging
from attribench.store.code import ROOT, source_hash

#: The files that decide the curvature; relative to the package.
_DECISIVE = ("gradients/ekfac.py", "computing/precision.py", *DECISIVE)

_NO_LAYERS = (
    "it needs a network made of 2-d convolutions, linear layers, group and layer norms, and no other parameters"
)


def _no_layers(model: nn.Module) -> str:
    """Why there are no layers to take factors of."""
    if any("lora_magnitude_vector" in name for name in trainable(model)):
        return (
            "the magnitudes of DoRA (lora_magnitude_vector) are no weights of a layer; --method.layers 'lora_A, lora_B' leaves "
            "them out"
        )
    return _NO_LAYERS


@dataclass(frozen=True, eq=False)
class LayerCurvature:
    """What EK-FAC knows of one layer.

    Attributes:
        inputs: float32 ``(inputs, inputs)``: U_A, whose columns are eigenvectors of A = Σ a·aᵀ.
        outputs: float32 ``(outputs, outputs)``: U_B, likewise of B = Σ g·gᵀ.
        eigenvalues: float32 ``(outputs, inputs)``: Λ, the mean square of each entry of U_Bᵀ G U_A.
    """

    layer: KroneckerLayer
    inputs: Tensor
    outputs: Tensor
    eigenvalues: Tensor


class Curvature:
    """EK-FAC's approximation of the generalised Gauss-Newton matrix of the loss on the train images.

    The loss of one noisy image, mean((ε_θ − ε)²) over its D numbers, is −log p(ε), up to a constant, with p normal of mean
    ε_θ and variance D/2. Targets drawn from p give gradients √(2/D)·Jᵀz with z standard normal, J the Jacobian of ε_θ, whose
    second moment is the Gauss-Newton matrix 2/D·JᵀJ. One z is drawn for each train image, timestep and draw of noise.

    A layer's factors are sums over all positions: the reading that is called *expand*, for convolutions KFC's but for its
    scale, which eigenvectors do not know. Λ is exact for these draws: the diagonal of their second moment, in the
    eigenbasis. What links layers with each other is left out, and so are the parameters of norms.

    Factors and Λ are two artifacts, each of one pass over the images; a killed computation loses one at most.

    Args:
        context: it needs ``Access.MODEL`` at least.
        options: its timesteps, draws of noise and layers count.
    """

    def __init__(self, context: AttributionContext, options: FeatureOptions) -> None:
        self._context, self._options = context, options

    def refusal(self, model: nn.Module, images: ImageSet) -> str | None:
        """Say why the curvature cannot be had here, or return None."""
        model = choose(model, self._options.layers)
        example = Example.of(self._context.inputs, self._context.inputs.seen(images))
        layers = kronecker_layers(model, example.shape, self._context.device, example.conditions)
        if layers is None:
            return _no_layers(model)
        if not layers:
            return "the network has neither a linear layer nor a convolution"
        return self._shortage(_Work(self._context, self._options, model, images, layers))

    def layers(self, model: nn.Module, images: ImageSet) -> list[LayerCurvature]:
        """The curvature of every layer, on the CPU.

        Raises:
            AttribenchError: the network is not of the kind, or it does not fit; nothing has been computed then.
        """
        model = choose(model, self._options.layers)
        example = Example.of(self._context.inputs, self._context.inputs.seen(images))
        found = kronecker_layers(model, example.shape, self._context.device, example.conditions)
        if found is None:
            raise AttribenchError(f"EK-FAC: {_no_layers(model)}.")
        work = _Work(self._context, self._options, model, images, found)
        reason = self._shortage(work)
        if reason is not None:
            raise AttribenchError(reason)
        shared = self._context.shared_store()
        total = 2 * len(images) * len(work.terms)
        with self._context.progress.task(f"curvature of the loss on {len(images)} images", total) as task:
            bases = shared.get_or_create("ekfac-bases", work.spec, work.build_bases(task))
            values = shared.get_or_create("ekfac-eigenvalues", work.spec, work.build_eigenvalues(bases, task))
        parts = [artifact.load_tensors("layers") for artifact in (bases, values)]
        return [
            LayerCurvature(layer, parts[0][f"{name}/inputs"], parts[0][f"{name}/outputs"], parts[1][name])
            for layer in found
            for name in (layer.name,)
        ]

    def needs(self, model: nn.Module, images: ImageSet, pass_seconds: float) -> Needs:
        """What the curvature takes.

        Args:
            pass_seconds: time of the gradient of one image at one timestep and draw.
        """
        model = choose(model, self._options.layers)
        example = Example.of(self._context.inputs, self._context.inputs.seen(images))
        layers = kronecker_layers(model, example.shape, self._context.device, example.conditions)
        if not layers or self._kept(work := _Work(self._context, self._options, model, images, layers)):
            return Needs(0, 0, 0.0)
        memory, disk = work.sizes()
        decompositions = sum(10 * size**3 for layer in layers for size in (layer.inputs, layer.outputs))
        passes = 3 * len(images) * len(work.terms)  # two, and what is made of them
        seconds = passes * pass_seconds + products_seconds(decompositions / 2, 1, 1, self._context.device.type)
        return Needs(memory, disk, seconds)

    def _kept(self, work: _Work) -> bool:
        store = self._context.shared_store().store
        return all(store.find(kind, work.spec) is not None for kind in ("ekfac-bases", "ekfac-eigenvalues"))

    def _shortage(self, work: _Work) -> str | None:
        if self._kept(work):
            return None
        memory, disk = work.sizes()
        return shortage(
            f"EK-FAC's curvature of {work.num_parameters:,} parameters",
            memory + LIBRARY_BYTES,
            self._context.device,
            disk,
            self._context.shared_store().store.root,
        )


class _Work:
    """The two passes over the train images."""

    def __init__(
        self,
        context: AttributionContext,
        options: FeatureOptions,
        model: nn.Module,
        images: ImageSet,
        layers: list[KroneckerLayer],
    ) -> None:
        self._context, self._model, self._images = context, model, context.inputs.seen(images)
        self.layers, self.num_parameters = layers, num_parameters(model)
        self.terms = [term for stage in options.stages for term in stage]
        self.spec = {
            "code": source_hash(*(ROOT / name for name in _DECISIVE)),
            **model_spec(context, model),
            "seed": context.seed,
            "images": images.content_hash,
            "timesteps_and_draws": sorted(self.terms),
        }
        example = Example.of(context.inputs, self._images)
        held = layerwise_bytes(model, example.shape, context.device, example.conditions) or 0
        seen = max((4 * 2 * layer.positions * (layer.inputs + layer.outputs) for layer in layers), default=0)
        #: Bytes of a row in either pass.
        self.row_bytes = (held + seen, held + own_bytes(self.num_parameters))

    def sizes(self) -> tuple[int, int]:
        """Bytes of memory at the peak, and on disk."""
        squares = sum(layer.inputs**2 + layer.outputs**2 for layer in self.layers)
        largest = max((max(layer.inputs, layer.outputs) ** 2 for layer in self.layers), default=0)
        passes = max(size * pass_size(size, self._context.device) for size in self.row_bytes)
        # Sums in float64, eigenvectors in float32, the workspace of one decomposition; Λ.
        memory = passes + (8 + 4) * squares + 4 * 8 * largest + (8 + 4) * self.num_parameters
        return memory, 4 * squares + 4 * self.num_parameters

    def build_bases(self, task: Task) -> Callable[[Staging], None]:
        def build(staging: Staging) -> None:
            with measure(self._context.device) as cost:
                vectors = self._bases(task)
            staging.save_tensors("layers", vectors)
            staging.note(peak_bytes=cost.peak_bytes)

        return build

    def build_eigenvalues(self, bases: Artifact, task: Task) -> Callable[[Staging], None]:
        def build(staging: Staging) -> None:
            with measure(self._context.device) as cost:
                values = self._eigenvalues(bases.load_tensors("layers"), task)
            staging.save_tensors("layers", values)
            staging.note(peak_bytes=cost.peak_bytes)

        return build

    def _bases(self, task: Task) -> dict[str, Tensor]:
        by_weight = {layer.weight.start: layer for layer in self.layers}
        sums: dict[str, Tensor] = {}

        def take(call: LayerCall, gradient: Tensor) -> None:
            layer = by_weight.get(call.weight.start) if call.weight is not None else None
            if layer is not None:
                for name, rows in zip(("inputs", "outputs"), layer.factors(call, gradient), strict=True):
                    flat = rows.reshape(-1, rows.shape[-1])
                    key = f"{layer.name}/{name}"
                    sums[key] = sums.get(key, 0.0) + to_float64(flat.T @ flat)

        gradients = gradients_of(self._model, self._context.device)
        with reproducible():
            for some in self._passes(self.row_bytes[0]):
                gradients.visit(some.noisy, some.timesteps, self._pseudo_loss(some), take, some.conditions)
                task.advance(len(some.noisy))
        return {key: torch.linalg.eigh(self._finite(total)).eigenvectors.float().cpu() for key, total in sums.items()}

    def _eigenvalues(self, bases: dict[str, Tensor], task: Task) -> dict[str, Tensor]:
        device, squares = self._context.device, dict[str, Tensor]()
        bases = {key: value.to(device) for key, value in bases.items()}
        gradients, count = gradients_of(self._model, device), 0
        with reproducible():
            for some in self._passes(self.row_bytes[1]):
                own = some.noisy.new_zeros(len(some.noisy), self.num_parameters)
                gradients.add(some.noisy, some.timesteps, self._pseudo_loss(some), own, some.conditions)
                for layer in self.layers:
                    left, right = (bases[f"{layer.name}/{side}"].to(own) for side in ("outputs", "inputs"))
                    rotated = left.T @ layer.matrices(own) @ right
                    squares[layer.name] = squares.get(layer.name, 0.0) + to_float64(rotated.square().sum(0))
                count += len(own)
                task.advance(len(own))
        return {name: (self._finite(total) / count).float().cpu() for name, total in squares.items()}

    def _passes(self, row_bytes: int) -> Iterator[Pass]:
        context, images, inputs = self._context, self._images, self._context.inputs
        rows = pass_size(row_bytes, context.device)
        together = min(rows, len(self.terms))
        like = next(self._model.parameters()).detach()
        seed = derive_seed(context.seed, "gradients")
        return noised_passes(
            inputs.clean(images),
            images.ids,
            self.terms,
            rows // together,
            together,
            seed,
            context.schedule,
            like,
            inputs.conditions(images),
        )

    def _pseudo_loss(self, some: Pass) -> Callable[[Tensor], Tensor]:
        """Its gradient with respect to a row's prediction is √(2/D)·z."""
        seed, shape = derive_seed(self._context.seed, "pseudo-targets"), some.noisy.shape[1:]
        drawn = [sample_noise_batch(seed, some.ids, timestep, draw, shape) for timestep, draw in some.terms]
        weights = torch.cat(drawn).to(some.noisy) * (2 / shape.numel()) ** 0.5
        return lambda predicted: (weights * predicted).sum()

    def _finite(self, total: Tensor) -> Tensor:
        if not torch.isfinite(total).all():
            raise AttribenchError("EK-FAC: the curvature of the loss is not finite: the model's gradients are not.")
        return total


def precondition(gradients: Tensor, curvature: list[LayerCurvature], damping: float) -> Tensor:
    """(GGN + λ)⁻¹ applied to gradients, layer by layer: U_B[(U_Bᵀ G U_A) / (Λ + λ)]U_Aᵀ.

    Args:
        gradients: float64 ``(n, num_parameters)``.
        damping: λ of a layer as a share of the mean of its Λ; positive.

    Returns:
        Like ``gradients``; 0 for parameters of layers that are left out, and for those that no output depends on.
    """
    result = torch.zeros_like(gradients)
    for part in curvature:
        left, right, values = (value.to(gradients) for value in (part.outputs, part.inputs, part.eigenvalues))
        mean = values.mean()
        if mean > 0:
            rotated = left.T @ part.layer.matrices(gradients) @ right
            part.layer.put(left @ (rotated / (values + damping * mean)) @ right.T, result)
    return result
