"""How well scores single out what is known to be right: the area under the ROC curve, and the rank of what was planted."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.errors import DataError
from attribench.metrics.lds import average_ranks
from attribench.metrics.resampling import Interval, bootstrap_counts


def auc_per_query(scores: Tensor, right: Tensor) -> Tensor:
    """For each query, the chance that a right train image scores above another one; ties count half.

    This is the area under the ROC curve, from Mann and Whitney's U: (Σ ranks of the right ones − r(r+1)/2) / (r (N−r)) with
    average ranks (Mann and Whitney, Annals of Mathematical Statistics 18, 1947; Hanley and McNeil, Radiology 143, 1982).

    Args:
        scores: ``(num_queries, num_train)``; higher = stronger.
        right: bool of the same shape; in each row some, not all.

    Returns:
        float64 ``(num_queries,)`` in 0…1; ½ is chance.

    Raises:
        DataError: shapes that differ, scores that are not finite, or a query where all or none are right.
    """
    _check(scores, right)
    ranks = average_ranks(scores.double().T).T
    count = right.sum(dim=1).double()
    total = (ranks * right).sum(dim=1)
    return (total - count * (count + 1) / 2) / (count * (scores.shape[1] - count))


def first_rank(scores: Tensor, right: Tensor) -> Tensor:
    """For each query, the place of its best right train image among the wrong ones, from 1; ties take the middle.

    Arguments and errors are those of :func:`auc_per_query`.

    Returns:
        float64 ``(num_queries,)``: 1 where a right one is first.
    """
    _check(scores, right)
    values = scores.double()
    best = values.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    above, level = (values > best) & ~right, (values == best) & ~right
    return 1.0 + above.sum(dim=1).double() + level.sum(dim=1).double() / 2


def mean_interval(values: Tensor, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0) -> Interval:
    """The percentile bootstrap's interval of a mean over queries.

    It knows only the values at hand: where all are equal, it has no width, whatever their number.

    Args:
        values: ``(num_queries,)``.
        level: nominal coverage, in (0, 1).
        num_resamples: at least 2.
        seed: the same seed gives the same interval.
    """
    counts = bootstrap_counts(num_resamples, len(values), seed, "queries").double()
    return _percentiles(counts @ values.double() / len(values), level)


def auc_of_two(
    higher: Tensor, lower: Tensor, *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """The chance that a value of one sample exceeds one of another, ties counting half, with its interval.

    Args:
        higher: ``(n,)``: those expected above.
        lower: ``(m,)``.
        level: of the percentile bootstrap's interval, which resamples either sample.
        num_resamples: at least 2.
        seed: the same seed gives the same interval.
    """
    first, second = higher.double()[:, None], lower.double()[None]
    wins = (first > second).double() + 0.5 * (first == second).double()
    above = bootstrap_counts(num_resamples, len(higher), seed, "answerable").double()
    below = bootstrap_counts(num_resamples, len(lower), seed, "unanswerable").double()
    resampled = ((above @ wins) * below).sum(dim=1) / wins.numel()
    return wins.mean().item(), _percentiles(resampled, level)


def _percentiles(resampled: Tensor, level: float) -> Interval:
    low, high = resampled.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(low, high, level)


def _check(scores: Tensor, right: Tensor) -> None:
    if scores.ndim != 2 or right.shape != scores.shape or right.dtype != torch.bool:
        raise DataError(
            f"scores {tuple(scores.shape)} and right {tuple(right.shape)} must both be (num_queries, num_train), right bool."
        )
    if not torch.isfinite(scores).all():
        raise DataError("scores must be finite.")
    some = right.sum(dim=1)
    if ((some == 0) | (some == right.shape[1])).any():
        raise DataError("Every query needs train images that are right and others that are not.")
