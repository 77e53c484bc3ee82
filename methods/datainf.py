"""DataInf: influence with a curvature whose inverse has a closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from attribench.computing.precision import float64_device
from attribench.diffusion.parameters import choose, trainable
from attribench.errors import AttribenchError
from attribench.gradients.distributed import provide_features
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.features import GradientFeatures
from attribench.gradients.needs import PIECE, block_bytes, products_seconds, total
from attribench.gradients.options import FeatureOptions
from attribench.gradients.search import check_damping, search_number
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Needs, Queries
from attribench.registry import register_method

#: λ as a multiple of the mean squared entry of a layer's gradients. A layer of d entries has squared lengths of d such
#: means: beyond d hardly anything but the dot product is left.
_DAMPINGS = (1e-2, 0.1, 1.0, 10.0, 1e2, 1e3, 1e4)


@register_method("datainf")
class DataInf(AttributionMethod):
    """DataInf: ∇ℓ(x)ᵀH⁻¹∇ℓ(n), H⁻¹ layer by layer the mean over i of (g_i·g_iᵀ + λI)⁻¹ (arXiv 2310.00902).

    The mean of inverses in place of the inverse of the mean makes a closed form: with v, g_i and g_n the parts of the loss
    gradients of query and train images that belong to a layer,

        H⁻¹v = 1/λ [v − 1/N Σ_i (v·g_i) / (λ + g_i·g_i) g_i],

    and the score is the sum over layers of g_n·H⁻¹v. Gradients are averaged over timesteps, and not projected: a projection
    would mix the layers. Where there is no room for gradients of all parameters, the method says so.

    Checked against the authors' published program (facts, no code of theirs): the closed form, and λ as 0.1 times the mean,
    over train images and entries, of a layer's squared gradient. Their layers are the matrices of a LoRA; our reading: a
    layer is a module's own parameters, weight and bias together. Proponents are positive, as for generated queries there.

    Args:
        num_timesteps: gradients are averaged over so many evenly spaced timesteps.
        damping: λ of a layer as a multiple of the mean squared entry of the train images' gradients.
        noise_draws: gradients are averaged over so many draws of noise at every timestep.
        layers: the parameters that gradients are of, by patterns of their names, separated by commas, such as ``attn*``; none:
            all, or LoRA's where the model has one. Parameters that are frozen never count.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL

    def __init__(self, num_timesteps: int = 10, damping: float = 0.1, noise_draws: int = 1, layers: str = "") -> None:
        check_damping(damping)
        self._options = FeatureOptions("loss", num_timesteps, "identity", noise_draws=noise_draws, layers=layers)
        self._damping = damping
        self._curvature: _Curvature | None = None

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the damping, then the number of timesteps."""
        return search_number(evaluate, options, "damping", _DAMPINGS)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when the gradients do not fit into memory or on the disk."""
        return GradientFeatures(context, self._options).refusal(context.train)

    def needs(self, context: AttributionContext, num_queries: int) -> Needs:
        """Of gradients of all parameters, and of the scores."""
        features, count = GradientFeatures(context, self._options), len(context.train)
        length, chunk = features.layout(context.train)
        block, held = block_bytes(count, length, chunk)
        copies = 2 if block < 4 * length * count else 1  # in float64: of one block after the other
        scoring = held + 2 * copies * block + 5 * 4 * length * min(PIECE, num_queries)
        left_over = features.left_over(context.train)
        # Three products with all gradients, in float64, which takes about twice as long.
        seconds = 2 * products_seconds(3 * num_queries, count, length, context.device.type)
        return total(features.needs(context.train, num_queries), Needs(scoring, 0, seconds), left_over=left_over)

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients, unless another method has, and each layer's λ."""
        model = context.target_model()
        provide_features(context, self._options, model)
        train = GradientFeatures(context, self._options).of(model, context.train)
        device = float64_device(context.device)
        self._curvature = _Curvature.of(train, layer_slices(choose(model, self._options.layers)), self._damping, device)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 scores ``(num_queries, num_train)``."""
        if self._curvature is None:
            raise AttribenchError("DataInf is not prepared: call start(method, context) first.")
        features = GradientFeatures(self.context, self._options).of(self.context.target_model(), queries)
        return torch.cat([self._curvature.scores(block) for block in features.blocks()])


@dataclass(frozen=True, eq=False)
class _Curvature:
    """Each layer's λ, and what is needed for the closed form.

    Args:
        squares: float64 ``(num_layers, num_train)``: g_i·g_i.
        lambdas: float64 ``(num_layers,)``; 0 for a layer without any gradient.
    """

    train: FeatureSet
    layers: list[slice]
    squares: Tensor
    lambdas: Tensor
    device: torch.device

    @classmethod
    def of(cls, train: FeatureSet, layers: list[slice], damping: float, device: torch.device) -> _Curvature:
        parts = []
        for block in train.blocks():
            gradients = block.to(device, torch.float64)
            parts.append(torch.stack([gradients[:, layer].square().sum(1) for layer in layers]))
        squares = torch.cat(parts, dim=1)
        sizes = torch.tensor([layer.stop - layer.start for layer in layers], dtype=torch.float64, device=device)
        return cls(train, layers, squares, damping * squares.mean(1) / sizes, device)

    def scores(self, queries: Tensor) -> Tensor:
        """Scores of queries whose gradients are ``(num_queries, num_parameters)``."""
        queries = queries.to(self.device, torch.float64)
        solved, at = queries.clone(), 0
        for block in self.train.blocks():
            gradients, end = block.to(self.device, torch.float64), at + len(block)
            for layer, squares, lam in zip(self.layers, self.squares[:, at:end], self.lambdas, strict=True):
                if lam > 0:
                    shares = queries[:, layer] @ gradients[:, layer].T / (lam + squares)
                    solved[:, layer] -= shares @ gradients[:, layer] / self.train.num_samples
            at = end
        for layer, lam in zip(self.layers, self.lambdas, strict=True):
            solved[:, layer] *= 1 / lam if lam > 0 else 0.0
        columns = [(solved @ block.to(self.device, torch.float64).T).cpu() for block in self.train.blocks()]
        return torch.cat(columns, dim=1)


def layer_slices(network: nn.Module) -> list[slice]:
    """Where each module's own parameters lie in a gradient of all that are not frozen, in their order."""
    slices, at = [], 0
    parameters = ((name.rpartition(".")[0], parameter.numel()) for name, parameter in trainable(network).items())
    for _, own in groupby(parameters, key=lambda pair: pair[0]):
        end = at + sum(size for _, size in own)
        slices.append(slice(at, end))
        at = end
    return slices
