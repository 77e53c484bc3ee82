"""Fine-tune influence: which train images' losses rise most when the model is trained away from the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.diffusion.noise import NUM_TIMESTEPS
from attribench.errors import UsageError
from attribench.gradients.common_noise import (
    COMMON,
    NoiseOwner,
    Weights,
    mean_loss,
    mean_loss_and_gradient,
    noise_seed,
    noisy_rows,
)
from attribench.gradients.loss_change import LossChangeMethod, check_positive, evenly_spaced
from attribench.gradients.per_sample import Term, to_clean
from attribench.registry import register_method

#: The expected loss of a network that predicts no noise at all.
_NULL_LOSS = 1.0

#: Noisy images, what is to be predicted of them, their timesteps.
Rows = tuple[Tensor, Tensor, Tensor]


@register_method("fine-tune")
class FineTune(LossChangeMethod):
    """Fine-tune influence: the relative rise of a train image's loss after a few steps up the query's (after arXiv 2605.17938).

    Each step of plain stochastic gradient *ascent*, θ ← θ + η·∇L(q), averages the gradient over a batch of timesteps and noise;
    score(n) = (L(n; θ') − L(n; θ)) / L(n; θ), losses averaged over timesteps and draws of noise that are the same before and
    after. A train image whose loss rises most is the strongest proponent. A step that would make the query's loss, averaged
    likewise, as large as that of a network that predicts no noise at all is not taken, and is the last.

    It is our reading, and not MUCS itself. In common with that method, as its authors' code has it, are ascent that is bounded
    by the loss of a network that knows nothing, noise that is the same for both models and for all images, and a normalised
    change. MUCS goes on until that bound, with the training's optimiser and on some of the layers, descends the loss of train
    batches meanwhile, draws fresh noise at every step, and averages (L' − L)/(L' + L) over the draws of noise.

    Args:
        steps: how many.
        learning_rate: η. The default, like the noise's, comes from a pilot on 16 validation queries of digits.
        noise_batch: (timestep, draw of noise)s that a step averages the gradient over.
        fresh_noise: every step draws timesteps and noise anew, as training does; otherwise steps go in turn through those at
            which losses are taken, all of them at a time where ``noise_batch`` allows, else each time some that are far apart.
        num_timesteps: the train images' losses are averaged over so many evenly spaced timesteps. A query costs one forward
            pass for each of them, draw of noise and train image.
        noise_draws: and over so many draws of noise at every timestep.
        noise: ``common``: query and train images get the same at a timestep and draw; ``own``: each image its own.
        layers: the parameters that change, by patterns of their names, separated by commas, such as ``attn*``; none:
            all, or LoRA's where the model has one. Parameters that are frozen never do.

    Raises:
        UsageError: an option is out of range.
    """

    copies = 6  # gradients twice, the weights before and after a step, and the step itself
    still = (
        "as far as its loss says, the model knows no more of them than one that predicts no noise at all, or would after one "
        "step; a smaller --method.learning_rate moves those of the second kind"
    )
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"learning_rate": (3e-4, 1e-3, 3e-3)}

    def __init__(
        self,
        steps: int = 10,
        learning_rate: float = 1e-3,
        noise_batch: int = 64,
        fresh_noise: bool = False,
        num_timesteps: int = 10,
        noise_draws: int = 1,
        noise: NoiseOwner = "common",
        layers: str = "",
    ) -> None:
        super().__init__(evenly_spaced(num_timesteps, noise_draws), noise, layers)
        check_positive(learning_rate=learning_rate)
        for name, value in (("steps", steps), ("noise_batch", noise_batch)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        self._steps, self._rate, self._batch, self._fresh = steps, learning_rate, noise_batch, fresh_noise

    def options(self) -> Mapping[str, Any]:
        """What the changed weights depend on, apart from the query and the target model."""
        return {
            "steps": self._steps,
            "learning_rate": self._rate,
            "noise_batch": self._batch,
            "fresh_noise": self._fresh,
        }

    def changed(self, model: nn.Module, weights: Weights, query: ImageSet) -> Weights:
        """A few steps up the query's loss."""
        before, row_bytes, told = weights, self._losses.row_bytes, self.context.inputs.conditions(query)
        like = next(iter(weights.values()))
        everything = self._noised(query, self._terms, like)
        together = not self._fresh and self._batch >= len(self._terms)
        bound = self._null_loss(everything[1])
        for step in range(self._steps + 1):
            if together and step < self._steps:
                loss, gradients = mean_loss_and_gradient(model, weights, *everything, row_bytes, told)
            else:
                loss = mean_loss(model, weights, *everything, row_bytes, told)
            if not loss < bound:
                return before
            if step < self._steps:
                if not together:
                    _, gradients = mean_loss_and_gradient(
                        model, weights, *self._batch_of(query, step, like), row_bytes, told
                    )
                before = weights
                weights = {key: value + self._rate * gradients[key] for key, value in weights.items()}
        return weights

    def _null_loss(self, target: Tensor) -> float:
        """The loss of a network that predicts nothing at all: nothing is left to unlearn beyond it."""
        if self.context.schedule.prediction_type == "epsilon":
            return _NULL_LOSS
        return float(target.square().mean())

    def _noised(self, query: ImageSet, terms: Sequence[Term], like: Tensor) -> Rows:
        """The query under the noise of terms."""
        context, owner = self.context, COMMON if self._noise == "common" else query.ids[0]
        image = context.inputs.clean(query)[0]
        return noisy_rows(image, owner, terms, noise_seed(context), context.schedule, like)

    def _batch_of(self, query: ImageSet, step: int, like: Tensor) -> Rows:
        """The query under a step's batch of noise, where that is not all of the losses'."""
        context, name = self.context, query.ids[0]
        if not self._fresh:
            order = spread(len(self._terms))
            turn = [order[(step * self._batch + i) % len(order)] for i in range(self._batch)]
            return self._noised(query, [self._terms[number] for number in turn], like)
        clean = to_clean(context.inputs.clean(query)[0]).to(like)
        generator = torch.Generator().manual_seed(derive_seed(context.seed, "fine-tune", name, step))
        timesteps = torch.randint(NUM_TIMESTEPS, (self._batch,), generator=generator)
        noise = torch.randn((self._batch, *clean.shape), generator=generator).to(like)
        alpha_bar = context.schedule.alpha_bar[timesteps][:, None, None, None].to(like)
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        drawn = zip(noise, timesteps.tolist(), strict=True)
        target = torch.stack([context.schedule.target(clean, one, timestep) for one, timestep in drawn])
        return noisy, target, timesteps.to(like.device)

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """The rise of every train image's mean loss, as a share of it."""
        base = before.mean(0)
        return (after.mean(0) - base) / base.clamp(min=torch.finfo(base.dtype).tiny)


def spread(count: int) -> list[int]:
    """All numbers below ``count``, in an order in which neighbours are far apart: by steps of about its golden section."""
    step = min((i for i in range(1, count + 1) if gcd(i, count) == 1), key=lambda i: abs(i - 0.618 * count))
    return [(i * step) % count for i in range(count)]
