"""DAS against its formula, in NumPy's float64 on gradients taken one at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_gradients import moments
from tiny_models import TinyModels
from torch import Tensor

from attribench import Access, AttributionContext, Queries
from attribench.data import AttributionDataModule
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError
from attribench.gradients import residuals
from attribench.method import score, start
from attribench.methods.das import DAS
from attribench.methods.trak import TRAK
from attribench.settings import ModelSettings
from attribench.store.artifacts import ArtifactStore
from attribench.store.shared import SharedStore
from attribench.testing import check_method

pytestmark = pytest.mark.slow

TIMESTEPS = range(0, 1000, 250)


@pytest.fixture
def context(tiny_data: AttributionDataModule, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    train = tiny_data.train.select(list(range(9)))
    store = ArtifactStore(tmp_path)
    device = torch.device("cpu")
    return AttributionContext(train, NoiseSchedule(), device, 42, store, Access.MODEL, TinyModels(tiny_model))


@pytest.fixture
def queries(tiny_data: AttributionDataModule) -> Queries:
    return Queries.of(tiny_data.validation, "validation")[:3]


def scores_of(method: DAS | TRAK, context: AttributionContext, queries: Queries) -> Tensor:
    start(method, context)
    return score(method, queries)


def brute_force(
    context: AttributionContext, queries: Queries, draws: int, share: float, normalize: bool = False
) -> np.ndarray:
    """What is squared, from the primal formula."""
    sides, root = [], []
    for images, ids in ((queries.images, queries.ids), (context.train.images, context.train.ids)):
        found = moments(context.target_model(), images, ids, context.seed, TIMESTEPS, draws)
        gradients = [[moment.gradient(moment.predicted.mean()) for moment in own] for own in found]
        sides.append(torch.stack([torch.stack([g / g.norm() for g in own]).mean(0) for own in gradients]).numpy())
        root = [[(m.predicted - m.noise).square().mean().sqrt().item() for m in own] for own in found]
    errors = np.array(root)
    if normalize:
        errors /= np.sqrt((errors**2).sum(axis=0))
    x, phi = sides
    _, values, axes = np.linalg.svd(phi, full_matrices=False)  # (ΦᵀΦ + λI)⁻¹Φᵀ along the axes of ΦᵀΦ
    eigenvalues = values[:, None] ** 2 + share * np.mean(np.sum(phi**2, axis=1))
    solved = axes.T @ ((axes @ phi.T) / eigenvalues)
    leverage = np.sum(phi.T * solved, axis=0)
    result: np.ndarray = x @ solved * errors.mean(axis=1) / (1 - leverage)
    return result


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("share", [0.01, 1.0])
def test_scores_equal_the_formula(context: AttributionContext, queries: Queries, share: float, normalize: bool) -> None:
    options = {"num_timesteps": 4, "projection": "identity", "noise_draws": 2, "regularization": share}
    options["normalize_residuals"] = normalize
    expected = brute_force(context, queries, 2, share, normalize)
    signed = scores_of(DAS(signed=True, **options), context, queries).numpy()  # type: ignore[arg-type]
    squared = scores_of(DAS(**options), context, queries).numpy()  # type: ignore[arg-type]
    assert (expected < 0).any() or share == 1.0  # the square makes a difference
    assert np.abs(signed - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(squared - expected**2).max() < 2e-4 * np.abs(expected**2).max()


def test_errors_of_more_timesteps_and_draws_add_to_those_that_are_there(
    context: AttributionContext, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    original = residuals.noised_passes

    def noting(images: Tensor, ids: object, terms: list[tuple[int, int]], *others: object) -> object:
        asked.extend(terms)
        return original(images, ids, terms, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(residuals, "noised_passes", noting)
    options = {"projection": "basic", "proj_dim": 8}
    shared = replace(context, shared=SharedStore(context.store.scoped("shared")))
    scores_of(DAS(num_timesteps=10, **options), shared, queries)  # type: ignore[arg-type]
    assert asked == [(timestep, 0) for timestep in range(0, 1000, 100)]
    asked.clear()
    scores_of(DAS(num_timesteps=20, noise_draws=1, **options), shared, queries)  # type: ignore[arg-type]
    assert asked == [(timestep, 0) for timestep in range(50, 1000, 100)]
    asked.clear()
    scores_of(DAS(num_timesteps=10, signed=True, **options), shared, queries)  # type: ignore[arg-type]
    assert not asked


def test_residuals_of_either_kind_in_one_store_are_kept_apart(context: AttributionContext, queries: Queries) -> None:
    shared = replace(context, shared=SharedStore(context.store.scoped("shared")))
    options = {"num_timesteps": 4, "projection": "identity"}
    found = [
        scores_of(DAS(normalize_residuals=normalize, **options), shared, queries)  # type: ignore[arg-type]
        for normalize in (False, True, False)
    ]
    assert torch.equal(found[0], found[2])
    ratio = found[1] / found[0]  # of the residuals' squares, the same for all queries, but not for all train images
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-5)
    assert ratio[0].std() > 1e-4 * ratio[0].mean()


@pytest.mark.parametrize("signed", [False, True])
def test_conforms(signed: bool) -> None:
    assert (
        check_method(DAS, num_timesteps=1, projection="basic", proj_dim=16, regularization=0.1, signed=signed) is None
    )


def test_it_does_not_take_the_features_of_others(context: AttributionContext, queries: Queries) -> None:
    shared = replace(context, shared=SharedStore(context.store.scoped("shared")))
    options = {"f": "mean", "num_timesteps": 2, "projection": "identity"}
    scores_of(TRAK(**options), shared, queries)  # type: ignore[arg-type]
    count = len(list(context.store.artifacts()))
    scores_of(DAS(**options), shared, queries)  # type: ignore[arg-type]
    assert len(list(context.store.artifacts())) == count + 5  # train images, queries, their inner products, errors


def test_what_cannot_fit_is_a_reason_to_skip(context: AttributionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DAS(num_timesteps=1).skip_reason(context) is None
    monkeypatch.setattr("attribench.gradients.budget.available_memory", lambda device: 10)
    assert "(10 bytes) are available" in (DAS(num_timesteps=1).skip_reason(context) or "")
    assert "trained model" in (DAS(num_timesteps=1).skip_reason(replace(context, models=None)) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_timesteps": 0}, "num_timesteps must lie in 1..1000; got 0"),
        ({"noise_draws": 0}, "noise_draws must be at least 1; got 0"),
        ({"regularization": 0.0}, "regularization must be positive"),
        ({"f": "meen"}, "Did you mean 'mean'"),
        ({"projection": "gauss"}, "Unknown projection 'gauss'"),
        ({"proj_dim": 0}, "proj_dim must be at least 1; got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DAS(**options)  # type: ignore[arg-type]
