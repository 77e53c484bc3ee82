"""Gradient similarity: the simplest attribution that looks at the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

from torch import Tensor

from attribench.errors import UsageError
from attribench.gradients.features import FeatureOptions, GradientFeatures
from attribench.gradients.projection import ProjectionName
from attribench.gradients.search import NUM_TIMESTEPS
from attribench.gradients.similarity import mean_similarity
from attribench.method import Access, AttributionContext, AttributionMethod, Queries
from attribench.registry import register_method
from attribench.similarity import Kind


@register_method("gradient")
class Gradient(AttributionMethod):
    """Similarity of the loss gradients of query and train image, at the target model (Charpiat et al., 2019).

    Args:
        similarity: ``dot`` or ``cosine``.
        num_timesteps: gradients are averaged over so many evenly spaced timesteps, one draw of noise each.
        projection: of the gradients: ``identity`` (none), ``basic`` (CPU or GPU), ``cuda`` (trak's kernel), or ``auto``:
            ``identity`` up to 8 · proj_dim parameters, beyond it ``cuda`` where it works and ``basic`` elsewhere.
        proj_dim: length of a projected gradient.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"num_timesteps": NUM_TIMESTEPS}

    def __init__(
        self,
        similarity: Kind = "cosine",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
    ) -> None:
        if similarity not in get_args(Kind):
            raise UsageError(f"similarity must be 'dot' or 'cosine'; got {similarity!r}.")
        self._similarity: Kind = similarity
        self._options = FeatureOptions("loss", num_timesteps, projection, proj_dim)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when the gradients do not fit into memory or on the disk."""
        return GradientFeatures(context, self._options).refusal(context.train)

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients, unless another method has."""
        GradientFeatures(context, self._options).of(context.target_model(), context.train)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``; cosines lie between -1 and 1."""
        context = self.context
        features = GradientFeatures(context, self._options)
        return mean_similarity(features, [context.target_model()], queries, context.train, self._similarity)
