"""The noise ceiling: how high an LDS could be, given that the ground truth itself is noisy.

A model retrained on the same subset with another seed has other losses. No method can predict that part, so even a method
that knew each subset's expected loss would stay below an LDS of 1. How far below follows from how well two retrainings of
the same subsets agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.errors import DataError, UsageError
from attribench.metrics.lds import score_predictions
from attribench.metrics.resampling import Interval, bootstrap_counts, interval_of_mean, resampled_lds

#: Random halvings of the subsets over which the spread between queries is averaged.
_HALVINGS = 20

#: Quantiles at which the distribution of reliabilities is evaluated.
_QUANTILES = 200


@dataclass(frozen=True, slots=True)
class NoiseCeiling:
    """What :func:`noise_ceiling` finds.

    Attributes:
        lds: the mean LDS over queries, in 0…1, of a method that predicts every subset's expected loss.
        interval: of ``lds``, over queries and subsets.
        agreement: mean Spearman correlation, over subsets, between the losses of two replicates.
    """

    lds: float
    interval: Interval
    agreement: float


def noise_ceiling(
    replicates: Tensor, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> NoiseCeiling | None:
    """Estimate the mean LDS of a perfect method from replicates of the ground truth.

    Let y_r(S) = μ(S) + e_r(S) be the loss of one query after training on subset S with seed r, and let the ground truth
    be its mean over R seeds. A perfect method predicts μ. With ρ the Pearson correlation of two replicates over subsets,

        ρ = Var μ / (Var μ + Var e),      corr(μ, ȳ)² = R ρ / (1 + (R − 1) ρ)      (Spearman and Brown, 1910).

    The LDS uses ranks over a finite number n of subsets. For normal variables, Spearman's coefficient has the expectation
    (Moran, Biometrika 35, 1948)

        E r_s = 6 / (π (n + 1)) · (arcsin ρ + (n − 2) arcsin(ρ / 2)),

    which is inverted for the replicates' mean coefficient and applied to corr(μ, ȳ). Queries differ in ρ, and the square
    root is concave, so the root of the mean would be too high: the queries' ρ are taken to follow a Beta distribution,
    whose mean is that above, and whose variance is the covariance, over queries, of the coefficients on two disjoint halves
    of the subsets (in which the noise of either half has no part).

    Assumptions: noise of different seeds is independent and equally large, does not depend on the subset, and both it and
    μ are about normal over subsets. What replicates share is not seen as noise: seeds share the noise draws of the loss, and
    noise draws share the model. From noise draws alone the ceiling is therefore too high.

    Args:
        replicates: losses ``(num_subsets, num_replicates, num_queries)``.
        level: of the interval, in (0, 1); it maps the interval of the mean coefficient through the formulas above.
        num_resamples: of the interval.
        seed: the same seed gives the same numbers.

    Returns:
        None where there are no replicates to compare (fewer than 2).

    Raises:
        UsageError: fewer than 4 subsets.
        DataError: not three-dimensional, or values that are not finite.
    """
    if replicates.ndim != 3:
        raise DataError(f"replicates {tuple(replicates.shape)} must be (num_subsets, num_replicates, num_queries).")
    num_subsets, count, _ = replicates.shape
    if count < 2:
        return None
    if num_subsets < 4:
        raise UsageError(f"A noise ceiling needs at least 4 subsets; there are {num_subsets}.")
    counts = bootstrap_counts(num_resamples, num_subsets, seed, "subsets")
    pairs = [(a, b) for a in range(count) for b in range(a)]
    resampled = torch.stack([resampled_lds(-replicates[:, a], replicates[:, b], counts) for a, b in pairs]).mean(0)
    per_query = _agreement(replicates)
    interval = interval_of_mean(per_query, resampled, level=level, seed=seed)
    variance = _variance_between_queries(replicates, seed)

    def ceiling(agreement: float) -> float:
        return _mean_ceiling(agreement, variance, num_subsets, count)

    point = per_query.mean().item()
    return NoiseCeiling(ceiling(point), Interval(ceiling(interval.low), ceiling(interval.high), level), point)


def _agreement(replicates: Tensor) -> Tensor:
    """Mean Spearman correlation between replicates, ``(num_queries,)``."""
    count = replicates.shape[1]
    pairs = [(a, b) for a in range(count) for b in range(a)]
    return torch.stack([score_predictions(-replicates[:, a], replicates[:, b]) for a, b in pairs]).mean(0).cpu()


def _variance_between_queries(replicates: Tensor, seed: int) -> float:
    """Variance of the queries' true coefficients: noise of disjoint halves of the subsets does not covary."""
    if replicates.shape[2] < 2:
        return 0.0
    generator = torch.Generator().manual_seed(derive_seed(seed, "ceiling", "halves"))
    found = []
    for _ in range(_HALVINGS):
        order = torch.randperm(len(replicates), generator=generator)
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        found.append(torch.cov(torch.stack([_agreement(replicates[first]), _agreement(replicates[second])]))[0, 1])
    return max(0.0, torch.stack(found).mean().item())


def _mean_ceiling(agreement: float, variance: float, num_subsets: int, num_replicates: int) -> float:
    reliability = _pearson(agreement, num_subsets)
    if reliability <= 0.0:
        return 0.0
    step = 1e-3  # the coefficient's slope turns its variance into one of ρ
    slope = (expected_spearman(reliability, num_subsets) - expected_spearman(reliability - step, num_subsets)) / step
    variance = min(variance / slope**2, 0.99 * reliability * (1.0 - reliability))
    rho: NDArray[np.float64] = np.array([reliability])
    if variance > 1e-8:
        size = reliability * (1.0 - reliability) / variance - 1.0
        levels = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        rho = stats.beta.ppf(levels, reliability * size, (1.0 - reliability) * size)
    validity = np.sqrt(num_replicates * rho / (1.0 + (num_replicates - 1) * rho))
    return float(np.mean([expected_spearman(value, num_subsets) for value in validity]))


def expected_spearman(correlation: float, num_samples: int) -> float:
    """Expected Spearman coefficient of ``num_samples`` draws of two normal variables with this Pearson correlation."""
    rho = min(1.0, max(-1.0, correlation))
    return 6.0 / (math.pi * (num_samples + 1)) * (math.asin(rho) + (num_samples - 2) * math.asin(rho / 2.0))


def _pearson(coefficient: float, num_samples: int) -> float:
    """The inverse of :func:`expected_spearman`, by bisection; it rises strictly."""
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if expected_spearman(middle, num_samples) < coefficient:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0
