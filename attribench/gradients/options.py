"""What gradient features are made of."""

from __future__ import annotations

from dataclasses import dataclass

from attribench.diffusion.noise import NUM_TIMESTEPS
from attribench.errors import UsageError
from attribench.gradients.outputs import ModelOutput, output_function
from attribench.gradients.per_sample import Term
from attribench.gradients.projection import ProjectionName, check_projection

#: Numbers of timesteps whose features are kept apart from those of the others, so that more timesteps only add to them.
_NESTED = (10, 100)


@dataclass(frozen=True)
class FeatureOptions:
    """What features are made of.

    Args:
        f: the model output whose gradients are taken; see :func:`attribench.gradients.outputs.output_function`.
        num_timesteps: K: gradients are averaged over ``range(0, 1000, 1000 // K)``, which are more than K timesteps where
            K does not divide 1000.
        projection: see :class:`attribench.gradients.projection.Projection`, and for ``factored``
            :class:`attribench.gradients.factored.FactoredProjection`.
        proj_dim: length of a projected gradient, with ``factored`` at most so long.
        noise_draws: gradients are averaged over so many draws of noise at every timestep.
        normalized: the gradient of each timestep and draw is divided by its length before the average.
        layers: patterns of the parameters that gradients are of; see :func:`attribench.diffusion.parameters.choose`.

    Raises:
        UsageError: an option is out of range.
    """

    f: ModelOutput = "loss"
    num_timesteps: int = 10
    projection: ProjectionName = "auto"
    proj_dim: int = 32768
    noise_draws: int = 1
    normalized: bool = False
    layers: str = ""

    def __post_init__(self) -> None:
        output_function(self.f)
        if not 1 <= self.num_timesteps <= NUM_TIMESTEPS:
            raise UsageError(f"num_timesteps must lie in 1..{NUM_TIMESTEPS}; got {self.num_timesteps}.")
        if self.noise_draws < 1:
            raise UsageError(f"noise_draws must be at least 1; got {self.noise_draws}.")
        check_projection(self.projection, self.proj_dim)

    @property
    def timesteps(self) -> list[int]:
        """The timesteps gradients are averaged over."""
        return equidistant(self.num_timesteps)

    @property
    def stages(self) -> list[list[Term]]:
        """The (timestep, draw)s gradients are averaged over, in parts that are stored one by one.

        A part is one draw at the timesteps by which 10, 100 or all differ from the number before, where these are nested.
        What is averaged over more timesteps or draws so consists of what is there already, and of more.
        """
        parts: list[list[int]] = []
        left = self.timesteps
        for timesteps in (*map(equidistant, _NESTED), left):
            if left and set(timesteps) <= set(self.timesteps):
                parts.append([timestep for timestep in left if timestep in timesteps])
                left = [timestep for timestep in left if timestep not in timesteps]
        return [[(timestep, draw) for timestep in part] for draw in range(self.noise_draws) for part in parts]


def equidistant(number: int) -> list[int]:
    """``range(0, 1000, 1000 // number)``: the published timesteps, more than ``number`` where it does not divide 1000."""
    return list(range(0, NUM_TIMESTEPS, NUM_TIMESTEPS // number))
