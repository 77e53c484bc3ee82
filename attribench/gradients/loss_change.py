"""Methods that change the target model for a query, and look which train images' losses change with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attribench.data import ImageSet
from attribench.diffusion.noise import NUM_TIMESTEPS
from attribench.diffusion.parameters import choose, trainable
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.common_noise import CommonNoiseLosses, NoiseOwner, Weights, check_owner
from attribench.gradients.needs import total
from attribench.gradients.options import equidistant
from attribench.gradients.per_sample import Term
from attribench.method import Access, AttributionContext, AttributionMethod, Needs, Queries
from attribench.store.artifacts import Spec
from attribench.store.code import method_hash

_NAMES = ("num_timesteps", "noise_draws")


class LossChangeMethod(AttributionMethod):
    """Scores from the train images' losses at the target model and at weights that were changed for the query.

    A query costs one forward pass for every train image, timestep and draw of noise. What was computed for a query is kept
    as soon as it is there, so that a killed run loses one query's work at most.

    Args:
        terms: timesteps and draws of noise that losses are averaged over.
        noise: ``common``: all train images get the same; or ``own``.
        layers: the parameters that change, by patterns of their names, separated by commas, such as ``attn*``; none: all, or
            LoRA's where the model has one. Parameters that are frozen never do.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL
    #: Copies of the parameters that :meth:`changed` holds at a time, about, its result included.
    copies: ClassVar[int]
    #: Why the weights may not move for a query, and what to do about it.
    still: ClassVar[str]

    def __init__(self, terms: Sequence[Term], noise: NoiseOwner, layers: str = "") -> None:
        self._layers = layers
        self._terms = list(terms)
        self._noise = check_owner(noise)
        self._model: nn.Module | None = None

    def target(self, context: AttributionContext) -> nn.Module:
        """The target model, frozen but for what changes.

        Raises:
            UsageError: a pattern names nothing.
        """
        return choose(context.target_model(), self._layers)

    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """What the changed weights depend on, apart from the query and the target model."""

    @abstractmethod
    def changed(self, model: nn.Module, weights: Weights, query: ImageSet) -> Weights:
        """The weights changed for a query.

        Args:
            model: the target model, which stays as it is.
            weights: its own.
            query: a single one, such as ``context.inputs.seen`` gives.
        """

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Scores ``(num_train,)`` from losses ``(num_terms, num_train)``, both float64; higher = stronger proponent."""

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse where there is no model, or no room for a query's losses."""
        if context.models is None:
            return "it needs a trained model, and there is none in this run"
        try:
            return CommonNoiseLosses(context, self.target(context), self._terms, self._noise).refusal(self.copies)
        except AttribenchError as error:
            return str(error)

    def needs(self, context: AttributionContext, num_queries: int) -> Needs:
        """Of noise that is kept, passes, and several sets of weights; time of the train images' losses, once a query."""
        losses, times = CommonNoiseLosses(context, self.target(context), self._terms, self._noise), 1 + num_queries
        seconds = losses.passes * times * losses.trial()
        return total(Needs(losses.memory(self.copies), losses.stored_bytes * times, seconds))

    def prepare(self, context: AttributionContext) -> None:
        """Take the train images' losses at the target model."""
        self._model = self.target(context)
        self._losses = CommonNoiseLosses(context, self._model, self._terms, self._noise)
        self._before = self._losses.at_target().double()

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 scores ``(num_queries, num_train)``; all 0, with a message, for a query that moves nothing.

        Raises:
            AttribenchError: the losses do not fit into memory or on the disk.
        """
        if self._model is None:
            raise AttribenchError(f"{type(self).__name__} is not prepared: call start(method, context) first.")
        some = [queries[number : number + 1] for number in range(len(queries))]
        changes = [self._change(query) for query in some]
        reason = self._losses.refusal(self.copies, changes)
        if reason is not None:
            raise AttribenchError(reason)
        unmoved = 0
        scores = torch.empty(len(queries), self._before.shape[1], dtype=torch.float64)
        title = f"losses of {self._before.shape[1]} train images, once a query"
        with self.context.progress.task(title, len(queries)) as task:
            for number, (query, change) in enumerate(zip(some, changes, strict=True)):
                after = self._after(self._model, query, change)
                scores[number] = self.compare(self._before, after)
                unmoved += int(torch.equal(after, self._before))
                task.advance()
        if unmoved:
            self.context.progress.message(
                f"{type(self).__name__}: {unmoved} of {len(queries)} queries ({queries.name}) did not move the weights, and "
                f"score 0 with every train image: {self.still}."
            )
        return scores

    def _after(self, model: nn.Module, query: Queries, change: Spec) -> Tensor:
        weights = {name: value.detach() for name, value in trainable(model).items()}
        seen = self.context.inputs.seen(query)
        return self._losses.at(change, lambda: self.changed(model, weights, seen)).double()

    def _change(self, query: Queries) -> Spec:
        """What the weights that are changed for a query are known by."""
        return {
            "method": f"{type(self).__module__}.{type(self).__qualname__}",
            "code": method_hash(type(self)),
            "options": dict(self.options()),
            "query": self.context.inputs.seen(query).content_hash,
        }


def evenly_spaced(num_timesteps: int, noise_draws: int, names: tuple[str, str] = _NAMES) -> list[Term]:
    """All draws of noise at ``range(0, 1000, 1000 // num_timesteps)``.

    Args:
        names: what messages call the two numbers.

    Raises:
        UsageError: a number is out of range.
    """
    if not 1 <= num_timesteps <= NUM_TIMESTEPS:
        raise UsageError(f"{names[0]} must lie in 1..{NUM_TIMESTEPS}; got {num_timesteps}.")
    if noise_draws < 1:
        raise UsageError(f"{names[1]} must be at least 1; got {noise_draws}.")
    return [(timestep, draw) for draw in range(noise_draws) for timestep in equidistant(num_timesteps)]


def flattened(values: Mapping[str, Tensor]) -> Tensor:
    """All entries in one vector, in order."""
    return torch.cat([value.reshape(-1) for value in values.values()])


def added(weights: Weights, step: Tensor) -> Weights:
    """Weights and a flat step: new tensors."""
    parts = torch.split(step, [value.numel() for value in weights.values()])
    return {name: value + part.view_as(value) for (name, value), part in zip(weights.items(), parts, strict=True)}


def check_positive(**options: float) -> None:
    """Insist on positive, finite options.

    Raises:
        UsageError: one is not.
    """
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} must be positive; got {value}.")
