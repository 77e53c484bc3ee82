"""TRAK: influence through a kernel of projected loss gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attribench.errors import AttribenchError
from attribench.gradients.features import FeatureOptions, GradientFeatures
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.projection import ProjectionName
from attribench.gradients.ridge import Ridge, check_regularization
from attribench.gradients.search import search_ridge
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Queries
from attribench.registry import register_method


@register_method("trak")
class TRAK(AttributionMethod):
    """TRAK on diffusion models: φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n) with the gradients of the loss (arXiv 2303.14186).

    One model, and no weight for how well it does on the train image, as D-TRAK's authors ran it (arXiv 2311.00500).

    Args:
        f: the model output whose gradients are features; see :func:`attribench.gradients.outputs.output_function`.
        num_timesteps: gradients are averaged over so many evenly spaced timesteps, one draw of noise each.
        projection: of the gradients: ``identity`` (none), ``basic`` (CPU or GPU), ``cuda`` (trak's kernel), or ``auto``:
            ``identity`` up to 8 · proj_dim parameters, beyond it ``cuda`` where it works and ``basic`` elsewhere.
        proj_dim: length of a projected gradient.
        regularization: λ as a share of the mean squared length of a train image's features; see
            :class:`attribench.gradients.ridge.Ridge`. The default comes from a pilot on validation queries of digits.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL

    def __init__(
        self,
        f: ModelOutput = "loss",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        regularization: float = 0.1,
    ) -> None:
        check_regularization(regularization)
        self._options = FeatureOptions(f, num_timesteps, projection, proj_dim)
        self._regularization = regularization
        self._ridge: Ridge | None = None

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose λ and the number of timesteps."""
        return search_ridge(evaluate, options)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when the gradients do not fit into memory or on the disk."""
        return GradientFeatures(context, self._options).refusal(context.train)

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients, unless another method has, and factorise their kernel."""
        features = GradientFeatures(context, self._options).of(context.target_model(), context.train)
        self._ridge = Ridge(features, self._regularization, context.device)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 scores ``(num_queries, num_train)``."""
        if self._ridge is None:
            raise AttribenchError("TRAK is not prepared: call start(method, context) first.")
        features = GradientFeatures(self.context, self._options).of(self.context.target_model(), queries)
        return self._ridge.scores(features)
