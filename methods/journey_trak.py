"""Journey-TRAK: TRAK with the query's gradients taken along the way by which the model came to it."""

from __future__ import annotations

from attribench.errors import UsageError
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.methods import KernelMethod
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.projection import ProjectionName
from attribench.gradients.trajectories import TrajectoryFeatures
from attribench.method import AttributionContext, Queries
from attribench.registry import register_method


@register_method("journey-trak")
class JourneyTRAK(KernelMethod):
    """Journey-TRAK: TRAK's kernel, with the query's gradients along its DDIM trajectory (arXiv 2312.06205).

    φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n), where φ(n) is as in TRAK, and φ(x) the average over the steps of the sampler: at the step of
    timestep t the model predicts an image x̂₀ from its state x_t, noise of level t is added to x̂₀ anew, and the gradient of
    the loss is taken there. The trajectory is computed again from the query's seed, and must end at the query.

    It is defined on what the target model generated, with known seeds; to a held-out image no trajectory has led.

    Checked against the authors' published program (facts, no code of theirs): the loss, the mean squared error of the
    predicted noise; x̂₀ as the sampler clips it, noised again to its own timestep, with the gradients of several fresh draws of
    noise added up; train images noised at timesteps of their own, as in TRAK. Our reading: they explain one step at a time, and
    here the steps of a trajectory are averaged with equal weights, to explain the image that it led to; they sample by DDPM in
    1000 steps from several models, here it is DDIM as the queries were made, and one model; train images have evenly spaced
    timesteps here, random ones there.

    Args:
        num_timesteps: the train images' gradients are averaged over so many evenly spaced timesteps.
        noise_draws: over so many draws of noise at every timestep, and at every step of a query's trajectory.
        num_steps: the query's gradients are averaged over so many evenly spaced steps of its trajectory; all where it has no
            more.
    """

    def __init__(
        self,
        f: ModelOutput = "loss",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        regularization: float = 0.1,
        noise_draws: int = 1,
        num_steps: int = 50,
        layers: str = "",
    ) -> None:
        super().__init__(f, num_timesteps, projection, proj_dim, regularization, noise_draws, layers)
        if num_steps < 1:
            raise UsageError(f"num_steps must be at least 1; got {num_steps}.")
        self._num_steps = num_steps

    def undefined_on(self, queries: Queries) -> str | None:
        """Refuse images that are not known to be the target model's own."""
        if queries.sampling is not None:
            return None
        return "they were not sampled from the target model with known seeds, so that there is no trajectory to follow"

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Also refuse models that are not followed, and a network with layers that are not known."""
        return TrajectoryFeatures(context, self._options, self._num_steps).refusal() or super().skip_reason(context)

    def query_features(self, queries: Queries) -> FeatureSet:
        """φ(x) along the trajectories."""
        features = TrajectoryFeatures(self.context, self._options, self._num_steps)
        return features.of(self.context.target_model(), queries)
