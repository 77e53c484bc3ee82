"""What became of a group of queries when images were removed from the train set, beyond what became of all others.

Every measure here is a distance from how things were: larger is further. A retraining moves all queries, because a seed is
another or images are fewer; what a removal does to the group it was chosen for is what it does beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from attribench.errors import DataError, UsageError
from attribench.metrics.resampling import Interval


def group_scores(scores: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Scores of train images for groups of queries: the sum over a group, each query's scores first divided by their deviation.

    A method's scores mean something up to a factor a query; without the division the queries with the largest factors would
    decide alone. Scores that are all equal say nothing, and add nothing.

    Args:
        scores: ``(num_queries, num_train)``; higher = stronger proponent.
        groups: the queries of each group, by number.

    Returns:
        float64 ``(num_groups, num_train)``.
    """
    values = scores.double()
    deviation = values.std(dim=1, keepdim=True, correction=0)
    scaled = torch.where(deviation > 0, values / torch.where(deviation > 0, deviation, 1.0), 0.0)
    return torch.stack([scaled[list(group)].sum(dim=0) for group in groups])


def contrasts(on_group: Tensor, on_controls: Tensor, base_group: Tensor, base_controls: Tensor) -> Tensor:
    """Effect on the group minus effect on the control queries, mean over seeds.

    With d a distance from how things were, after a removal, and d₀ the same after retraining on everything with the same seed,

        C(g, k) = mean_s [ (d(g, k, s) − d₀(g, s)) − (d'(g, k, s) − d'₀(g, s)) ],

    unprimed the mean over the group's queries, primed over the control queries: those of the other groups. What a seed, or a
    smaller train set, does to all queries alike cancels; 0 is expected of images that have no more to do with the group than
    with the others.

    Args:
        on_group: d, ``(num_groups, num_sizes, num_seeds)``.
        on_controls: d', likewise.
        base_group: d₀, ``(num_groups, num_seeds)``.
        base_controls: d'₀, likewise.

    Returns:
        float64 ``(num_groups, num_sizes)``.

    Raises:
        DataError: shapes that do not fit together.
    """
    shape = on_group.shape
    if (
        len(shape) != 3
        or on_controls.shape != shape
        or {base_group.shape, base_controls.shape} != {torch.Size((shape[0], shape[2]))}
    ):
        raise DataError(
            "Distances must be (num_groups, num_sizes, num_seeds), those of the control (num_groups, num_seeds)."
        )
    group = on_group.double() - base_group.double()[:, None]
    return (group - (on_controls.double() - base_controls.double()[:, None])).mean(dim=2)


def mean_height(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """The area under each group's curve over the number of removed images, divided by the largest: the curve's mean height.

    By trapezoids, from 0 where nothing is removed.

    Args:
        values: ``(num_groups, num_sizes)``.
        sizes: how many images were removed, ascending.

    Returns:
        float64 ``(num_groups,)``.

    Raises:
        UsageError: sizes that do not ascend from above 0.
        DataError: another number of them.
    """
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] <= 0:
        raise UsageError(f"Numbers of removed images must ascend, from 1 at least: {list(sizes)}.")
    if values.ndim != 2 or values.shape[1] != len(sizes):
        raise DataError(f"values {tuple(values.shape)} must be (num_groups, {len(sizes)}).")
    places = torch.tensor([0.0, *sizes], dtype=torch.float64)
    padded = torch.cat([torch.zeros(len(values), 1, dtype=torch.float64), values.double()], dim=1)
    return torch.trapezoid(padded, places, dim=1) / places[-1]


@dataclass(frozen=True)
class OverGroups:
    """A mean over groups.

    Attributes:
        mean: over groups.
        interval: Student's, with one degree of freedom fewer than groups; groups are the sample.
        p_value: two-sided, of "the mean is 0", by the same t.
        above: how many groups are above 0.
    """

    mean: float
    interval: Interval
    p_value: float
    above: int


def over_groups(values: Tensor, level: float = 0.95) -> OverGroups:
    """The mean over groups with its interval and test.

    Of a method's mean heights minus size-matched random removal's this is the paired t test. It takes the groups' values as
    independent and about normal: they come from retrainings of their own, and share the retraining on everything, which
    cancels in the difference from random removal.

    Args:
        values: ``(num_groups,)``.
        level: of the interval.

    Raises:
        UsageError: fewer than two groups.
    """
    count = len(values)
    if count < 2:
        raise UsageError(f"A mean over groups has an interval from two groups on; there are {count}.")
    array = np.asarray(values.double(), np.float64)
    mean, error = float(array.mean()), float(array.std(ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    statistic = abs(mean) / error if error > 0 else math.inf if mean else 0.0
    p_value = 2.0 * float(stats.t.sf(statistic, count - 1))
    return OverGroups(mean, Interval(mean - half, mean + half, level), p_value, int((array > 0).sum()))
