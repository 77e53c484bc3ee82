from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import attribench.metrics.resampling as resampling
from attribench.errors import DataError, UsageError
from attribench.metrics import Interval, lds_interval, published_bootstrap, score_predictions, standard_error
from attribench.metrics.resampling import bootstrap_counts, resampled_lds


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices here are small: sharing them out costs more than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def world(
    num_subsets: int,
    num_queries: int,
    seed: int,
    *,
    noise: float = 2.0,
    common: float = 0.0,
    uneven: float = 0.0,
    independent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Predictions and outputs (num_subsets, num_queries) of freshly drawn subsets and queries.

    Args:
        noise: Of each output; what makes the LDS less than 1.
        common: The part of predictions, and of the noise, that all queries share, as subsets move them together.
        uneven: How much the queries differ in how well they are predicted.
        independent: Draw the common part anew for each query: the same queries one by one, each with its own subsets.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    def draw_common() -> Tensor:
        return common * draw(num_subsets, num_queries if independent else 1)

    predictions = draw(num_subsets, num_queries) + draw_common()
    quality = (uneven * draw(1, num_queries)).exp()
    skill = quality * predictions + noise * draw(num_subsets, num_queries) + draw_common()
    return predictions, -skill


def rows_drawn(counts: Tensor) -> Tensor:
    """The indices that have these counts: (num_subsets,) → (draws,)."""
    return torch.arange(len(counts)).repeat_interleave(counts)


def scipy_mean(predictions: Tensor, outputs: Tensor) -> float:
    pairs = zip(predictions.T.numpy(), -outputs.T.numpy(), strict=True)
    values = [
        0.0 if np.ptp(first) == 0 or np.ptp(second) == 0 else stats.spearmanr(first, second).statistic
        for first, second in pairs
    ]
    return float(np.mean(values))


class TestResampledLds:
    @pytest.mark.parametrize(("num_subsets", "num_queries"), [(2, 3), (7, 1), (24, 40), (64, 5), (700, 3)])
    @pytest.mark.parametrize("decimals", [16, 0])  # without and with ties in the data
    def test_equals_ranking_again(self, num_subsets: int, num_queries: int, decimals: int) -> None:
        predictions, outputs = (x.round(decimals=decimals) for x in world(num_subsets, num_queries, seed=1))
        counts = bootstrap_counts(50, num_subsets, 0, "subsets")
        got = resampled_lds(predictions, outputs, counts)
        for row, drawn in zip(got, counts, strict=True):
            rows = rows_drawn(drawn)
            assert torch.equal(row, score_predictions(predictions[rows], outputs[rows]))

    def test_does_not_depend_on_the_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        predictions, outputs = world(20, 13, seed=1)
        counts = bootstrap_counts(30, 20, 0, "subsets")
        expected = resampled_lds(predictions, outputs, counts)
        monkeypatch.setattr(resampling, "_BLOCK_ELEMENTS", 5 * 30 * 20)
        assert torch.equal(resampled_lds(predictions, outputs, counts), expected)

    def test_a_single_subset_drawn_every_time_is_undefined(self) -> None:
        predictions, outputs = world(5, 3, seed=1)
        assert resampled_lds(predictions, outputs, torch.tensor([[0, 5, 0, 0, 0]])).tolist() == [[0.0] * 3]

    def test_values_whose_differences_overflow_or_vanish(self) -> None:
        predictions = torch.tensor([[-1.7e308], [5e-324], [1e-323], [1.7e308]], dtype=torch.float64)
        counts = torch.ones(1, 4, dtype=torch.int64)
        assert resampled_lds(predictions, -predictions, counts).tolist() == [[1.0]]

    def test_errors(self) -> None:
        predictions, outputs = world(5, 3, seed=1)
        with pytest.raises(DataError, match=r"counts \(2, 4\)"):
            resampled_lds(predictions, outputs, torch.ones(2, 4, dtype=torch.int64))
        with pytest.raises(DataError, match="finite"):
            resampled_lds(predictions, outputs * math.nan, torch.ones(2, 5, dtype=torch.int64))


class TestBootstrapCounts:
    def test_are_draws_with_replacement(self) -> None:
        counts = bootstrap_counts(2000, 10, 0, "subsets")
        assert (counts.sum(dim=1) == 10).all()
        # Each count is Binomial(10, 1/10): mean 1, variance 0.9; the tolerance is 5 standard errors.
        np.testing.assert_allclose(counts.double().mean(dim=0), 1.0, atol=5 * math.sqrt(0.9 / 2000))
        np.testing.assert_allclose(counts.double().var(), 0.9, atol=0.05)

    def test_seed_and_axis(self) -> None:
        counts = bootstrap_counts(5, 10, 0, "subsets")
        assert torch.equal(bootstrap_counts(5, 10, 0, "subsets"), counts)
        assert not torch.equal(bootstrap_counts(5, 10, 1, "subsets"), counts)
        assert not torch.equal(bootstrap_counts(5, 10, 0, "queries"), counts)


def plain_interval(predictions: Tensor, outputs: Tensor, level: float, num_resamples: int, seed: int) -> Interval:
    """The documented interval by SciPy and loops, on the same draws."""
    num_subsets, num_queries = predictions.shape

    def per_query(rows: Tensor) -> np.ndarray:
        columns = (slice(query, query + 1) for query in range(num_queries))
        return np.array([scipy_mean(predictions[rows, column], outputs[rows, column]) for column in columns])

    values = per_query(torch.arange(num_subsets))
    subset_draws = bootstrap_counts(num_resamples, num_subsets, seed, "subsets")
    query_draws = bootstrap_counts(num_resamples, num_queries, seed, "queries")
    both, subsets_only, between = [], [], []
    for subsets, queries in zip(subset_draws, query_draws, strict=True):
        resampled = per_query(rows_drawn(subsets))
        both.append(resampled[rows_drawn(queries).numpy()].mean())
        subsets_only.append(resampled.mean())
        between.append(resampled.var(ddof=1))
    true_between = max(0.0, 2 * values.var(ddof=1) - np.mean(between))
    wanted = np.var(subsets_only, ddof=1) + true_between / num_queries
    scale = math.sqrt(wanted / np.var(both, ddof=1))
    low, high = np.quantile(np.array(both) - np.mean(both), [(1 - level) / 2, (1 + level) / 2])
    return Interval(values.mean() + scale * low, values.mean() + scale * high, level)


class TestLdsInterval:
    @pytest.mark.parametrize("uneven", [0.0, 1.5])
    def test_against_a_plain_implementation(self, uneven: float) -> None:
        predictions, outputs = world(12, 6, seed=3, uneven=uneven)
        outputs[:, 2] = 1.0  # an undefined query counts as 0
        got = lds_interval(predictions, outputs, level=0.8, num_resamples=40, seed=5)
        expected = plain_interval(predictions, outputs, level=0.8, num_resamples=40, seed=5)
        np.testing.assert_allclose([got.low, got.high], [expected.low, expected.high], rtol=0, atol=1e-12)
        assert got.level == 0.8

    def test_deterministic_by_seed(self) -> None:
        predictions, outputs = world(12, 6, seed=3)
        interval = lds_interval(predictions, outputs, num_resamples=100)
        assert lds_interval(predictions, outputs, num_resamples=100) == interval
        assert lds_interval(predictions, outputs, num_resamples=100, seed=1) != interval

    def test_contains_the_point_and_widens_with_the_level(self) -> None:
        predictions, outputs = world(39, 100, seed=3, common=1.0)
        point = score_predictions(predictions, outputs).mean().item()
        narrow, wide = (lds_interval(predictions, outputs, level=level) for level in (0.5, 0.95))
        assert wide.low < narrow.low < point < narrow.high < wide.high

    def test_perfect_and_undefined_scores(self) -> None:
        predictions, _ = world(12, 6, seed=3)
        assert lds_interval(predictions, -predictions, num_resamples=20) == Interval(1.0, 1.0, 0.95)
        assert lds_interval(predictions * 0, predictions, num_resamples=20) == Interval(0.0, 0.0, 0.95)

    def test_one_query(self) -> None:
        interval = lds_interval(*world(24, 1, seed=3), num_resamples=200)
        assert -1 <= interval.low < interval.high <= 1

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "setting",
        [
            {"noise": 8.0},  # the noise of each query's own LDS prevails
            {"common": 1.0, "noise": 1.0},  # all queries move together with the subsets
            {"noise": 1.0, "uneven": 1.5},  # the queries themselves differ
        ],
    )
    def test_coverage(self, setting: dict[str, float]) -> None:
        """95 % intervals contain the true expected LDS in about 95 % of worlds.

        Over 1000 worlds of each setting: 0.94, 0.93, 0.94. The bounds are about 3 standard errors of 200 worlds away.
        They refuse the simpler bootstraps: of both without the right width (1.00, 0.95, 0.97), of subsets alone
        (0.93, 0.94, 0.59) and of queries alone (0.92, 0.46, 0.93).
        """
        num_subsets, num_queries, num_worlds = 20, 40, 200
        alone = world(num_subsets, 100_000, seed=0, independent=True, **setting)
        truth = score_predictions(*alone).mean().item()
        hits = 0
        for seed in range(1, num_worlds + 1):
            drawn = world(num_subsets, num_queries, seed, **setting)  # type: ignore[arg-type]
            interval = lds_interval(*drawn, num_resamples=200, seed=seed)
            hits += interval.low <= truth <= interval.high
        assert 0.90 <= hits / num_worlds < 0.99

    def test_errors(self) -> None:
        predictions, outputs = world(5, 3, seed=1)
        for level in (0.0, 1.0, 95.0, math.nan):
            with pytest.raises(UsageError, match="level"):
                lds_interval(predictions, outputs, level=level)
        with pytest.raises(UsageError, match="num_resamples must be at least 2, not 1"):
            lds_interval(predictions, outputs, num_resamples=1)
        with pytest.raises(UsageError, match="at least 2"):
            lds_interval(predictions[:1], outputs[:1])
        with pytest.raises(DataError, match=r"predictions \(5, 3\) and outputs \(5, 2\)"):
            lds_interval(predictions, outputs[:, :2])
        with pytest.raises(DataError, match="finite"):
            lds_interval(predictions, outputs / 0)


class TestPublishedBootstrap:
    def test_against_a_plain_loop(self) -> None:
        predictions, outputs = world(16, 8, seed=3)
        draws = bootstrap_counts(64, 16, 7, "subsets")
        means = [scipy_mean(predictions[rows], outputs[rows]) for rows in map(rows_drawn, draws)]
        got = published_bootstrap(predictions, outputs, seed=7)
        np.testing.assert_allclose(got, [np.mean(means), np.std(means)], rtol=0, atol=1e-12)

    def test_ties_pull_the_mean_down(self) -> None:
        """As published: 26.02 on the original subsets, 25.67 over resamples of 64; a factor 64/65 predicts 25.62."""
        predictions, outputs = world(64, 200, seed=3, noise=4.0)
        point = score_predictions(predictions, outputs).mean().item()
        mean, deviation = published_bootstrap(predictions, outputs, num_resamples=2000)
        error = deviation / math.sqrt(2000)
        assert mean == pytest.approx(point * 64 / 65, abs=4 * error)
        assert mean < point - 4 * error

    def test_errors(self) -> None:
        with pytest.raises(UsageError, match="num_resamples"):
            published_bootstrap(*world(5, 3, seed=1), num_resamples=0)


def test_standard_error() -> None:
    values = torch.tensor([0.1, 0.4, 0.4, -0.2])
    assert standard_error(values) == pytest.approx(stats.sem(values.numpy()), rel=1e-6)
    with pytest.raises(UsageError, match="at least 2"):
        standard_error(values[:1])
