"""Datamodels: a linear model of what retrained models lose, by which images they were trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attribench.errors import UsageError
from attribench.method import Access, AttributionContext, AttributionMethod, Queries
from attribench.registry import register_method

#: λ as a share of the mean eigenvalue of the kernel, from which leave-one-out chooses.
_REGULARIZATIONS = (1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FEWEST_MODELS = 4


class RetrainedMethod(AttributionMethod):
    """What methods that learn from retrained models have in common.

    Args:
        num_retrainings: how many retrained models to learn from, the first of those that are there; null for all.

    Raises:
        UsageError: fewer than four.
    """

    access = Access.RETRAINED

    def __init__(self, num_retrainings: int | None = None) -> None:
        if num_retrainings is not None and num_retrainings < _FEWEST_MODELS:
            raise UsageError(
                f"num_retrainings must be at least {_FEWEST_MODELS}, or null for all; got {num_retrainings}."
            )
        self._num_retrainings = num_retrainings

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse where there are fewer models than asked for."""
        count = len(context.retrained_models())
        needed = self._num_retrainings or _FEWEST_MODELS
        return f"it needs {needed} retrained models, and is given {count}." if count < needed else None

    def _masks(self) -> Tensor:
        """float64 ``(num_models, num_train)``: 1 where the image was in the subset."""
        return self.context.retrained_models().masks[: self._num_retrainings].double()

    def _gains(self, queries: Queries) -> Tensor:
        """Minus the losses, float64 ``(num_models, num_queries)``."""
        return -self.context.retrained_models().losses(queries)[: self._num_retrainings].double()


@register_method("datamodel")
class Datamodel(RetrainedMethod):
    """Datamodels: the weights of a linear regression of minus the loss on subset membership (arXiv 2202.00622).

    The reference that other methods are measured in: what so many retrained models are worth. It is given other models than
    those it is judged on. The paper fits by the LASSO to 10⁵ models and more; with tens of models and more train images than
    models we fit by ridge regression, with an unpenalised intercept and, unless it is given, the λ of each query that
    minimises the squared error of leaving one model out.

    Args:
        num_retrainings: how many retrained models to learn from, the first of those that are there; null for all.
        regularization: λ as a share of the mean eigenvalue of the kernel of subset membership; null to choose it for each
            query by leaving one model out.

    Raises:
        UsageError: an option is out of range.
    """

    def __init__(self, num_retrainings: int | None = None, regularization: float | None = None) -> None:
        super().__init__(num_retrainings)
        if regularization is not None and not (math.isfinite(regularization) and regularization > 0.0):
            raise UsageError(f"regularization must be positive, or null to choose it; got {regularization}.")
        self._choices = _REGULARIZATIONS if regularization is None else (regularization,)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 ``(num_queries, num_train)``: how much less a model loses for having seen the image."""
        members, gains = self._masks(), self._gains(queries)
        members, gains = members - members.mean(0), gains - gains.mean(0)
        values, vectors = torch.linalg.eigh(members @ members.T)
        values = values.clamp(min=0.0)
        rotated = vectors.T @ gains
        # A query's λ depends on that query alone, as its scores must.
        best = torch.full((gains.shape[1],), math.inf, dtype=torch.float64)
        dual = torch.zeros_like(gains)
        for choice in self._choices:
            shrunk = values + choice * values.mean()
            fit = vectors @ (values / shrunk)[:, None].mul(rotated)
            leverage = (vectors.square() * (values / shrunk)).sum(1) + 1.0 / len(gains)
            error = ((gains - fit) / (1.0 - leverage)[:, None]).square().mean(0)
            better = error < best
            best = torch.where(better, error, best)
            dual = torch.where(better, vectors @ (rotated / shrunk[:, None]), dual)
        return dual.T @ members
