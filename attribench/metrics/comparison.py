"""Is one method better than another, or did it only look so on these queries and subsets?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from attribench.errors import DataError, UsageError
from attribench.metrics.lds import average_ranks, score_predictions
from attribench.metrics.resampling import Interval, bootstrap_counts, resampled_lds, variance_of_mean


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two methods on the same queries.

    Attributes:
        difference: mean over queries of the first one's value minus the second one's.
        interval: of the difference.
        p_mean: two-sided p-value of "no difference in the mean", for new queries and, with LDS, new subsets.
        p_wilcoxon: two-sided p-value of Wilcoxon's signed-rank test over queries, given the subsets.
    """

    difference: float
    interval: Interval
    p_mean: float
    p_wilcoxon: float


def compare_lds(
    predictions: Mapping[str, Tensor],
    outputs: Tensor,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[tuple[str, str], PairedComparison]:
    """Compare the mean LDS of every pair of methods, on the same queries and subsets.

    *Bootstrap.* Queries and subsets are both samples. The standard error of a difference is that of
    :func:`attribench.metrics.lds_interval`: both methods are resampled with the same draws of subsets, so that what the
    subsets do to both cancels. Divided by it, the difference is referred to Student's t with min(subsets, queries) − 1
    degrees of freedom.

    *Wilcoxon.* The signed-rank test takes the queries as independent. They are, given the subsets; over new subsets their
    LDS move together, so this test alone says too much.

    Args:
        predictions: for each method ``(num_subsets, num_queries)``, or any increasing function of it a query, such as
            ranks over subsets.
        outputs: ``(num_subsets, num_queries)`` losses, likewise.
        level: of the intervals.
        num_resamples: of the subsets.
        seed: the same seed gives the same numbers.

    Returns:
        For every pair, in the order of ``predictions``.

    Raises:
        UsageError: fewer than two subsets, or two queries.
        DataError: shapes that differ, or values that are not finite.
    """
    num_subsets, num_queries = outputs.shape
    if num_queries < 2:
        raise UsageError(f"A comparison over queries needs at least 2 of them, not {num_queries}.")
    counts = bootstrap_counts(num_resamples, num_subsets, seed, "subsets")
    scores = {name: score_predictions(values, outputs).cpu() for name, values in predictions.items()}
    resampled = {name: resampled_lds(values, outputs, counts) for name, values in predictions.items()}
    freedom = min(num_subsets, num_queries) - 1
    found = {}
    for a, b in itertools.combinations(predictions, 2):
        difference = scores[a] - scores[b]
        error = math.sqrt(variance_of_mean(difference, resampled[a] - resampled[b]))
        found[a, b] = _comparison(difference.numpy(), error, freedom, level)
    return found


def compare_values(
    values: Mapping[str, NDArray[np.float64]], *, level: float = 0.95
) -> dict[tuple[str, str], PairedComparison]:
    """Compare the mean over queries of any measured value, such as a distance, for every pair of methods.

    The standard error is that of the mean of the queries' differences, referred to Student's t; for large numbers of
    queries a bootstrap over them agrees with it.

    Args:
        values: for each method ``(num_queries,)``, on the same queries in the same order.
        level: of the intervals.

    Raises:
        DataError: methods with other numbers of queries.
    """
    sizes = {len(series) for series in values.values()}
    if len(sizes) > 1:
        raise DataError(f"Methods must be compared on the same queries; they have {sorted(sizes)} of them.")
    found = {}
    for a, b in itertools.combinations(values, 2):
        difference = np.asarray(values[a], np.float64) - np.asarray(values[b], np.float64)
        count = len(difference)
        error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        found[a, b] = _comparison(difference, error, max(1, count - 1), level)
    return found


def _comparison(difference: NDArray[np.float64], error: float, freedom: int, level: float) -> PairedComparison:
    mean = float(difference.mean())
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    statistic = abs(mean) / error if error > 0.0 else math.inf if mean else 0.0
    p_value = 2.0 * float(stats.t.sf(statistic, freedom))
    return PairedComparison(mean, Interval(mean - half, mean + half, level), p_value, _wilcoxon(difference))


def _wilcoxon(difference: NDArray[np.float64]) -> float:
    """Exact for up to 50 differences of distinct sizes, else by the normal approximation with its correction for ties."""
    kept = difference[difference != 0.0]
    if not len(kept):
        return 1.0
    exact = len(kept) <= 50 and len(np.unique(np.abs(kept))) == len(kept)
    # Left to itself, SciPy permutes small samples with ties, which takes a thousand times as long.
    return float(stats.wilcoxon(kept, method="exact" if exact else "approx").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    Rejecting where the adjusted value is below α keeps the chance of any false rejection below α, whatever the
    dependence between the tests.

    Returns:
        The adjusted p-values in the order given, each in 0…1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def distinguishable(
    comparisons: Mapping[tuple[str, str], PairedComparison], alpha: float = 0.05
) -> dict[tuple[str, str], bool]:
    """Which pairs differ: the test of the mean and Wilcoxon's both reject, each adjusted over all pairs by Holm.

    All pairs count, because which method is best is seen from the same data: an adjustment over the comparisons with the
    best one alone would call too many different.
    """
    pairs = list(comparisons)
    means = holm([comparisons[pair].p_mean for pair in pairs])
    wilcoxon = holm([comparisons[pair].p_wilcoxon for pair in pairs])
    return {pair: max(a, b) < alpha for pair, a, b in zip(pairs, means, wilcoxon, strict=True)}


def tied_with_best(
    means: Mapping[str, float], comparisons: Mapping[tuple[str, str], PairedComparison], alpha: float = 0.05
) -> set[str]:
    """The best method and those that are not distinguishable from it.

    Args:
        means: of each method; higher is better. Methods that are in no comparison are left out unless they are best.
        comparisons: from :func:`compare_lds` or :func:`compare_values`.
    """
    if not means:
        return set()
    best = max(means, key=lambda name: means[name])
    differ = distinguishable(comparisons, alpha)
    others = {b if a == best else a for a, b in comparisons if best in (a, b)}
    return {best} | {name for name in others & set(means) if not differ.get((best, name), differ.get((name, best)))}


def ranks_over_subsets(values: Tensor) -> Tensor:
    """Twice the average ranks within each column, int16: all that an LDS depends on, small enough to keep.

    Args:
        values: ``(num_subsets, num_queries)``, at most 16,000 subsets.
    """
    return (2.0 * average_ranks(values.detach().cpu().double())).round().to(torch.int16)
