from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_problem import Small, problem

from attribench.errors import AttribenchError, UsageError
from attribench.gradients import budget
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.methods import compare
from attribench.gradients.ridge import Ridge, divide
from attribench.methods.trak import TRAK

CPU = torch.device("cpu")


def random_features(count: int, dimensions: int, seed: int, parts: int = 1) -> FeatureSet:
    matrix = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))
    return FeatureSet.of(matrix.chunk(parts))


def primal(queries: FeatureSet, train: FeatureSet, regularization: float) -> tuple[np.ndarray, np.ndarray]:
    """φ(x)(ΦᵀΦ + λI)⁻¹φ(n) and ‖(ΦᵀΦ + λI)⁻¹φ(n)‖ as written, in NumPy's float64."""
    phi, x = train.load().double().numpy(), queries.load().double().numpy()
    lam = regularization * np.mean(np.sum(phi**2, axis=1))
    solved = np.linalg.inv(phi.T @ phi + lam * np.eye(phi.shape[1])) @ phi.T
    return x @ solved, np.linalg.norm(solved, axis=0)


@pytest.mark.parametrize(("num_train", "dimensions"), [(30, 80), (80, 30), (40, 40)])
@pytest.mark.parametrize("regularization", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("parts", [1, 7])
def test_either_form_equals_the_primal_formula(
    num_train: int, dimensions: int, regularization: float, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = FeatureSet.blocks
    if parts > 1:
        monkeypatch.setattr(FeatureSet, "blocks", lambda self: blocks(self, 1))
    train, queries = random_features(num_train, dimensions, 0, parts), random_features(6, dimensions, 1, parts)
    ridge = Ridge(train, regularization, CPU)
    assert ridge.dual == (num_train <= dimensions)
    scores, norms = primal(queries, train, regularization)
    assert np.abs(ridge.scores(queries).numpy() - scores).max() < 1e-10 * np.abs(scores).max()
    assert np.abs(ridge.solution_norms.numpy() / norms - 1).max() < 1e-9
    lengths = np.linalg.norm(train.load().double().numpy(), axis=1)
    assert np.abs(ridge.norms.numpy() / lengths - 1).max() < 1e-12


@pytest.mark.parametrize(("num_train", "dimensions"), [(30, 80), (80, 30)])
@pytest.mark.parametrize("regularization", [1e-4, 0.1])
def test_leverages_equal_the_diagonal_of_the_hat_matrix(num_train: int, dimensions: int, regularization: float) -> None:
    train = random_features(num_train, dimensions, 0, 3)
    found = Ridge(train, regularization, CPU).leverages.numpy()
    hat, _ = primal(train, train, regularization)
    assert np.abs(found - np.diag(hat)).max() < 1e-10
    assert (found < 1).all()
    assert (found >= 0).all()


def test_the_scale_of_features_does_not_change_rankings() -> None:
    train, queries = random_features(20, 50, 0), random_features(4, 50, 1)
    scores = Ridge(train, 0.1, CPU).scores(queries)
    scaled = Ridge(FeatureSet.of([100 * train.load()]), 0.1, CPU).scores(FeatureSet.of([100 * queries.load()]))
    assert torch.allclose(scaled, scores, rtol=1e-4, atol=1e-6)


def test_features_of_zero_have_scores_of_zero() -> None:
    zero = FeatureSet.of([torch.zeros(3, 5)])
    ridge = Ridge(zero, 0.1, CPU)
    assert not divide(ridge.scores(random_features(2, 5, 0)), ridge.solution_norms).any()


@pytest.mark.parametrize("regularization", [0.0, -1.0, float("inf"), float("nan")])
def test_regularization_must_be_positive_and_finite(regularization: float) -> None:
    with pytest.raises(UsageError, match="positive and finite"):
        Ridge(random_features(3, 5, 0), regularization, CPU)


def test_a_kernel_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda device: 100)
    with pytest.raises(AttribenchError, match=r"\(216 bytes\) of memory; .*\(100 bytes\)"):
        Ridge(random_features(3, 5, 0), 0.1, CPU)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_similarities_equal_numpy(kind: str) -> None:
    train, queries = random_features(9, 40, 0, 4), random_features(5, 40, 1, 2)
    a, b = queries.load().double().numpy(), train.load().double().numpy()
    expected = a @ b.T
    if kind == "cosine":
        expected /= np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    found = compare(queries, train, kind).numpy()  # type: ignore[arg-type]
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_a_kernel_that_does_not_fit_is_a_reason_to_skip_before_gradients_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = problem(Small, tmp_path, (2, 4, 4))

    def work(*_: object) -> torch.Tensor:
        raise AssertionError("work was done")

    monkeypatch.setattr("attribench.gradients.features.summed_gradients", work)
    monkeypatch.setattr("attribench.gradients.plan.Plan.memory", lambda plan: 0)
    monkeypatch.setattr("attribench.gradients.features.LIBRARY_BYTES", 0)
    method = TRAK(num_timesteps=1)
    monkeypatch.setattr(budget, "available_memory", lambda device: 3 * 8 * 8**2 - 1)  # eight train images, float64
    assert "A kernel of 8 × 8 entries needs" in (method.skip_reason(context) or "")
    monkeypatch.setattr(budget, "available_memory", lambda device: 3 * 8 * 8**2)
    assert method.skip_reason(context) is None
    few = TRAK(num_timesteps=1, projection="basic", proj_dim=5)  # the smaller of the two forms counts
    monkeypatch.setattr(budget, "available_memory", lambda device: 3 * 8 * 5**2 - 1)
    assert "A kernel of 5 × 5 entries needs" in (few.skip_reason(context) or "")
