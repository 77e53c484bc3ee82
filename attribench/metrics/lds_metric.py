"""The LDS as a torchmetrics object, for queries that come in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from attribench.errors import UsageError
from attribench.metrics.lds import check_masks, predict_outputs, score_predictions, undefined_correlations


class LinearDatamodelingScore(Metric):
    """Mean LDS over queries, in [-1, 1]; see :func:`attribench.metrics.linear_datamodeling_score`.

    A query's LDS needs nothing of the other queries, so only one number a query is kept, and batches give exactly what
    all queries at once give. Numbers stay float64 whatever dtype the metric, or the module it is in, is set to.

    Processes are gathered when a result is asked for; one without queries adds nothing. Metrics of other masks measure
    something else: gathering or merging them raises a UsageError, in all processes.

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

    values: list[Tensor]
    undefined: list[Tensor]

    def __init__(self, masks: Tensor, **kwargs: Any) -> None:
        # A result kept from before would be stale after a merge, and one process that has it would not join the others.
        super().__init__(**{"compute_with_cache": False, **kwargs})
        check_masks(masks)
        self.masks = masks
        # A state although it never changes: a MetricCollection takes metrics of equal states for one and the same, and
        # two metrics that differ only in their masks may well agree on a first batch. Of one size whatever the masks',
        # so that they can be compared across processes.
        self.add_state("masks_sum", default=_sum(masks), dist_reduce_fx=_the_same)
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
        self._add(score_predictions(predictions, outputs), undefined_correlations(predictions, outputs))

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

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the queries of all processes; arguments are those of :meth:`torchmetrics.Metric.sync`.

        Raises:
            UsageError: no process has a query, or their masks differ; in all processes.
        """
        if not len(self.values):  # torchmetrics would send float32, which the others do not expect
            self._add(torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.bool))
        super().sync(*args, **kwargs)
        if self._is_synced and not len(self.values):
            self.unsync()
            raise UsageError(_NO_QUERIES)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        """Follow a module to its device, but not to its dtype."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)

    def _add(self, values: Tensor, undefined: Tensor) -> None:
        self.values.append(values.to(self.device))
        self.undefined.append(undefined.to(self.device))

    def _gathered(self, state: str) -> Tensor:
        parts = getattr(self, state)
        gathered: Tensor = dim_zero_cat(parts) if len(parts) else torch.empty(0)
        if not len(gathered):
            raise UsageError(_NO_QUERIES)
        return gathered


_NO_QUERIES = "No queries yet: call update(scores, outputs) before asking for the LDS."


def _sum(masks: Tensor) -> Tensor:
    """SHA-256 of shape and values, uint8 ``(32,)`` on the device of the masks."""
    content = str(tuple(masks.shape)).encode() + masks.cpu().contiguous().numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8, device=masks.device)


def _the_same(sums: Tensor) -> Tensor:
    """One of the rows ``(num_processes, 32)``, which must be equal."""
    if (sums != sums[0]).any():
        raise UsageError(
            "LinearDatamodelingScore: the masks differ. Metrics can be joined only if they have the same ones."
        )
    return sums[0]
