"""Grouped removals against closed forms, SciPy, and simulated retrainings whose effects are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from attribench.errors import DataError, UsageError
from attribench.metrics.removals import contrasts, group_scores, mean_height, over_groups

SIZES = [20, 50, 100]


def retrained(
    generator: np.random.Generator, slope: float, groups: int = 5, seeds: int = 2, everywhere: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """Distances on a group and on the others, when each of k removed images moves the group by ``slope`` / 100 more.

    Whatever is removed moves everything by ``everywhere`` · k / 100; seeds and retrainings move all queries together.
    """
    fraction = np.array(SIZES)[None, :, None] / 100
    shared = generator.normal(0, 1.0, (1, 1, seeds)) + generator.normal(0, 1.0, (groups, len(SIZES), seeds))
    difficulty = generator.normal(3.0, 1.0, (groups, 1, 1))
    on_group = difficulty + slope * fraction + everywhere * fraction + shared + generator.normal(0, 0.3, shared.shape)
    on_controls = 3.0 + everywhere * fraction + shared + generator.normal(0, 0.3, shared.shape)
    base = generator.normal(0, 1.0, (1, seeds))
    # A group's own part of the noise of the retraining on everything is common to all methods.
    base_group = difficulty[:, :, 0] + base + generator.normal(0, 0.3, (groups, seeds))
    return tuple(map(torch.from_numpy, (on_group, on_controls, base_group, 3.0 + base + 0 * base_group)))


def test_a_contrast_by_hand() -> None:
    on_group, on_controls = torch.tensor([[[5.0, 7.0]]]), torch.tensor([[[2.0, 3.0]]])
    found = contrasts(on_group, on_controls, torch.tensor([[4.0, 4.0]]), torch.tensor([[2.0, 1.0]]))
    assert found.tolist() == [[((5 - 4) - (2 - 2) + (7 - 4) - (3 - 1)) / 2]]


def test_the_mean_height_is_the_area_by_the_largest_size() -> None:
    linear = torch.tensor([[0.2, 0.5, 1.0], [0.4, 1.0, 2.0]])
    assert mean_height(linear, SIZES).tolist() == pytest.approx([0.5, 1.0])  # a triangle
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = [integrate.trapezoid([0, *row], [0, *SIZES]) / 100 for row in values.double().tolist()]
    assert mean_height(values, SIZES).tolist() == pytest.approx(expected)


def test_over_groups_is_the_one_sample_t_test() -> None:
    values = torch.tensor([0.3, -0.1, 0.8, 0.5])
    found, expected = over_groups(values), stats.ttest_1samp(values.double().numpy(), 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert found.above == 3


def test_the_effect_is_found_and_intervals_cover_it_whatever_moves_everything() -> None:
    """The true mean height: half the slope's effect at 100."""
    generator = np.random.default_rng(0)
    means, covered = [], []
    for _ in range(300):
        method = mean_height(contrasts(*retrained(generator, 1.0, everywhere=2.0)), SIZES)
        found = over_groups(method)
        means.append(found.mean)
        covered.append(found.interval.low <= 0.5 <= found.interval.high)
    assert np.mean(means) == pytest.approx(0.5, abs=4 * np.std(means) / np.sqrt(300))
    assert np.mean(covered) == pytest.approx(0.95, abs=3.5 * np.sqrt(0.05 * 0.95 / 300))


def test_a_method_that_is_no_better_than_random_is_seldom_found_better() -> None:
    generator = np.random.default_rng(1)
    rejected, detected = [], []
    for _ in range(400):
        random = mean_height(contrasts(*retrained(generator, 0.0, everywhere=2.0)), SIZES)
        for slope, found in ((0.0, rejected), (2.0, detected)):
            method = mean_height(contrasts(*retrained(generator, slope, everywhere=2.0)), SIZES)
            found.append(over_groups(method - random).p_value <= 0.05)
    assert np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(detected) > 0.9


def test_a_query_s_factor_does_not_decide_what_a_group_removes() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 30, generator=generator)
    first = group_scores(scores, [[0, 1], [2, 3]])
    factors = torch.tensor([[1.0], [1e6], [1e-3], [1.0]])
    assert torch.allclose(first, group_scores(scores * factors, [[0, 1], [2, 3]]), atol=1e-5)
    expected = sum(scores[q].double() / scores[q].double().std(correction=0) for q in (2, 3))
    assert torch.allclose(first[1], torch.as_tensor(expected))
    assert group_scores(torch.ones(1, 5), [[0]]).tolist() == [[0.0] * 5]


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="ascend"):
        mean_height(torch.zeros(2, 2), [5, 5])
    with pytest.raises(DataError, match="num_groups, 3"):
        mean_height(torch.zeros(2, 2), SIZES)
    with pytest.raises(UsageError, match="two groups"):
        over_groups(torch.zeros(1))
    with pytest.raises(DataError, match="num_sizes"):
        contrasts(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, 2), torch.zeros(2, 1))
