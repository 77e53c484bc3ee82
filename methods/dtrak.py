"""D-TRAK: TRAK with the gradients of another output than the loss."""

from __future__ import annotations

from attribench.gradients.methods import KernelMethod
from attribench.gradients.outputs import OUTPUTS, ModelOutput
from attribench.gradients.projection import ProjectionName
from attribench.registry import register_method


@register_method("dtrak")
class DTRAK(KernelMethod):
    """D-TRAK: φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n) with the gradients of mean(ε_θ²) (arXiv 2311.00500).

    Nothing in theory favours that output over the loss; it predicts retraining better. These gradients have more in
    common with each other than the loss's, so that a good λ is a smaller share of their mean squared length.
    """

    outputs = tuple(OUTPUTS)

    def __init__(
        self,
        f: ModelOutput = "mean-squared-l2-norm",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        regularization: float = 0.01,
        noise_draws: int = 1,
        layers: str = "",
    ) -> None:
        super().__init__(f, num_timesteps, projection, proj_dim, regularization, noise_draws, layers)
