"""Does a query's loss depend on which images a model was trained on, or only on the seed it was trained with?

Models are retrained on random subsets, several times on each. What two models of one subset differ in is noise; what subsets
differ in beyond that is due to the images. No attribution can explain a loss in which the second is nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from attribench.errors import DataError, UsageError
from attribench.metrics.resampling import Interval, bootstrap_counts, interval_of_mean

_FEWEST_SUBSETS = 4

#: Groups of subsets that the jackknife leaves out, one at a time.
_GROUPS = 16

#: P-values above this are taken to be of queries that do not respond.
_NULL_ABOVE = 0.5


@dataclass(frozen=True, eq=False)
class Attributability:
    """What :func:`attributability` finds.

    Attributes:
        share: mean over queries of the share, in 0…1, of the variance of a loss between models that is due to which images they
            were trained on; an estimate from noise alone may be a little below 0.
        interval: of ``share``, over queries and subsets.
        per_query: the share of each query, float64 ``(num_queries,)``; from −1/(R−1), see the formula, to 1.
        p_values: of "this query's loss does not depend on the subset", float64 ``(num_queries,)``.
        adjusted: the same after Benjamini and Hochberg: a query is found to respond where it is at most the false discovery
            rate that is allowed.
        responding: estimated share of the queries that respond at all, in 0…1, found or not.
        responding_interval: of ``responding``, over queries and subsets.
    """

    share: float
    interval: Interval
    per_query: Tensor
    p_values: Tensor
    adjusted: Tensor
    responding: float
    responding_interval: Interval

    def found(self, rate: float = 0.05) -> int:
        """How many queries are found to respond at this false discovery rate."""
        return int((self.adjusted <= rate).sum())


def attributability(
    losses: Tensor, *, level: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> Attributability:
    """Variance components of the losses over subsets and training seeds.

    For one query, with a_s due to the subset and e_sr to the seed, the loss after training on subset s with seed r is taken as
    y_sr = μ + a_s + e_sr (one-way analysis of variance with random effects). With the mean squares between and within subsets,

        B = R Σ_s (ȳ_s − ȳ)² / (S − 1),      W = Σ_sr (y_sr − ȳ_s)² / (S (R − 1)),

    E B = σ_e² + R σ_a² and E W = σ_e², so the share ρ = σ_a² / (σ_a² + σ_e²) is estimated by (B − W) / (B + (R−1) W), the
    intraclass correlation (Shrout and Fleiss, Psychological Bulletin 86, 1979, case 1). It is not cut off at 0, so that noise
    does not add up over queries. If a_s is nothing, B/W follows F with S−1 and S(R−1) degrees of freedom: the test of a query
    (Scheffé, The Analysis of Variance, 1959, chapter 7). P-values are adjusted for the number of queries by Benjamini and
    Hochberg (Journal of the Royal Statistical Society B 57, 1995); a share of the queries that do not respond is estimated from
    the p-values above ½, which are about evenly spread for these (Storey, same journal B 64, 2002): π₀ = 2 #{p > ½} / Q.

    *Intervals.* That of the mean share resamples whole subsets, with all their seeds, and queries, as
    :func:`attribench.metrics.resampling.interval_of_mean` has it. P-values of resamples would mean nothing, as a subset drawn
    twice agrees with itself: the share that responds has a normal interval from the jackknife over groups of subsets
    (Shao and Tu, The Jackknife and Bootstrap, 1995, chapter 2), plus what the choice of queries adds, p̃ (1−p̃) / (Q+4) with two
    queries of either kind added (Agresti and Coull, The American Statistician 52, 1998), both times 4 for π₀'s factor 2.

    Assumptions: seeds are nested in subsets and independent of each other; noise is equally large for all subsets, and for the
    test about normal. Of the effect of a subset it is not asked whether it is a sum over images: no method that adds up
    scores need be able to reach all of it.

    Args:
        losses: ``(num_subsets, num_seeds, num_queries)``, each of one model.
        level: of the intervals, in (0, 1).
        num_resamples: of the bootstrap.
        seed: the same seed gives the same numbers.

    Raises:
        UsageError: fewer than 2 seeds, or 4 subsets.
        DataError: not three-dimensional, or values that are not finite.
    """
    if losses.ndim != 3 or not losses.shape[2]:
        raise DataError(f"losses {tuple(losses.shape)} must be (num_subsets, num_seeds, num_queries).")
    values = losses.detach().cpu().double()
    if not values.isfinite().all():
        raise DataError("losses must be finite.")
    num_subsets, num_seeds, _ = values.shape
    if num_seeds < 2:
        raise UsageError(
            "With one training seed a subset, what is due to the images cannot be told from what is due to the seed: two are "
            "needed at least."
        )
    if num_subsets < _FEWEST_SUBSETS:
        raise UsageError(f"Variance between subsets needs at least {_FEWEST_SUBSETS} of them; there are {num_subsets}.")
    squares = _Squares.of(values)
    everything = torch.ones(1, num_subsets, dtype=torch.float64)
    between, within = squares.means(everything)
    per_query = _share(between, within, num_seeds)[0]
    counts = bootstrap_counts(num_resamples, num_subsets, seed, "subsets").double()
    interval = interval_of_mean(per_query, _share(*squares.means(counts), num_seeds), level=level, seed=seed)
    p_values = _p_values(between, within, num_subsets, num_seeds)[0]
    responding, spread = _responding(squares, p_values)
    half = float(stats.norm.ppf((1 + level) / 2)) * spread
    return Attributability(
        share=per_query.mean().item(),
        interval=interval,
        per_query=per_query,
        p_values=p_values,
        adjusted=torch.from_numpy(stats.false_discovery_control(p_values.numpy())),
        responding=responding,
        responding_interval=Interval(max(0.0, responding - half), min(1.0, responding + half), level),
    )


@dataclass(frozen=True, eq=False)
class _Squares:
    """What mean squares are made of: means and sums of squares of every subset, ``(num_subsets, num_queries)``."""

    means_of_subsets: Tensor
    within: Tensor
    num_seeds: int

    @classmethod
    def of(cls, values: Tensor) -> _Squares:
        means = values.mean(dim=1)
        within = ((values - means[:, None]) ** 2).sum(dim=1)
        return cls(means - means.mean(dim=0), within, values.shape[1])

    def means(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares between and within, ``(num_resamples, num_queries)``, of subsets taken so often each.

        Args:
            counts: ``(num_resamples, num_subsets)``; 0 leaves one out.
        """
        total = counts.sum(dim=1, keepdim=True)
        mean = counts @ self.means_of_subsets / total
        squares = (counts @ self.means_of_subsets**2 - total * mean**2).clamp(min=0)
        between = self.num_seeds * squares / (total - 1)
        return between, counts @ self.within / (total * (self.num_seeds - 1))


def _share(between: Tensor, within: Tensor, num_seeds: int) -> Tensor:
    total = between + (num_seeds - 1) * within
    return torch.where(total > 0, (between - within) / torch.where(total > 0, total, 1.0), 0.0)


def _p_values(between: Tensor, within: Tensor, num_subsets: int, num_seeds: int) -> Tensor:
    """1 where nothing varies, 0 where only subsets differ."""
    ratio = torch.where(within > 0, between / torch.where(within > 0, within, 1.0), torch.inf)
    ratio = torch.where((between == 0) & (within == 0), 0.0, ratio)
    return torch.from_numpy(
        np.asarray(stats.f.sf(ratio.numpy(), num_subsets - 1, num_subsets * (num_seeds - 1)), np.float64)
    )


def _responding(squares: _Squares, p_values: Tensor) -> tuple[float, float]:
    """The share of queries that respond, and its standard error."""
    num_subsets, num_queries = squares.within.shape

    def share(values: Tensor) -> Tensor:
        return 1.0 - (values > _NULL_ABOVE).double().mean(dim=-1) / (1.0 - _NULL_ABOVE)

    groups = min(_GROUPS, num_subsets)
    of = torch.arange(num_subsets) * groups // num_subsets
    kept = (of[None] != torch.arange(groups)[:, None]).double()
    left_out = []
    for row in kept:
        between, within = squares.means(row[None])
        left_out.append(share(_p_values(between, within, int(row.sum()), squares.num_seeds)[0]))
    parts = torch.stack(left_out)
    of_subsets = (groups - 1) / groups * ((parts - parts.mean()) ** 2).sum().item()
    above = ((p_values > _NULL_ABOVE).sum().item() + 2) / (num_queries + 4)
    of_queries = above * (1 - above) / (num_queries + 4) / (1.0 - _NULL_ABOVE) ** 2
    return max(0.0, share(p_values).item()), math.sqrt(of_subsets + of_queries)
