"""The control: scores that know nothing. What it scores is what chance scores."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.method import Access, AttributionMethod, Queries
from attribench.registry import register_method


@register_method("random")
class Random(AttributionMethod):
    """Independent standard normal scores, a function of the run's seed, this seed and the query's id alone.

    Args:
        seed: another seed gives another, independent control.
    """

    access = Access.DATA
    takes_latents = True

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``, standard normal."""
        scores = torch.empty(len(queries), len(self.context.train))
        for row, query_id in zip(scores, queries.ids, strict=True):
            generator = torch.Generator().manual_seed(derive_seed(self.context.seed, "random", self._seed, query_id))
            row.normal_(generator=generator)
        return scores
