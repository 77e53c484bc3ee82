"""Gradient similarity: the simplest attribution that looks at the model."""

from __future__ import annotations

from attribench.computing.similarity import Kind, check_kind
from attribench.gradients.methods import SimilarityMethod
from attribench.gradients.projection import ProjectionName
from attribench.registry import register_method


@register_method("gradient")
class Gradient(SimilarityMethod):
    """Similarity of the loss gradients of query and train image, at the target model (Charpiat et al., 2019).

    Args:
        similarity: ``dot`` or ``cosine``.
    """

    def __init__(
        self,
        similarity: Kind = "cosine",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        noise_draws: int = 1,
        layers: str = "",
    ) -> None:
        super().__init__(num_timesteps, projection, proj_dim, noise_draws, layers)
        self.kind = check_kind(similarity)
