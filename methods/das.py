"""DAS: how far the model's output moves when a train image is left out, to first order."""

from __future__ import annotations

from torch import Tensor

from attribench.gradients.methods import KernelMethod
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.projection import ProjectionName
from attribench.gradients.residuals import mean_residuals
from attribench.gradients.ridge import Ridge
from attribench.method import AttributionContext
from attribench.registry import register_method


@register_method("das")
class DAS(KernelMethod):
    """Diffusion attribution score: (φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n) · r(n) / (1 − h(n)))² (arXiv 2410.18639).

    One Newton step away from the train image n moves the output f of a linearised model by what is squared here. φ is the
    gradient of f = mean(ε_θ), of length 1 at every timestep, averaged over timesteps, then projected;
    h(n) = φ(n)ᵀ(ΦᵀΦ + λI)⁻¹φ(n) the leverage of n; r(n) = √(mean((ε_θ − ε)²)) its residual, averaged over the same
    timesteps.

    Checked against the authors' published programs (facts, no code of theirs): f, lengths of 1 before the average and the
    projection, h, and the square. Their programs differ in the residual: the older one averages roots over timesteps, as is
    done here by default; a later one first divides each timestep's roots by their length over all train images, which is
    ``normalize_residuals``. Our reading: gradients
    and residuals of several noise seeds are averaged before the kernel is made (``noise_draws``), and none over models;
    train images and queries have noise of their own.

    Which way f moves is in the sign that the square drops. Scores are then at least 0: all train images are proponents, more
    or less.

    Args:
        signed: report what is squared, before the square: a train image that pulls f the other way is an opponent. Since f
            is no measure of how good an image is, the sign alone says little.
        normalize_residuals: the residuals of each timestep are divided by their length over all train images before the
            average, as in the authors' later program: otherwise timesteps at which the model errs most weigh most.
    """

    normalized = True

    def __init__(
        self,
        f: ModelOutput = "mean",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        regularization: float = 0.01,
        noise_draws: int = 1,
        signed: bool = False,
        normalize_residuals: bool = False,
        layers: str = "",
    ) -> None:
        super().__init__(f, num_timesteps, projection, proj_dim, regularization, noise_draws, layers)
        self._signed, self._normalize_residuals = signed, normalize_residuals

    def prepare(self, context: AttributionContext) -> None:
        """Also measure the model's errors on the train images."""
        super().prepare(context)
        self._residuals = mean_residuals(
            context, self._options, context.target_model(), context.train, self._normalize_residuals
        )

    def rescale(self, scores: Tensor, ridge: Ridge) -> Tensor:
        """Multiply by residuals over 1 − leverage, and square."""
        moved = scores * (self._residuals / (1 - ridge.leverages))
        return moved if self._signed else moved.square()
