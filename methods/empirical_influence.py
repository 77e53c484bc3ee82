"""Empirical influence: what models lose with an image, and what without."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.method import Queries
from attribench.methods.datamodel import RetrainedMethod
from attribench.registry import register_method


@register_method("empirical-influence")
class EmpiricalInfluence(RetrainedMethod):
    """Empirical influence: the mean loss of models trained without an image, minus that of models trained with it.

    The subsampled estimate of Feldman and Zhang (arXiv 2008.03703), whose measure is accuracy; here it is the loss. It is
    given other models than those it is judged on. An image that all of the models have seen, or none, scores 0.

    Args:
        num_retrainings: how many retrained models to learn from, the first of those that are there; null for all.

    Raises:
        UsageError: fewer than four.
    """

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 ``(num_queries, num_train)``."""
        members, gains = self._masks(), self._gains(queries)
        inside, outside = members.sum(0), (1.0 - members).sum(0)
        difference = gains.T @ members / inside.clamp(min=1.0) - gains.T @ (1.0 - members) / outside.clamp(min=1.0)
        return torch.where((inside > 0.0) & (outside > 0.0), difference, 0.0)
