"""The noise ceiling against simulated worlds, in which the perfect method is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from attribench.errors import DataError, UsageError
from attribench.metrics.ceiling import expected_spearman, noise_ceiling
from attribench.metrics.lds import score_predictions

pytestmark = pytest.mark.slow


def world(
    seed: int, subsets: int, replicates: int, queries: int, reliability: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Expected losses μ ``(subsets, queries)`` and replicates of them; queries differ in reliability, in this range."""
    generator = torch.Generator().manual_seed(seed)
    low, high = reliability
    rho = low + (high - low) * torch.rand(queries, generator=generator, dtype=torch.float64)
    # Losses of one model move together on all queries, in part: as real ones do.
    common = torch.randn(subsets, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(subsets, queries, generator=generator, dtype=torch.float64)
    expected = (0.5 * common + 0.75**0.5 * own) * rho.sqrt()
    shared = torch.randn(subsets, replicates, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(subsets, replicates, queries, generator=generator, dtype=torch.float64)
    return expected, expected[:, None] + (0.5 * shared + 0.75**0.5 * noise) * (1 - rho).sqrt()


def perfect(expected: Tensor, replicates: Tensor) -> float:
    """The LDS of the method that predicts minus the expected loss."""
    return score_predictions(-expected, replicates.mean(dim=1)).mean().item()


@pytest.mark.parametrize(
    ("subsets", "replicates", "reliability"),
    [(64, 2, (0.5, 0.5)), (64, 3, (0.1, 0.9)), (64, 2, (0.0, 0.4)), (24, 3, (0.2, 0.8)), (120, 3, (0.05, 0.3))],
)
def test_agrees_with_what_a_perfect_method_reaches(
    subsets: int, replicates: int, reliability: tuple[float, float]
) -> None:
    reached, estimated = [], []
    for seed in range(16):
        expected, losses = world(seed, subsets, replicates, 50, reliability)
        found = noise_ceiling(losses, num_resamples=20)
        assert found is not None
        reached.append(perfect(expected, losses))
        estimated.append(found.lds)
    difference = np.array(estimated) - np.array(reached)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert abs(difference.mean()) < 0.01 + 2.5 * error, (np.mean(reached), np.mean(estimated))
    assert abs(difference.mean()) < 0.035


def test_the_interval_covers_the_expected_ceiling() -> None:
    reached, intervals = [], []
    for seed in range(40):
        expected, losses = world(seed, 48, 3, 40, (0.2, 0.7))
        found = noise_ceiling(losses, num_resamples=200)
        assert found is not None
        reached.append(perfect(expected, losses))
        intervals.append(found.interval)
    truth = float(np.mean(reached))
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.85 <= covered <= 1.0


def test_no_noise_and_nothing_but_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(40, 1, 20, generator=generator, dtype=torch.float64)
    clean = noise_ceiling(expected.expand(-1, 3, -1), num_resamples=20)
    assert clean is not None
    assert clean.lds == pytest.approx(1.0, abs=1e-6)
    assert clean.agreement == pytest.approx(1.0)
    noise = noise_ceiling(torch.randn(200, 3, 60, generator=generator, dtype=torch.float64), num_resamples=20)
    assert noise is not None
    assert noise.lds < 0.2  # the square root makes much of little


def test_more_seeds_raise_the_ceiling() -> None:
    _, losses = world(3, 64, 6, 80, (0.3, 0.5))
    found = [noise_ceiling(losses[:, :count], num_resamples=20) for count in (2, 4, 6)]
    values = [ceiling.lds for ceiling in found if ceiling is not None]
    assert len(values) == 3
    assert values == sorted(values)


@pytest.mark.parametrize(("rho", "size"), [(0.3, 8), (0.7, 24), (-0.5, 12)])
def test_expected_spearman_against_draws(rho: float, size: int) -> None:
    generator = np.random.default_rng(0)
    draws = generator.multivariate_normal([0, 0], [[1, rho], [rho, 1]], (4000, size))
    found = [stats.spearmanr(draw[:, 0], draw[:, 1]).statistic for draw in draws]
    assert expected_spearman(rho, size) == pytest.approx(np.mean(found), abs=3 * np.std(found) / np.sqrt(len(found)))


def test_one_replicate_says_nothing() -> None:
    assert noise_ceiling(torch.rand(10, 1, 3)) is None


def test_wrong_calls() -> None:
    with pytest.raises(DataError, match="num_replicates"):
        noise_ceiling(torch.rand(10, 3))
    with pytest.raises(UsageError, match="at least 4 subsets"):
        noise_ceiling(torch.rand(3, 2, 3))
