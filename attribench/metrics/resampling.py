"""How sure is a mean LDS? Bootstraps over the retrained subsets and over the queries.

scipy.stats.bootstrap resamples one axis; here subsets and queries are resampled at once, and ranks taken anew within each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.errors import DataError, UsageError
from attribench.metrics.lds import average_ranks, correlation_from_sums, score_predictions

# Elements of a temporary: small enough to stay in a CPU's cache, which is what makes the resampling quick.
_BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval at ``level`` (0.95 = 95 %), in the unit of the statistic."""

    low: float
    high: float
    level: float


def lds_interval(
    predictions: Tensor, outputs: Tensor, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> Interval:
    """A confidence interval of the mean LDS over queries, for new queries AND new subsets from the same populations.

    Both are samples: with other subsets all queries would move together, and with other queries the mean would differ.
    Each resample therefore draws subsets and, independently, queries, with replacement. Two things make the plain
    percentiles of the resampled means a poor interval; both are set right here:

    - *Centre.* A subset drawn twice is a tie, which agrees with neither order, so a resample's Spearman is lower on
      average: by about a factor n/(n+1) for weak correlations of n subsets (in the classical E[r] = ((n−2)ρ + 3τ)/(n+1)
      with τ ≈ 2ρ/3). The statistic itself has no such ties. So the interval is the point estimate plus the
      quantiles of the resampled means around *their* mean.
    - *Width.* The variance of a mean over queries and subsets has a share of the queries (σ²/Q, with σ² the variance of
      their true LDS), one of the subsets, and one of the interaction of the two. Resampling both ways counts the
      interaction three times (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007). Over a few dozen
      subsets a query's LDS is mostly noise of its own, so interaction may well be the main share, and intervals come
      out up to √3 times too wide. So the deviations are scaled to the variance V_subsets + σ²/Q. V_subsets, which holds
      the interaction once, is the variance of the same resamples without drawing queries. σ² = 2·v − v*, with v the
      variance between the queries' LDS and v* its mean over the resamples of subsets: v holds the noise that subsets
      bring into each query's LDS once, v* twice.

    Close to ±1 the interval errs on the wide side, as ties then add most of the resampled variance.

    Args:
        predictions: ``(num_subsets, num_queries)``, from :func:`attribench.metrics.predict_outputs`.
        outputs: ``(num_subsets, num_queries)`` losses; they count with a minus, as in the LDS.
        level: The share of such intervals that should contain the expected mean LDS, in (0, 1).
        num_resamples: At least 2; 1000 for a table.
        seed: The same seed gives the same interval.

    Returns:
        The interval, within [-1, 1].

    Raises:
        UsageError: ``level`` or ``num_resamples`` out of range, or fewer than two subsets.
        DataError: shapes that differ, or values that are not finite.
    """
    if not 0.0 < level < 1.0:
        raise UsageError(f"level must lie between 0 and 1 (0.95 for 95 %), not {level}.")
    per_query = score_predictions(predictions, outputs).cpu()
    resampled = resampled_lds(predictions, outputs, bootstrap_counts(num_resamples, len(predictions), seed, "subsets"))
    return interval_of_mean(per_query, resampled, level=level, seed=seed)


def interval_of_mean(per_query: Tensor, resampled: Tensor, *, level: float = 0.95, seed: int = 0) -> Interval:
    """The interval of :func:`lds_interval`, of any correlation over subsets that every query has.

    Args:
        per_query: ``(num_queries,)``.
        resampled: ``(num_resamples, num_queries)``: the same in resamples of the subsets.
        level: see :func:`lds_interval`.
        seed: of the resamples of the queries.
    """
    num_resamples, num_queries = resampled.shape
    queries = bootstrap_counts(num_resamples, num_queries, seed, "queries")
    means = (resampled * queries).sum(dim=1) / num_queries
    deviations = means - means.mean()
    spread = means.var().item()
    scale = math.sqrt(variance_of_mean(per_query, resampled) / spread) if spread > 0 else 0.0
    point = per_query.mean().item()
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (point + scale * deviations.quantile(tails)).clamp(-1.0, 1.0).tolist()
    return Interval(low, high, level)


def variance_of_mean(per_query: Tensor, resampled: Tensor) -> float:
    """Variance of the mean over queries, for new queries and new subsets; see :func:`lds_interval` for the formula.

    Also of a difference of two methods, both of which were resampled with the same draws.

    Args:
        per_query: ``(num_queries,)``.
        resampled: ``(num_resamples, num_queries)``: the same in resamples of the subsets.
    """
    num_queries = len(per_query)
    query_variance = 0.0
    if num_queries > 1:
        query_variance = max(0.0, (2 * per_query.var() - resampled.var(dim=1).mean()).item())
    return resampled.mean(dim=1).var().item() + query_variance / num_queries


def published_bootstrap(
    predictions: Tensor, outputs: Tensor, *, num_resamples: int = 64, seed: int = 0
) -> tuple[float, float]:
    """The statistic of the published tables: mean and standard deviation of the mean LDS over resamples of the subsets.

    Two differences from the point estimate and :func:`lds_interval` are kept, to compare like with like: the mean is a
    little low (a subset drawn twice is a tie), and the deviation leaves out that other queries would give another mean.

    Args:
        predictions: ``(num_subsets, num_queries)``.
        outputs: ``(num_subsets, num_queries)`` losses.
        num_resamples: At least 2; 64 as published.
        seed: The same seed gives the same numbers.

    Returns:
        The mean, and the standard deviation (with ``num_resamples`` in the denominator, NumPy's default).

    Raises:
        UsageError: ``num_resamples`` out of range, or fewer than two subsets.
        DataError: shapes that differ, or values that are not finite.
    """
    counts = bootstrap_counts(num_resamples, len(predictions), seed, "subsets")
    means = resampled_lds(predictions, outputs, counts).mean(dim=1)
    return means.mean().item(), means.std(correction=0).item()


def standard_error(per_query: Tensor) -> float:
    """Standard error of the mean over queries, s/√Q: it takes the subsets as given, so it is too small for a claim.

    Raises:
        UsageError: fewer than two queries.
    """
    if per_query.numel() < 2:
        raise UsageError(f"A standard error over queries needs at least 2 of them, not {per_query.numel()}.")
    return per_query.double().std().item() / math.sqrt(per_query.numel())


def bootstrap_counts(num_resamples: int, size: int, seed: int, axis: str) -> Tensor:
    """How often each of ``size`` things is drawn in each resample of as many, with replacement.

    Args:
        num_resamples: At least 2.
        size: The number of things drawn from.
        seed: The same seed and axis give the same draws.
        axis: The name of what is drawn; different axes give independent draws.

    Returns:
        int64 ``(num_resamples, size)`` on the CPU; each row sums to ``size``.

    Raises:
        UsageError: ``num_resamples`` out of range, or nothing to draw from.
    """
    if num_resamples < 2:
        raise UsageError(f"num_resamples must be at least 2, not {num_resamples}.")
    if size < 1:
        raise UsageError(f"There are no {axis} to resample.")
    generator = torch.Generator().manual_seed(derive_seed(seed, "bootstrap", axis))
    drawn = torch.randint(size, (num_resamples, size), generator=generator)
    return torch.zeros(num_resamples, size, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))


def resampled_lds(predictions: Tensor, outputs: Tensor, counts: Tensor) -> Tensor:
    """The LDS of every query in every resample of the subsets; to the bit what drawing rows and ranking again gives.

    Nothing is sorted anew. Twice the centred average rank of s in a resample is the number of draws below it minus the
    number above, Σ_t counts[t]·sign(x_s − x_t): one matrix product for all resamples of a query.

    Args:
        predictions: ``(num_subsets, num_queries)``.
        outputs: ``(num_subsets, num_queries)`` losses.
        counts: ``(num_resamples, num_subsets)``; how often each subset is drawn, from :func:`bootstrap_counts`.

    Returns:
        float64 ``(num_resamples, num_queries)`` on the CPU; 0 where a resample leaves a correlation undefined.

    Raises:
        UsageError: fewer than two subsets.
        DataError: shapes that do not fit together, or values that are not finite.
    """
    score_predictions(predictions, outputs)  # for its checks
    size = predictions.shape[0]
    if counts.ndim != 2 or counts.shape[1] != size:
        raise DataError(
            f"counts {tuple(counts.shape)} must be (num_resamples, {size}), as predictions has {size} rows."
        )
    # Everything is an integer of at most (draws)³, where a resample draws as many as there are subsets: up to 256
    # of them, float32 holds all of it exactly, in half the time.
    dtype = torch.float32 if int(counts.sum(dim=1).max()) <= 256 else torch.float64
    draws = counts.to("cpu", dtype)
    # The ranks stand in for the values, as differences of values may overflow or vanish.
    first = average_ranks(predictions.detach().cpu()).T.to(dtype)
    second = average_ranks(-outputs.detach().cpu().double()).T.to(dtype)
    block = max(1, _BLOCK_ELEMENTS // max(draws.numel(), size * size))
    parts = []
    for start in range(0, first.shape[0], block):
        a = _resampled_ranks(first[start : start + block], draws)
        b = _resampled_ranks(second[start : start + block], draws)
        weighted = draws * a
        covariance = (weighted * b).sum(dim=2)
        parts.append(correlation_from_sums(covariance, (weighted * a).sum(dim=2), (draws * b * b).sum(dim=2)))
    return torch.cat(parts).T.contiguous()


def _resampled_ranks(values: Tensor, draws: Tensor) -> Tensor:
    """Minus twice the centred ranks: (q, S) and (B, S) → (q, B, S). Factor and sign cancel in a correlation."""
    signs = (values[:, :, None] - values[:, None, :]).sign()
    return draws @ signs
