"""The LDS as a torchmetrics object, for queries that come in batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from attribench.errors import UsageError
from attribench.metrics.lds import check_masks, predict_outputs, score_predictions, undefined_correlations


class LinearDatamodelingScore(Metric):
    """Mean LDS over queries, in [-1, 1]; see :func:`attribench.metrics.linear_datamodeling_score`.

    A query's LDS needs nothing of the other queries, so only one number a query is kept, and batches give exactly what
    all queries at once give.

    >>> import torch
    >>> metric = LinearDatamodelingScore(masks=torch.tensor([[True, False], [False, True]]))
    >>> metric.update(scores=torch.tensor([[0.9, 0.1]]), outputs=torch.tensor([[0.2], [0.7]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)

    Args:
        masks: bool ``(num_subsets, num_train)``; True where the image was in the subset.
        kwargs: Those of :class:`torchmetrics.Metric`.

    Raises:
        UsageError: masks that are not a bool tensor.
        DataError: masks that are not two-dimensional.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    masks: Tensor
    values: list[Tensor]
    undefined: list[Tensor]

    def __init__(self, masks: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_masks(masks)
        # A state although it never changes: a MetricCollection takes metrics of equal states for one and the same, and
        # two metrics that differ only in their masks may well agree on a first batch.
        self.add_state("masks", default=masks, dist_reduce_fx="max")
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("undefined", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, outputs: Tensor) -> None:
        """Add a batch of queries.

        Args:
            scores: ``(batch_size, num_train)``; higher = stronger proponent.
            outputs: ``(num_subsets, batch_size)``; the loss of each subset's model on these queries.

        Raises:
            UsageError: not tensors, or fewer than two subsets.
            DataError: shapes that do not fit together, or values that are not finite.
        """
        predictions = predict_outputs(scores, self.masks)
        self.values.append(score_predictions(predictions, outputs).to(self.device))
        self.undefined.append(undefined_correlations(predictions, outputs).to(self.device))

    def compute(self) -> Tensor:
        """The mean LDS over all queries so far, a float64 scalar; undefined ones count as 0.

        Raises:
            UsageError: before the first update.
        """
        return self._gathered("values").mean()

    def per_query(self) -> Tensor:
        """The LDS of every query so far, float64 ``(num_queries,)`` in the order of updates (of all processes).

        Raises:
            UsageError: before the first update.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._gathered("values")

    def undefined_queries(self) -> Tensor:
        """Which queries have no correlation and count as 0, bool ``(num_queries,)`` in the order of updates.

        Raises:
            UsageError: before the first update.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._gathered("undefined")

    def _gathered(self, state: str) -> Tensor:
        parts = getattr(self, state)
        if isinstance(parts, list) and not parts:
            raise UsageError("No queries yet: call update(scores, outputs) before asking for the LDS.")
        gathered: Tensor = dim_zero_cat(parts)
        return gathered
