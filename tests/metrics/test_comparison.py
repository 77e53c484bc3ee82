"""Paired comparisons: their numbers against SciPy, their error rates in worlds where all methods are equally good."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from attribench.errors import DataError
from attribench.metrics.comparison import (
    PairedComparison,
    compare_lds,
    compare_values,
    distinguishable,
    holm,
    ranks_over_subsets,
    tied_with_best,
)
from attribench.metrics.resampling import Interval


def world(seed: int, subsets: int, queries: int, quality: dict[str, float]) -> tuple[dict[str, Tensor], Tensor]:
    """Predictions of methods, which see the truth through noise of their own, and outputs.

    Part of every deviation is common to all queries of a subset: over new subsets, the queries' LDS move together.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        common = torch.randn(subsets, 1, generator=generator, dtype=torch.float64)
        own = torch.randn(subsets, queries, generator=generator, dtype=torch.float64)
        return 0.6 * common + 0.8 * own

    truth = draw()
    return {name: share * truth + (1 - share) * draw() for name, share in quality.items()}, -(truth + draw())


def rejected(comparison: PairedComparison, alpha: float = 0.05) -> tuple[bool, bool]:
    return comparison.p_mean < alpha, comparison.p_wilcoxon < alpha


@pytest.mark.slow
@pytest.mark.parametrize(("subsets", "queries"), [(64, 30), (24, 60)])
def test_equal_methods_are_told_apart_no_more_often_than_promised(subsets: int, queries: int) -> None:
    worlds = 200
    found = [
        rejected(compare_lds(*world(seed, subsets, queries, {"a": 0.4, "b": 0.4}), num_resamples=120)["a", "b"])
        for seed in range(worlds)
    ]
    of_mean, of_wilcoxon = np.mean(found, axis=0)
    assert of_mean < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / worlds)
    assert of_wilcoxon > of_mean  # it takes queries as independent, which over new subsets they are not


def test_wilcoxon_keeps_its_level_where_queries_are_independent() -> None:
    worlds, generator = 400, np.random.default_rng(1)
    found = [
        rejected(compare_values({"a": generator.normal(size=20), "b": generator.normal(size=20)})["a", "b"])
        for _ in range(worlds)
    ]
    assert (np.mean(found, axis=0) < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / worlds)).all()


@pytest.mark.slow
def test_of_many_equal_methods_hardly_ever_one_is_called_worse_than_the_best() -> None:
    wrong, worlds = 0, 60
    for seed in range(worlds):
        predictions, outputs = world(seed, 48, 30, dict.fromkeys("abcde", 0.4))
        comparisons = compare_lds(predictions, outputs, num_resamples=100)
        best = max(predictions, key=lambda name: sum(_signed(comparisons, name, other) for other in predictions))
        wrong += len(tied_with_best({name: float(name == best) for name in predictions}, comparisons)) < len(
            predictions
        )
    assert wrong <= 0.05 * worlds + 2.6 * np.sqrt(0.05 * 0.95 * worlds)


def _signed(comparisons: dict[tuple[str, str], PairedComparison], a: str, b: str) -> float:
    if (a, b) in comparisons:
        return comparisons[a, b].difference
    return -comparisons[b, a].difference if (b, a) in comparisons else 0.0


def test_a_clear_difference_is_seen() -> None:
    seen = [
        all(rejected(compare_lds(*world(seed, 64, 60, {"a": 0.7, "b": 0.3}), num_resamples=100)["a", "b"]))
        for seed in range(20)
    ]
    assert np.mean(seen) > 0.9


def test_the_difference_and_its_interval() -> None:
    predictions, outputs = world(5, 40, 25, {"a": 0.6, "b": 0.4, "c": 0.2})
    found = compare_lds(predictions, outputs, num_resamples=100)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]

    def mean_lds(name: str) -> float:
        columns = zip(predictions[name].T.numpy(), -outputs.T.numpy(), strict=True)
        return float(np.mean([stats.spearmanr(x, y).statistic for x, y in columns]))

    for (a, b), comparison in found.items():
        assert comparison.difference == pytest.approx(mean_lds(a) - mean_lds(b), abs=1e-12)
        assert comparison.interval.low < comparison.difference < comparison.interval.high
        outside = not comparison.interval.low < 0 < comparison.interval.high
        assert outside == (comparison.p_mean < 0.05)


def test_ranks_say_the_same_as_values() -> None:
    predictions, outputs = world(6, 30, 10, {"a": 0.6, "b": 0.4})
    predictions["a"][:4] = predictions["a"][0]  # ties
    kept = {name: ranks_over_subsets(values) for name, values in predictions.items()}
    assert kept["a"].dtype == torch.int16
    ranked = {name: values.double() for name, values in kept.items()}
    assert compare_lds(ranked, ranks_over_subsets(outputs).double()) == compare_lds(predictions, outputs)


def test_a_method_and_itself() -> None:
    predictions, outputs = world(7, 20, 8, {"a": 0.5})
    found = compare_lds({"a": predictions["a"], "again": predictions["a"].clone()}, outputs, num_resamples=50)
    assert found["a", "again"] == PairedComparison(0.0, Interval(0.0, 0.0, 0.95), 1.0, 1.0)


def test_values_against_scipy() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(1.0, 1, 30), generator.normal(0.5, 1, 30)
    (found,) = compare_values({"a": a, "b": b}).values()
    expected = stats.ttest_rel(a, b)
    assert found.p_mean == pytest.approx(expected.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)


def test_other_queries_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="same queries"):
        compare_values({"a": np.zeros(3), "b": np.zeros(4)})


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5], [0.5]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def comparison(p_mean: float, p_wilcoxon: float) -> PairedComparison:
    return PairedComparison(0.1, Interval(0.0, 0.2, 0.95), p_mean, p_wilcoxon)


def test_both_tests_must_reject() -> None:
    found = {
        ("a", "b"): comparison(0.001, 0.001),
        ("a", "c"): comparison(0.001, 0.4),
        ("b", "c"): comparison(0.4, 0.001),
    }
    assert distinguishable(found) == {("a", "b"): True, ("a", "c"): False, ("b", "c"): False}
    assert tied_with_best({"a": 0.5, "b": 0.3, "c": 0.4}, found) == {"a", "c"}
    assert tied_with_best({"a": 0.2, "b": 0.3, "c": 0.1}, found) == {"b", "c"}
    assert tied_with_best({"a": 0.5, "untested": 0.1}, found) == {"a"}
    assert tied_with_best({}, {}) == set()
