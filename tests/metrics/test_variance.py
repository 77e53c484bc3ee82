"""Attributability against simulated worlds, in which each query's share is known, and against SciPy's analysis of variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from attribench.errors import DataError, UsageError
from attribench.metrics.variance import attributability


def world(seed: int, subsets: int, seeds: int, shares: Tensor, freedom: float = np.inf) -> Tensor:
    """Losses ``(subsets, seeds, queries)`` of variance 1 with these shares due to the subset.

    Queries move together, in part, as losses of one model do; noise is Student's t where ``freedom`` is finite.
    """
    generator = np.random.default_rng(seed)
    queries = len(shares)

    def draw(*shape: int) -> np.ndarray:
        if np.isinf(freedom):
            return generator.normal(size=shape)
        return generator.standard_t(freedom, shape) / np.sqrt(freedom / (freedom - 2))

    effect = np.sqrt(0.3) * generator.normal(size=(subsets, 1, 1)) + np.sqrt(0.7) * generator.normal(
        size=(subsets, 1, queries)
    )
    noise = np.sqrt(0.3) * draw(subsets, seeds, 1) + np.sqrt(0.7) * draw(subsets, seeds, queries)
    rho = shares.numpy()
    return torch.from_numpy(3.0 + 0.01 * (np.sqrt(rho) * effect + np.sqrt(1 - rho) * noise))


def test_p_values_and_shares_are_those_of_the_analysis_of_variance() -> None:
    losses = world(0, 12, 3, torch.linspace(0, 0.9, 9).double())
    found = attributability(losses, num_resamples=20)
    for query in range(9):
        groups = losses[:, :, query].numpy()
        expected = stats.f_oneway(*groups)
        assert found.p_values[query].item() == pytest.approx(expected.pvalue, rel=1e-9)
        between, within = 3 * groups.mean(axis=1).var(ddof=1), groups.var(axis=1, ddof=1).mean()
        assert expected.statistic == pytest.approx(between / within)
        assert found.per_query[query].item() == pytest.approx((between - within) / (between + 2 * within))
    assert found.share == pytest.approx(found.per_query.mean().item())


def test_the_share_is_found_and_its_interval_covers() -> None:
    shares = torch.linspace(0.1, 0.9, 40).double()
    estimates, covered = [], []
    for seed in range(60):
        found = attributability(world(seed, 48, 2, shares), num_resamples=200, seed=seed)
        estimates.append(found.share)
        covered.append(found.interval.low <= 0.5 <= found.interval.high)
    error = np.std(estimates, ddof=1) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - 0.5) < 0.01 + 3 * error
    assert np.mean(covered) >= 0.87


@pytest.mark.parametrize("freedom", [np.inf, 5.0])
def test_noise_alone_is_found_to_be_noise(freedom: float) -> None:
    """No query responds: the mean share is 0, and any discovery at all is made in about one world of twenty."""
    any_found, shares = [], []
    for seed in range(200):
        found = attributability(world(seed, 32, 2, torch.zeros(30).double(), freedom), num_resamples=2)
        any_found.append(found.found() > 0)
        shares.append(found.share)
    assert np.mean(any_found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert abs(np.mean(shares)) < 4 * np.std(shares) / np.sqrt(200)


def test_discoveries_are_right_nineteen_times_of_twenty_and_the_share_that_responds_is_found() -> None:
    """Half of the queries respond."""
    shares = torch.tensor([0.0] * 30 + [0.6] * 30).double()
    false, power, responding, covered = [], [], [], []
    for seed in range(60):
        found = attributability(world(seed, 48, 2, shares), num_resamples=2)
        discovered = found.adjusted <= 0.05
        false.append(discovered[:30].sum().item() / max(1, discovered.sum().item()))
        power.append(discovered[30:].double().mean().item())
        responding.append(found.responding)
        covered.append(found.responding_interval.low <= 0.5 <= found.responding_interval.high)
    assert np.mean(false) <= 0.05
    assert np.mean(power) > 0.9
    assert abs(np.mean(responding) - 0.5) < 0.03 + 3 * np.std(responding) / np.sqrt(60)
    assert np.mean(covered) >= 0.87


def test_adjusted_p_values_are_benjamini_and_hochberg_s() -> None:
    found = attributability(world(1, 16, 2, torch.linspace(0, 0.8, 25).double()), num_resamples=2)
    order = found.p_values.argsort()
    expected, smallest = torch.empty(25, dtype=torch.float64), 1.0
    for rank in range(25, 0, -1):
        smallest = min(smallest, found.p_values[order[rank - 1]].item() * 25 / rank)
        expected[order[rank - 1]] = smallest
    assert torch.allclose(found.adjusted, expected)


def test_an_offset_and_a_scale_change_nothing() -> None:
    losses = world(2, 12, 2, torch.linspace(0, 0.8, 10).double())
    first, second = (attributability(values, num_resamples=50) for values in (losses, 40 * losses + 7))
    assert torch.allclose(first.per_query, second.per_query, atol=1e-9)
    assert first.interval.low == pytest.approx(second.interval.low, abs=1e-9)


def test_no_noise_and_no_variance() -> None:
    effect = torch.randn(8, 1, 3, generator=torch.Generator().manual_seed(0)).double().expand(-1, 2, -1).clone()
    effect[:, :, 2] = 1.0  # a query whose loss is the same whatever happens
    found = attributability(effect, num_resamples=10)
    assert found.per_query.tolist() == [1.0, 1.0, 0.0]
    assert found.p_values.tolist() == [0.0, 0.0, 1.0]
    assert found.found() == 2


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="one training seed"):
        attributability(torch.rand(8, 1, 3))
    with pytest.raises(UsageError, match="at least 4"):
        attributability(torch.rand(3, 2, 3))
    with pytest.raises(DataError, match="num_subsets, num_seeds"):
        attributability(torch.rand(8, 3))
    with pytest.raises(DataError, match="finite"):
        attributability(torch.rand(8, 2, 3) * torch.nan)
