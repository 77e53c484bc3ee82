"""GAS: gradient similarity along the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from attribench.gradients.features import FeatureOptions, GradientFeatures
from attribench.gradients.projection import ProjectionName
from attribench.gradients.search import NUM_TIMESTEPS
from attribench.gradients.similarity import mean_similarity
from attribench.method import Access, AttributionContext, AttributionMethod, Queries
from attribench.registry import register_method


@register_method("gas")
class GAS(AttributionMethod):
    """GAS (arXiv 2201.10055): cosines of loss gradients, averaged over training checkpoints.

    TracInCP without the influence of how long a gradient is. The checkpoints are those that the target model's training
    stored, with equal weights.

    Args:
        num_timesteps: gradients are averaged over so many evenly spaced timesteps, one draw of noise each.
        projection: of the gradients: ``identity`` (none), ``basic`` (CPU or GPU), ``cuda`` (trak's kernel), or ``auto``:
            ``identity`` up to 8 · proj_dim parameters, beyond it ``cuda`` where it works and ``basic`` elsewhere.
        proj_dim: length of a projected gradient.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.CHECKPOINTS
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"num_timesteps": NUM_TIMESTEPS}

    def __init__(self, num_timesteps: int = 10, projection: ProjectionName = "auto", proj_dim: int = 32768) -> None:
        self._options = FeatureOptions("loss", num_timesteps, projection, proj_dim)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when the gradients do not fit into memory or on the disk."""
        return GradientFeatures(context, self._options).refusal(context.train, checkpoints=True)

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients at every checkpoint, unless another method has."""
        features = GradientFeatures(context, self._options)
        for model in context.checkpoints():
            features.of(model, context.train)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``: cosines, averaged."""
        context = self.context
        features = GradientFeatures(context, self._options)
        return mean_similarity(features, context.checkpoints(), queries, context.train, "cosine")
