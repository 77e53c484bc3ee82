"""What gradient features are to be computed, and what that takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from attribench.data import ImageSet
from attribench.diffusion.parameters import trainable
from attribench.gradients.factored import FactoredProjection
from attribench.gradients.needs import draws_seconds, products_seconds, stored_bytes
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import Example, Term, held_bytes, own_bytes, rows_together, summed_gradients
from attribench.gradients.projection import Projection
from attribench.method import AttributionContext
from attribench.store.artifacts import Spec

#: How long a trial takes, about, and at how many timesteps of an image it takes gradients, at most.
_TRIAL_SECONDS, _TRIAL_TERMS = 0.3, 16


@dataclass(frozen=True, eq=False)
class Part:
    """What is stored by itself: some images' features, summed over some timesteps and draws of noise."""

    images: ImageSet
    terms: list[Term]
    spec: Spec


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be computed for one model: chunks of images in parts, and which of them are not in the store."""

    model: nn.Module
    example: Example
    num_parameters: int
    length: int  # of what is added up for an image: a gradient, or a factored one
    projection: Projection | FactoredProjection
    chunks: list[list[Part]]
    missing: list[Part]
    device: torch.device
    normalized: bool

    @cached_property
    def row_bytes(self) -> int | None:
        """See :func:`attribench.gradients.per_sample.layerwise_bytes`."""
        held, complete = self._held
        if not complete:
            return None
        return 2 * held + (self.projection.row_bytes if isinstance(self.projection, FactoredProjection) else 0)

    @cached_property
    def _held(self) -> tuple[int, bool]:
        return held_bytes(self.model, self.example.shape, self.device, self.example.conditions)

    @cached_property
    def _largest(self) -> int:
        return max(parameter.numel() for parameter in trainable(self.model).values())

    @property
    def _most_terms(self) -> int:
        """Of any part, be it there already: other images, such as queries, need them all."""
        return max(len(part.terms) for part in self.chunks[0])

    def memory(self, rows: int | None = None) -> int:
        """Bytes needed at a time, beside images and model: gradients, activations of one pass, random matrix, what is saved.

        Args:
            rows: images whose features are made together; None for the most.
        """
        rows = max(len(part.images) for part in self.missing) if rows is None else rows
        terms = self._most_terms
        samples, together = rows_together(rows, terms, self.length, self.row_bytes, self.device, self.normalized)
        kept, features = 4 * self.length * rows, 4 * self.projection.dim * rows
        if self.projection.name in ("identity", "factored"):
            features = 0  # they are the gradients themselves
        passes = self._held[0] * samples * together
        if self.row_bytes is None:
            passes += 2 * 4 * self.num_parameters * samples
        else:
            passes += 3 * 4 * self._largest * samples
        if self.normalized:
            passes += own_bytes(self.length) * samples * together
        saving = 2 * 4 * self.projection.dim * rows  # the bytes of the file, twice
        return kept + max(passes, self.left_over(rows) + self.projection.matrix_bytes + features + saving)

    def left_over(self, rows: int) -> int:
        """Bytes that stay in use after passes: a CPU's allocator gives back small pieces, which activations are, late if ever.

        Args:
            rows: images whose features are made together.
        """
        if self.device.type != "cpu":
            return 0
        terms = self._most_terms
        samples, together = rows_together(rows, terms, self.length, self.row_bytes, self.device, self.normalized)
        return self._held[0] * samples * together

    def projecting(self, rows: int) -> float:
        """Seconds that the projection of so many gradients takes, about."""
        if self.projection.name in ("identity", "factored"):
            return 0.0
        kind, size = self.device.type, float(self.num_parameters) * self.projection.dim
        return draws_seconds(size, kind) + products_seconds(rows, self.projection.dim, self.num_parameters, kind)

    def trial(self, context: AttributionContext, options: FeatureOptions) -> float:
        """Seconds that an image's gradient at one timestep and draw takes, tried with a few."""
        stage, first = options.stages[0], self.chunks[0][0].images
        samples, together = rows_together(
            len(first), len(stage), self.length, self.row_bytes, self.device, self.normalized
        )
        terms = stage[: min(together, _TRIAL_TERMS)]

        def run(count: int) -> float:
            some, started = first[:count], time.perf_counter()
            summed_gradients(
                self.model, context.inputs.clean(some), some.ids, terms, output_function(options.f), 0, context.schedule,
                self.device, self.row_bytes, normalized=self.normalized, conditions=context.inputs.conditions(some),
                reduction=self.projection if isinstance(self.projection, FactoredProjection) else None,
            )  # fmt: skip
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - started

        run(1)  # the first one finds out how to compute
        one = run(1)
        several = min(samples, max(2, round(_TRIAL_SECONDS / one)))
        if several < 2:
            return one / len(terms)
        # A pass takes some time whatever is in it, and some for every image.
        took = run(several)
        each = max((took - one) / (several - 1), took / several / 2)
        return (max(0.0, one - each) / samples + each) / len(terms)

    def disk(self) -> int:
        """Bytes that the missing parts will take."""
        return stored_bytes(self.projection.dim, sum(len(part.images) for part in self.missing), len(self.missing))
