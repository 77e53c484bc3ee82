"""Influence functions with EK-FAC's curvature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attribench.computing.precision import float64_device
from attribench.errors import AttribenchError
from attribench.gradients.distributed import provide_features
from attribench.gradients.ekfac import Curvature, LayerCurvature, precondition
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.features import GradientFeatures
from attribench.gradients.needs import PIECE, block_bytes, products_seconds, total
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.search import DAMPINGS, check_damping, search_number
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Needs, Queries
from attribench.registry import register_method


@register_method("ekfac")
class EKFAC(AttributionMethod):
    """Influence ∇m(x)ᵀ(GGN + λ)⁻¹∇ℓ(n) with the EK-FAC curvature of the loss (arXiv 2410.13850, 2308.03296, 1806.03884).

    Σ over layers of ⟨U_Bᵀ∇m(x)U_A / (Λ + λ), U_Bᵀ∇ℓ(n)U_A⟩, without projection. ℓ is the loss on the train image and m the
    output of the query, both averaged over timesteps. The curvature is the generalised Gauss-Newton matrix, by Monte Carlo, of
    linear layers and convolutions; parameters of norms are left out. :class:`attribench.gradients.ekfac.Curvature` has the
    details.

    Our reading: the timesteps are evenly spaced where the paper draws 250 at random for every image; λ is relative to each
    layer's mean Λ, as arXiv 2308.03296 has it, where arXiv 2410.13850 takes 1e-8 for all layers. Gradients of all parameters
    are kept for every train image; where there is no room for them, the method says so.

    Args:
        f: m, the output of the query; with the loss, a train image that lowers it is a proponent.
        num_timesteps: gradients and curvature are averaged over so many evenly spaced timesteps.
        damping: λ of a layer as a share of the mean of its Λ. The default comes from a pilot on validation queries of digits.
        noise_draws: gradients and curvature are averaged over so many draws of noise at every timestep.
        layers: the parameters that gradients are of, by patterns of their names, separated by commas, such as ``attn*``; none:
            all, or LoRA's where the model has one. Parameters that are frozen never count.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL

    def __init__(
        self,
        f: ModelOutput = "loss",
        num_timesteps: int = 10,
        damping: float = 0.01,
        noise_draws: int = 1,
        layers: str = "",
    ) -> None:
        check_damping(damping)
        self._queries = FeatureOptions(f, num_timesteps, "identity", noise_draws=noise_draws, layers=layers)
        self._train = FeatureOptions("loss", num_timesteps, "identity", noise_draws=noise_draws, layers=layers)
        self._damping = damping
        self._prepared: tuple[FeatureSet, list[LayerCurvature]] | None = None

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the damping, then the number of timesteps."""
        return search_number(evaluate, options, "damping", DAMPINGS)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when gradients or curvature do not fit, and networks whose layers are of another kind."""
        reason = GradientFeatures(context, self._train).refusal(context.train)
        return reason or Curvature(context, self._train).refusal(context.target_model(), context.train)

    def needs(self, context: AttributionContext, num_queries: int) -> Needs:
        """Of gradients of all parameters, of the curvature, and of the scores."""
        model, features, count = context.target_model(), GradientFeatures(context, self._train), len(context.train)
        length, chunk = features.layout(context.train)
        block, held = block_bytes(count, length, chunk)
        queries = 4 * length * min(PIECE, num_queries)
        # Features and what becomes of them in float64, beside train images' and the layers'.
        scoring = held + 2 * block + 6 * queries + 2 * 4 * length
        curvature = Curvature(context, self._train).needs(model, context.train, features.trial(model, context.train))
        seconds = 2 * products_seconds(num_queries, count, length, context.device.type)  # in float64
        left_over = features.left_over(context.train)
        return total(
            features.needs(context.train, num_queries), curvature, Needs(scoring, 0, seconds), left_over=left_over
        )

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients, unless another method has, and the curvature."""
        model = context.target_model()
        provide_features(context, self._train, model)
        features = GradientFeatures(context, self._train).of(model, context.train)
        self._prepared = features, Curvature(context, self._train).layers(model, context.train)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 scores ``(num_queries, num_train)``."""
        if self._prepared is None:
            raise AttribenchError("EKFAC is not prepared: call start(method, context) first.")
        train, curvature = self._prepared
        device = float64_device(self.context.device)
        features = GradientFeatures(self.context, self._queries).of(self.context.target_model(), queries)
        rows = []
        for block in features.blocks():
            solved = precondition(block.to(device, torch.float64), curvature, self._damping)
            columns = [(solved @ other.to(device, torch.float64).T).cpu() for other in train.blocks()]
            rows.append(torch.cat(columns, dim=1))
        return torch.cat(rows)
