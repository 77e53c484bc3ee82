"""P-values against decoys: exact ranks, tails that hold what they promise in simulated worlds, and sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from attribench.errors import DataError, UsageError
from attribench.metrics.decoys import adjusted, decoy_p_values, sum_p_values

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

#: Scores of images that have nothing to do with the query: with a bounded, a light and heavy tails, and in two clumps.
WORLDS: dict[str, Draw] = {
    "uniform": lambda generator, shape: generator.uniform(size=shape),
    "normal": lambda generator, shape: generator.normal(size=shape),
    "exponential": lambda generator, shape: generator.exponential(size=shape),
    "log-normal": lambda generator, shape: np.exp(generator.normal(size=shape)),
    "Pareto, index 3": lambda generator, shape: generator.pareto(3, shape),
    "Poisson, mean 0.1": lambda generator, shape: generator.poisson(0.1, shape).astype(float),
    "mostly nought": lambda generator, shape: (
        np.exp(generator.normal(size=shape)) * (generator.uniform(size=shape) < 0.1)
    ),
    "two clumps": lambda generator, shape: generator.normal(size=shape) + 3 * (generator.uniform(size=shape) < 0.1),
}


def drawn(world: str, seed: int, queries: int, train: int, decoys: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    values = torch.from_numpy(WORLDS[world](generator, (queries, train + decoys)))
    return values[:, :train], values[:, train:]


def test_among_the_decoys_it_is_the_rank() -> None:
    scores, decoys = drawn("normal", 0, 3, 50, 30)  # too few for a tail
    found = decoy_p_values(scores, decoys)
    for query, image in itertools.product(range(3), range(50)):
        above = sum(float(decoy) >= float(scores[query, image]) for decoy in decoys[query])
        assert found[query, image].item() == pytest.approx((1 + above) / 31)


def test_with_a_tail_p_values_fall_with_the_score_and_go_on_where_the_ranks_end() -> None:
    _, decoys = drawn("normal", 1, 1, 0, 200)
    threshold = decoys[0].sort().values[-61]
    scores = torch.linspace(-3, 30, 400).double()[None]
    found = decoy_p_values(scores, decoys)[0]
    below = scores[0] <= threshold
    ranks = torch.tensor([(1 + int((decoys >= score).sum())) / 201 for score in scores[0]]).double()
    assert torch.allclose(found[below], ranks[below])
    assert (found.diff() <= 0).all()
    assert found[-1] < 1e-4 < 1 / 201 < found[below].min()
    assert (found > 0).all()


@pytest.mark.parametrize("world", ["normal", "exponential", "Pareto, index 3"])
def test_the_tail_is_near_the_truth_and_errs_on_the_safe_side(world: str) -> None:
    """Of many sets of 300 decoys, at the score that one image of 3000 exceeds: the mean of the p-values is no smaller."""
    exact = {"normal": stats.norm.isf, "exponential": stats.expon.isf, "Pareto, index 3": lambda p: p ** (-1 / 3) - 1}
    score = torch.tensor(float(exact[world](1 / 3000))).repeat(200, 1)
    _, decoys = drawn(world, 2, 200, 0, 300)
    found = decoy_p_values(score, decoys).mean().item()
    assert 0.9 / 3000 < found < 8 / 3000


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("train", "decoys"), [(450, 50), (1000, 100), (300, 300)])
def test_where_nothing_is_to_be_found_something_is_in_one_query_of_twenty_at_most(
    world: str, train: int, decoys: int
) -> None:
    scores, others = drawn(world, 3, 300, train, decoys)
    any_found = (adjusted(decoy_p_values(scores, others)) <= 0.05).any(dim=1).double().mean().item()
    assert any_found <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 300)


def test_of_scores_that_are_counts_no_tail_is_made() -> None:
    """One of a count that no decoy has is no rarer than 1/(D + 1): a tail would find something for one query in six."""
    scores, others = drawn("Poisson, mean 0.1", 3, 200, 2000, 600)
    assert (adjusted(decoy_p_values(scores, others)) <= 0.05).any(dim=1).double().mean() <= 0.05


def test_what_was_planted_is_found_and_little_else() -> None:
    """Three images of 900 far above the others, for each of 100 queries."""
    scores, decoys = drawn("normal", 4, 100, 900, 100)
    scores[:, :3] += 20.0
    discovered = adjusted(decoy_p_values(scores, decoys)) <= 0.05
    assert discovered[:, :3].double().mean() > 0.9
    false = discovered[:, 3:].sum(dim=1).double() / discovered.sum(dim=1).clamp(min=1)
    assert false.mean() <= 0.06


def test_there_is_a_tail_from_fifty_decoys_on_if_their_scores_differ() -> None:
    _, decoys = drawn("exponential", 9, 1, 0, 50)
    far = torch.full((1, 1), 1000.0).double()
    assert decoy_p_values(far, decoys).item() < 1 / 51
    assert decoy_p_values(far, decoys[:, :49]).item() == pytest.approx(1 / 50)
    steps = (5 * decoys).round() / 5
    assert decoy_p_values(far, steps).item() == pytest.approx(1 / 51)


def test_the_scale_of_the_scores_does_not_matter() -> None:
    scores, decoys = drawn("log-normal", 5, 4, 60, 80)
    first, second = (decoy_p_values(a, b) for a, b in ((scores, decoys), (1e-6 * scores - 3, 1e-6 * decoys - 3)))
    assert torch.allclose(first, second, rtol=1e-5)


def test_decoys_that_all_score_alike() -> None:
    decoys = torch.zeros(1, 60)
    found = decoy_p_values(torch.tensor([[-1.0, 0.0, 1.0]]), decoys)
    assert found[0].tolist() == pytest.approx([1.0, 1.0, 1 / 61])


def test_adjusted_is_benjamini_and_hochberg_s_row_by_row() -> None:
    p_values = torch.tensor([[0.01, 0.04, 0.03, 0.5], [0.5, 0.9, 0.02, 0.001]])
    # By hand: p(i) · 4/i, cumulatively smallest from the end.
    assert adjusted(p_values).tolist() == [
        pytest.approx([0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5]),
        pytest.approx([0.5 * 4 / 3, 0.9, 0.04, 0.004]),
    ]


def test_sums_against_every_possible_draw() -> None:
    """Two images and twenty decoys: all 231 pairs."""
    scores, decoys = drawn("exponential", 6, 5, 6, 20)
    groups = [[0, 3], [1, 2]]
    found = sum_p_values(scores, decoys, groups, num_draws=20_000)
    for query in range(5):
        for number, group in enumerate(groups):
            pool = [*scores[query, group].tolist(), *decoys[query].tolist()]
            total = sum(pool[:2])
            exact = np.mean([a + b >= total - 1e-12 for a, b in itertools.combinations(pool, 2)])
            assert found.totals[query, number].item() == pytest.approx(total)
            assert found.p_values[query, number].item() == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("world", ["normal", "Pareto, index 3"])
def test_sums_of_groups_that_are_like_decoys_are_even(world: str) -> None:
    scores, decoys = drawn(world, 7, 400, 30, 60)
    found = sum_p_values(scores, decoys, [list(range(30))], num_draws=199).p_values[:, 0].numpy()
    for level in (0.05, 0.2, 0.5):
        assert np.mean(found <= level) <= level + 2.5 * np.sqrt(level * (1 - level) / 400)
    assert np.mean(found <= 0.5) > 0.4


def test_many_small_contributions_are_seen_in_sum_alone() -> None:
    scores, decoys = drawn("normal", 8, 50, 200, 100)
    scores[:, :40] += 1.0
    found = sum_p_values(scores, decoys, [list(range(40)), list(range(40, 80))], num_draws=999)
    assert (found.p_values[:, 0] <= 0.05).double().mean() > 0.95
    assert (found.p_values[:, 1] <= 0.05).double().mean() < 0.2
    single = adjusted(decoy_p_values(scores, decoys)) <= 0.05
    assert single[:, :40].double().mean() < 0.1


def test_a_group_of_one_image_is_compared_as_that_image_is() -> None:
    scores, decoys = drawn("normal", 10, 3, 5, 100)
    scores[0, 2] = 12.0
    found = sum_p_values(scores, decoys, [[2], [0, 1]]).p_values[:, 0]
    assert torch.equal(found, decoy_p_values(scores[:, 2:3], decoys)[:, 0])
    assert found[0] < 1e-3


def test_of_a_thousand_groups_one_can_stand_out() -> None:
    scores, decoys = drawn("normal", 11, 1, 3000, 100)
    scores[:, :3] += 4.0
    groups = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(1000)]
    found = adjusted(sum_p_values(scores, decoys, groups).p_values)[0]
    assert found[0] <= 0.05
    assert (found[1:] > 0.05).all()


def test_drawing_on_leaves_what_is_frequent_as_it_was_and_makes_what_is_rare_finer() -> None:
    """Two images above all twenty decoys: of 231 pairs only themselves reach them."""
    decoys = torch.arange(20).double()[None]
    scores = torch.tensor([[30.0, 30.0, 9.0, 11.0]]).double()
    groups = [[0, 1], [2, 3]] + [[2, 3]] * 98
    short, long = (sum_p_values(scores, decoys, part, num_draws=199).p_values[0] for part in (groups[:1], groups))
    assert short[0].item() >= 1 / 201
    assert long[0].item() == pytest.approx(1 / 231, rel=0.2)  # 20,000 draws
    assert 0.4 < long[1].item() < 0.6
    assert round(long[1].item() * 200) == pytest.approx(long[1].item() * 200)  # of the first 199 alone


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="19 decoys are too few"):
        decoy_p_values(torch.zeros(1, 3), torch.zeros(1, 19))
    with pytest.raises(DataError, match="num_decoys"):
        decoy_p_values(torch.zeros(2, 3), torch.zeros(1, 30))
    with pytest.raises(DataError, match="finite"):
        decoy_p_values(torch.zeros(1, 3) * torch.nan, torch.zeros(1, 30))
    with pytest.raises(UsageError, match="without train images"):
        sum_p_values(torch.zeros(1, 3), torch.zeros(1, 30), [[0], []])
