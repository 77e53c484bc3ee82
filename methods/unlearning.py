"""Unlearning: which train images the model forgets when it is made to forget the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attribench.computing.precision import float64_device, to_float64
from attribench.data import ImageSet
from attribench.gradients.common_noise import (
    COMMON,
    NoiseOwner,
    Weights,
    mean_loss_and_gradient,
    noise_seed,
    noisy_rows,
)
from attribench.gradients.fisher import diagonal_fisher, fisher_needs, fisher_refusal
from attribench.gradients.loss_change import LossChangeMethod, added, check_positive, evenly_spaced, flattened
from attribench.gradients.needs import joined, total
from attribench.method import AttributionContext, Needs
from attribench.registry import register_method


@register_method("unlearning")
class Unlearning(LossChangeMethod):
    """Unlearning: how much worse the model gets at a train image after a step that unlearns the query (arXiv 2406.09408).

    θ' = θ + s·(F + δI)⁻¹∇L(q), one step up the query's loss L(q) that spares what the diagonal Fisher information F of the
    train images calls important; score(n) = L(n; θ') − L(n; θ), losses averaged over timesteps and draws of noise.

    From the paper are the step, the diagonal Fisher information (the mean of squared gradients of single train images), and
    the score as a change of the loss; all parameters move here, where the paper moves the cross-attention's keys and values
    of a text-to-image model. Our reading are the sizes: F is taken at evenly spaced timesteps, δ is relative to F's mean,
    and s is such that L(q) rises by a given share to first order, which makes every query's step equally large.
    ``noise=common`` is ours too: query and train images get the same noise, which takes the luck of the draw out of a ranking.

    Args:
        num_timesteps: the query's gradient is averaged over so many evenly spaced timesteps.
        noise_draws: and over so many draws of noise at every timestep.
        loss_timesteps: the train images' losses are averaged over so many evenly spaced timesteps. A query costs one forward
            pass for each of them, draw of noise and train image.
        loss_draws: and over so many draws of noise at every timestep.
        fisher_timesteps: F is averaged over the train images at so many evenly spaced timesteps.
        damping: δ, as a share of the mean of F's entries. The default, like common noise, comes from a pilot on 16 validation
            queries of digits.
        step: how much the query's loss is to rise, to first order, as a share of it.
        noise: ``common``: query and train images get the same at a timestep and draw; ``own``: each image its own.
        layers: the parameters that change, by patterns of their names, separated by commas, such as ``attn*``; none:
            all, or LoRA's where the model has one. Parameters that are frozen never do.

    Raises:
        UsageError: an option is out of range.
    """

    copies = 14  # gradients and the flat one; in float64, that, F, the step and its parts; the changed weights
    still = "the model has no gradient there"
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"damping": (1e-3, 1e-2, 0.1, 1.0)}

    def __init__(
        self,
        num_timesteps: int = 10,
        noise_draws: int = 1,
        loss_timesteps: int = 10,
        loss_draws: int = 1,
        fisher_timesteps: int = 10,
        damping: float = 0.01,
        step: float = 0.1,
        noise: NoiseOwner = "common",
        layers: str = "",
    ) -> None:
        super().__init__(evenly_spaced(loss_timesteps, loss_draws, ("loss_timesteps", "loss_draws")), noise, layers)
        check_positive(damping=damping, step=step)
        self._gradient_terms = evenly_spaced(num_timesteps, noise_draws)
        self._fisher_terms = evenly_spaced(fisher_timesteps, 1, ("fisher_timesteps", ""))
        self._damping, self._step = damping, step

    def options(self) -> Mapping[str, Any]:
        """What the changed weights depend on, apart from the query and the target model."""
        return {
            "gradient": self._gradient_terms,
            "fisher": self._fisher_terms,
            "damping": self._damping,
            "step": self._step,
        }

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse where there is no model, or no room for a query's losses or the Fisher information."""
        reason = super().skip_reason(context)
        return reason or fisher_refusal(context, self.target(context), self._fisher_terms)

    def needs(self, context: AttributionContext, num_queries: int) -> Needs:
        """Of the Fisher information, then of the losses."""
        model, losses = self.target(context), super().needs(context, num_queries)
        # A gradient takes about as long as three forward passes; those of the losses are the measure.
        passes = len(self._terms) * len(context.train) * (1 + num_queries)
        return joined(total(fisher_needs(context, model, self._fisher_terms, 3 * losses.seconds / passes)), losses)

    def prepare(self, context: AttributionContext) -> None:
        """Take the train images' losses and Fisher information at the target model, unless they are in the store."""
        super().prepare(context)
        fisher = diagonal_fisher(context, self.target(context), self._fisher_terms)
        floor = torch.finfo(torch.float64).tiny  # of a model that has no gradients at all
        self._precision = (fisher + (self._damping * fisher.mean()).clamp(min=floor)).to(float64_device(context.device))

    def changed(self, model: nn.Module, weights: Weights, query: ImageSet) -> Weights:
        """One preconditioned step up the query's loss."""
        context, like = self.context, next(iter(weights.values()))
        name, image = COMMON if self._noise == "common" else query.ids[0], context.inputs.clean(query)[0]
        rows = noisy_rows(image, name, self._gradient_terms, noise_seed(context), context.schedule, like)
        told = context.inputs.conditions(query)
        loss, gradients = mean_loss_and_gradient(model, weights, *rows, self._losses.row_bytes, told)
        gradient = to_float64(flattened(gradients))
        direction = gradient / self._precision
        rise = gradient @ direction
        length = self._step * loss / rise if rise > 0 else torch.zeros_like(rise)
        return added(weights, (length * direction).to(like))

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """The rise of every train image's mean loss."""
        return after.mean(0) - before.mean(0)
