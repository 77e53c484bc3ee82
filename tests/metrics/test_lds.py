from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import Tensor

import attribench.metrics.lds as lds
from attribench.errors import DataError, UsageError
from attribench.metrics import (
    average_ranks,
    linear_datamodeling_score,
    predict_outputs,
    score_predictions,
    spearman,
    undefined_queries,
)


def half_masks(num_subsets: int, num_train: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_subsets, num_train, generator=generator).argsort(dim=1) < num_train // 2


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scipy_spearman(first: Tensor, second: Tensor) -> np.ndarray:
    """Column by column; 0 where SciPy says NaN."""
    columns = []
    for a, b in zip(first.double().numpy().T, second.double().numpy().T, strict=True):
        constant = (a == a[0]).all() or (b == b[0]).all()
        columns.append(0.0 if constant else stats.spearmanr(a, b).statistic)
    return np.array(columns)


class TestLinearDatamodelingScore:
    def test_against_scipy(self) -> None:
        scores, masks, outputs = normal(20, 50), half_masks(24, 50), normal(24, 20, seed=1)
        expected = [
            stats.spearmanr([sum(row[mask].tolist()) for mask in masks], -loss).statistic
            for row, loss in zip(scores, outputs.T, strict=True)
        ]
        got = linear_datamodeling_score(scores, masks, outputs)
        assert got.dtype == torch.float64
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)

    def test_a_proponent_lowers_the_loss(self) -> None:
        masks = half_masks(16, 10)
        loss = 2.0 - masks[:, 3].float()  # image 3 in the subset: loss 1, else 2
        scores = torch.zeros(2, 10)
        scores[0, 3] = 0.7  # named a proponent
        scores[1, 3] = -0.7  # named an opponent
        got = linear_datamodeling_score(scores, masks, torch.stack([loss, loss], dim=1))
        assert got.tolist() == [1.0, -1.0]

    def test_a_linear_world_is_predicted_perfectly(self) -> None:
        influence, masks = normal(30, 40), half_masks(64, 40)
        outputs = 5.0 - masks.double() @ influence.T
        assert linear_datamodeling_score(influence, masks, outputs).tolist() == [1.0] * 30
        assert linear_datamodeling_score(-influence, masks, outputs).tolist() == [-1.0] * 30

    def test_only_ranks_matter(self) -> None:
        scores, masks, outputs = normal(5, 30), half_masks(12, 30), normal(12, 5, seed=1)
        expected = linear_datamodeling_score(scores, masks, outputs)
        assert torch.equal(linear_datamodeling_score(1024 * scores, masks, outputs.exp()), expected)

    @pytest.mark.parametrize("value", [0.1, -1 / 3, 1e30, 1e-300, 0.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equal_scores_give_exactly_zero(self, value: float, dtype: torch.dtype) -> None:
        masks = half_masks(64, 5000)
        scores, outputs = torch.full((3, 5000), value, dtype=dtype), normal(64, 3)
        if scores.isfinite().all():
            assert linear_datamodeling_score(scores, masks, outputs).tolist() == [0.0] * 3
            assert undefined_queries(scores, masks, outputs).all()

    def test_equal_scores_rank_subsets_of_other_sizes_by_size(self) -> None:
        masks = torch.arange(300) < torch.tensor([[100], [300], [200], [100]])
        outputs = -torch.tensor([[1.0], [3.0], [2.0], [1.0]])
        assert linear_datamodeling_score(torch.full((1, 300), 0.1), masks, outputs).tolist() == [1.0]

    def test_constant_outputs_give_zero_and_are_reported(self) -> None:
        scores, masks, outputs = normal(3, 20), half_masks(8, 20), normal(8, 3, seed=1)
        outputs[:, 1] = 0.25
        scores[2] = 0.1
        assert linear_datamodeling_score(scores, masks, outputs)[1:].tolist() == [0.0, 0.0]
        assert undefined_queries(scores, masks, outputs).tolist() == [False, True, True]

    def test_a_defined_correlation_of_zero_is_not_undefined(self) -> None:
        scores, masks = torch.tensor([[1.0, 2.0, 3.0]]), torch.eye(3, dtype=torch.bool)
        outputs = torch.tensor([[1.0], [0.0], [1.0]])
        assert linear_datamodeling_score(scores, masks, outputs).tolist() == [0.0]
        assert undefined_queries(scores, masks, outputs).tolist() == [False]

    def test_other_dtypes_and_gradients(self) -> None:
        scores, masks, outputs = torch.randint(0, 9, (4, 20)), half_masks(8, 20), torch.randint(0, 9, (8, 4))
        expected = linear_datamodeling_score(scores.double(), masks, outputs.double())
        assert torch.equal(linear_datamodeling_score(scores, masks, outputs.to(torch.uint8)), expected)
        tracked = linear_datamodeling_score(scores.half().requires_grad_(), masks, outputs.float().requires_grad_())
        assert torch.equal(tracked, expected)
        assert not tracked.requires_grad


class TestErrors:
    scores, masks, outputs = normal(3, 10), half_masks(6, 10), normal(6, 3)

    def check(self, error: type[Exception], match: str, **changes: object) -> None:
        arguments = {"scores": self.scores, "masks": self.masks, "outputs": self.outputs} | changes
        for function in (linear_datamodeling_score, undefined_queries):
            with pytest.raises(error, match=match) as caught:
                function(**arguments)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)

    def test_shapes(self) -> None:
        self.check(DataError, r"scores \(3, 10\).*outputs \(3, 6\)", outputs=self.outputs.T)
        self.check(DataError, r"masks \(6, 9\)", masks=self.masks[:, :9])
        self.check(DataError, r"masks \(5, 10\)", masks=self.masks[:5])
        self.check(DataError, r"masks \(10,\)", masks=self.masks[0])
        self.check(DataError, r"scores \(10,\)", scores=self.scores[0])
        self.check(DataError, "scores", scores=self.scores[:0], outputs=self.outputs[:, :0])
        self.check(DataError, "scores", scores=self.scores[:, :0], masks=self.masks[:, :0])

    def test_types(self) -> None:
        self.check(UsageError, "masks must be a bool tensor, not float32", masks=self.masks.float())
        self.check(UsageError, "scores must be a torch.Tensor, not ndarray", scores=self.scores.numpy())
        self.check(UsageError, "outputs must be a torch.Tensor, not list", outputs=self.outputs.tolist())

    def test_too_few_subsets(self) -> None:
        self.check(UsageError, "at least 2", masks=self.masks[:1], outputs=self.outputs[:1])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_values_that_are_not_finite(self, bad: float) -> None:
        scores, outputs = self.scores.clone(), self.outputs.clone()
        scores[1, 4] = outputs[2, 0] = bad
        self.check(DataError, "scores must be finite: 1 of the 30", scores=scores)
        self.check(DataError, "outputs must be finite: 1 of the 18", outputs=outputs)

    def test_a_sum_beyond_float64(self) -> None:
        self.check(DataError, "predictions must be finite", scores=torch.full((3, 10), 1e308, dtype=torch.float64))


class TestPredictOutputs:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("spread", [0.0, 3.0])
    def test_is_the_correctly_rounded_sum(self, dtype: torch.dtype, spread: float) -> None:
        scores = (normal(6, 1000) * (spread * normal(6, 1000, seed=1)).exp()).to(dtype)
        masks = torch.rand(9, 1000, generator=torch.Generator().manual_seed(2)) < 0.5
        expected = [[math.fsum(row[mask].tolist()) for row in scores.double()] for mask in masks]
        assert predict_outputs(scores, masks).tolist() == expected

    @pytest.mark.parametrize("shift", [0.0, 0.4])
    def test_subsets_without_the_large_scores_are_ranked_by_the_small_ones(self, shift: float) -> None:
        """Scores over hundreds of orders of magnitude, as exp(-d²) has them; with a shift, of both signs."""
        generator = torch.Generator().manual_seed(0)
        exponents = torch.randint(-900, 1, (8, 30), generator=generator).double()
        scores = (torch.rand(8, 30, generator=generator).double() - shift) * 2.0**exponents
        masks = torch.rand(40, 30, generator=generator) < 0.15
        masks[0] = False
        expected = [[math.fsum(row[mask].tolist()) for row in scores] for mask in masks]
        found = predict_outputs(scores, masks)
        np.testing.assert_allclose(found, expected, rtol=2.0**-52)
        np.testing.assert_array_equal(stats.rankdata(found, axis=0), stats.rankdata(expected, axis=0))

    def test_the_same_few_scores_tie_whatever_the_rest(self) -> None:
        # Sums of 0.1, 0.2 and 0.3 depend on their order; a matrix product's order depends on the row and the shape.
        scores = torch.zeros(40, 999, dtype=torch.float64)
        for row in scores:
            row[torch.randperm(999, generator=torch.Generator().manual_seed(5))[:7]] = torch.rand(7).double()
        masks = half_masks(67, 999)
        predictions = predict_outputs(scores, masks)
        for query, row in enumerate(scores):
            seen: dict[tuple[bool, ...], float] = {}
            for subset, mask in enumerate(masks):
                value = predictions[subset, query].item()
                assert seen.setdefault(tuple(mask[row != 0].tolist()), value) == value

    def test_does_not_depend_on_the_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores, masks = normal(17, 300), half_masks(11, 300)
        expected = predict_outputs(scores, masks)
        monkeypatch.setattr(lds, "_BLOCK_ELEMENTS", 1000)
        assert torch.equal(predict_outputs(scores, masks), expected)
        assert torch.equal(torch.cat([predict_outputs(row[None], masks) for row in scores], dim=1), expected)

    @pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-30, 1e30, 1e304])
    def test_extreme_sizes(self, size: float) -> None:
        scores = torch.arange(1, 5).double()[None] * size
        masks = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
        expected = [math.fsum(scores[0][mask].tolist()) for mask in masks]
        assert predict_outputs(scores, masks)[:, 0].tolist() == expected

    def test_neighbours_are_never_swapped(self) -> None:
        """Nearly constant rows: differences of single bits either keep their order or tie."""
        step = 2.0**-53
        bits = torch.randint(0, 3, (20, 64), generator=torch.Generator().manual_seed(0))
        masks = half_masks(32, 64)
        predictions = predict_outputs(0.5 + step * bits.double(), masks)
        exact = masks.long() @ bits.T
        assert ((predictions[:, None] - predictions[None]) * (exact[:, None] - exact[None]) >= 0).all()
        # Against the same differences without the 0.5, which are exact.
        np.testing.assert_allclose(predictions - 16.0, exact * step, rtol=0, atol=2.0**-49)


class TestSpearman:
    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_against_scipy_with_ties(self, data: st.DataObject) -> None:
        shape = (data.draw(st.integers(2, 12)), data.draw(st.integers(1, 4)))
        levels = data.draw(st.integers(0, 6))
        columns = hnp.arrays(np.float64, shape, elements=st.integers(-levels, levels).map(lambda n: n / 7))
        first, second = (torch.from_numpy(data.draw(columns)) for _ in range(2))
        got = spearman(first, second)
        assert got.abs().max() <= 1
        np.testing.assert_allclose(got, scipy_spearman(first, second), rtol=0, atol=1e-12)
        assert torch.equal(got, spearman(second, first))
        assert torch.equal(got, -spearman(first, -second))
        assert torch.equal(got, score_predictions(first, -second))

    def test_against_scipy_without_ties(self) -> None:
        first, second = normal(64, 50), normal(64, 50, seed=1)
        np.testing.assert_allclose(spearman(first, second), scipy_spearman(first, second), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("size", [2, 3, 39, 64, 1000])
    def test_perfect_agreement_is_exactly_one(self, size: int) -> None:
        values = normal(size, 5)
        assert spearman(values, values.exp()).tolist() == [1.0] * 5
        assert spearman(values, -values).tolist() == [-1.0] * 5

    def test_the_order_of_subsets_does_not_matter(self) -> None:
        first, second = normal(33, 20).round(decimals=1), normal(33, 20, seed=1)
        order = torch.randperm(33, generator=torch.Generator().manual_seed(2))
        assert torch.equal(spearman(first[order], second[order]), spearman(first, second))

    def test_errors(self) -> None:
        with pytest.raises(DataError, match=r"predictions \(4, 2\) and outputs \(4, 3\)"):
            spearman(normal(4, 2), normal(4, 3))
        with pytest.raises(UsageError, match="at least 2"):
            spearman(normal(1, 2), normal(1, 2))


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.sampled_from([-1e308, -1.0, -5e-324, -0.0, 0.0, 5e-324, 0.1, 1.0, np.inf]),
    )
)
def test_average_ranks_against_scipy(values: np.ndarray) -> None:
    np.testing.assert_array_equal(average_ranks(torch.from_numpy(values)), stats.rankdata(values, axis=0))


@pytest.mark.slow
def test_functions_do_not_import_torchmetrics() -> None:
    code = (
        "import sys; from attribench.metrics import linear_datamodeling_score, lds_interval; "
        "sys.exit('torchmetrics' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
