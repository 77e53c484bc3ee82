"""AUC and rank of what is right, against scikit-learn, SciPy and a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from attribench.errors import DataError
from attribench.metrics.ranking import auc_of_two, auc_per_query, first_rank, mean_interval


def drawn(seed: int = 0, queries: int = 20, train: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(queries, train, generator=generator) < 0.2
    right[:, 0], right[:, 1] = True, False
    scores = torch.randint(0, 12, (queries, train), generator=generator).float() + 3 * right  # many ties
    return scores, right


def test_auc_is_scikit_learn_s() -> None:
    scores, right = drawn()
    expected = [roc_auc_score(r, s) for r, s in zip(right.numpy(), scores.numpy(), strict=True)]
    assert auc_per_query(scores, right).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_rank_counts_what_is_wrong_and_above_and_half_of_what_is_level() -> None:
    scores = torch.tensor([[5.0, 4.0, 4.0, 9.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    right = torch.tensor([[False, True, False, False, True], [True, False, False, False, True]])
    # First query: best right is 4; 5 and 9 are above, one wrong 4 is level. Second: the best of all.
    assert first_rank(scores, right).tolist() == [3.5, 1.0]


def test_the_auc_of_two_samples_is_mann_and_whitney_s() -> None:
    generator = torch.Generator().manual_seed(3)
    higher = torch.randint(0, 9, (15,), generator=generator).double() + 1
    lower = torch.randint(0, 9, (11,), generator=generator).double()
    auc, interval = auc_of_two(higher, lower)
    expected = stats.mannwhitneyu(higher.numpy(), lower.numpy()).statistic / (15 * 11)
    assert auc == pytest.approx(expected, abs=1e-12)
    assert interval.low < auc < interval.high


def test_the_intervals_cover() -> None:
    """Means of 16 skewed values, and AUCs of two normal samples a standard deviation apart: truth known."""
    generator = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    covered, covered_auc = [], []
    for seed in range(300):
        values = torch.from_numpy(generator.beta(4, 2, 16))
        found = mean_interval(values, num_resamples=300, seed=seed)
        covered.append(found.low <= 4 / 6 <= found.high)
        _, found = auc_of_two(
            torch.from_numpy(generator.normal(1, 1, 20)),
            torch.from_numpy(generator.normal(0, 1, 20)),
            num_resamples=300,
            seed=seed,
        )
        covered_auc.append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(covered) <= 0.98
    assert 0.88 <= np.mean(covered_auc) <= 0.98


@pytest.mark.parametrize("rows", ["all", "none"])
def test_a_query_without_right_or_wrong_is_refused(rows: str) -> None:
    scores, right = drawn()
    right[4] = rows == "all"
    with pytest.raises(DataError, match="right and others"):
        auc_per_query(scores, right)


def test_wrong_shapes_and_values_are_refused() -> None:
    scores, right = drawn()
    with pytest.raises(DataError, match="must both be"):
        auc_per_query(scores, right[:, :5])
    with pytest.raises(DataError, match="finite"):
        first_rank(scores.log() * torch.nan, right)
