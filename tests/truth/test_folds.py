from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from attribench.errors import UsageError
from attribench.metrics.lds import spearman
from attribench.truth.folds import fold_of, num_folds, ranks_within_folds


def test_the_correlation_of_ranks_within_folds_is_the_mean_of_the_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 24, 5, dtype=torch.float64, generator=generator)
    first += 0.5 * second
    first[::4] += 100.0  # what a fold is off by does not matter
    ranked = [ranks_within_folds(values, range(24), 4) for values in (first, second)]
    expected = [
        np.mean([spearmanr(first[fold::4, q], second[fold::4, q]).statistic for fold in range(4)]) for q in range(5)
    ]
    assert np.allclose(spearman(*ranked).numpy(), expected, atol=1e-12)


def test_folds_go_by_the_number_of_the_subset() -> None:
    values = torch.tensor([[5.0], [1.0], [7.0], [3.0]])
    assert ranks_within_folds(values, [0, 1, 4, 5], 4).flatten().tolist() == [0.25, 0.25, 0.75, 0.75]
    assert [fold_of(subset, 2) for subset in (0, 1, 2, 7)] == [0, 1, 0, 1]


def test_few_subsets_make_two_folds_and_fewer_none() -> None:
    assert [num_folds(count) for count in (4, 15, 16, 64)] == [2, 2, 4, 4]
    with pytest.raises(UsageError, match="at least 4 subsets, and there are 3"):
        num_folds(3)
