"""Journey-TRAK against its formula: trajectories and gradients one at a time, in float64, and an explicit solve."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_gradients import moments
from tiny_models import TinyModels
from torch import Tensor, nn

from attribench import Access, AttributionContext, Queries, Sampling
from attribench.computing.seeding import derive_seed
from attribench.data import AttributionDataModule
from attribench.diffusion.inputs import PixelInputs
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.diffusion.sampling import generate_images
from attribench.errors import AttribenchError, UsageError
from attribench.gradients import trajectories
from attribench.method import score, start
from attribench.methods.journey_trak import JourneyTRAK
from attribench.methods.trak import TRAK
from attribench.settings import GenerationSettings, ModelSettings
from attribench.store.artifacts import ArtifactStore
from attribench.store.shared import SharedStore
from attribench.testing import check_method

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SEEDS = (4, 0, 7)
STEPS = 5
WHOLE: dict[str, Any] = {"num_timesteps": 4, "projection": "identity"}


@pytest.fixture
def context(tiny_data: AttributionDataModule, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    train = tiny_data.train.select(list(range(9)))
    store = ArtifactStore(tmp_path)
    models = TinyModels(tiny_model)
    shared = SharedStore(store.scoped("shared"))
    return AttributionContext(train, NoiseSchedule(), CPU, 42, store, Access.MODEL, models, shared=shared)


def generated(context: AttributionContext, eta: float = 0.0) -> Queries:
    settings = GenerationSettings(len(SEEDS), STEPS, eta)
    images = generate_images(context.target_model(), SEEDS, context.train.image_shape, settings, CPU)
    ids = tuple(f"generation-{seed}" for seed in SEEDS)
    return Queries(images, ids, "generation", Sampling(SEEDS, STEPS, eta))


@pytest.fixture
def queries(context: AttributionContext) -> Queries:
    return generated(context)


def scores_of(method: JourneyTRAK | TRAK, context: AttributionContext, queries: Queries) -> Tensor:
    start(method, context)
    return score(method, queries)


def alpha_bars() -> Tensor:
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32).double()).cumprod(0)


def predictions(network: nn.Module, seed: int, eta: float) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Equation 12 of arXiv 2010.02502 in float64: timestep and clipped x̂₀ of every step, nearest to the image first; image."""
    network, alpha_bar = copy.deepcopy(network).double(), alpha_bars()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 8, 8, generator=generator).double()
    found: list[tuple[int, Tensor]] = []
    for t in reversed(range(0, 1000, 1000 // STEPS)):
        before = alpha_bar[t - 1000 // STEPS] if t > 0 else torch.ones((), dtype=torch.float64)
        with torch.no_grad():
            noise = network(x[None], torch.tensor([t])).sample[0]
        clean = ((x - (1 - alpha_bar[t]).sqrt() * noise) / alpha_bar[t].sqrt()).clamp(-1, 1)
        sigma = eta * ((1 - before) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / before)).sqrt()
        x = before.sqrt() * clean + (1 - before - sigma**2).sqrt() * noise
        if eta > 0:
            x = x + sigma * torch.randn(1, 8, 8, generator=generator).double()
        found.insert(0, (t, clean))
    return found, x


def journey(context: AttributionContext, query: str, seed: int, taken: list[int], draws: int, eta: float) -> Tensor:
    """The mean gradient over steps and draws: one backward pass each."""
    network, alpha_bar = copy.deepcopy(context.target_model()).double(), alpha_bars()
    way, _ = predictions(network, seed, eta)
    total: Any = 0.0
    for step, draw in itertools.product(taken, range(draws)):
        t, clean = way[step]
        noise = sample_noise(derive_seed(context.seed, "gradients"), query, t, draw, clean.shape).double()
        noisy = alpha_bar[t].sqrt() * clean + (1 - alpha_bar[t]).sqrt() * noise
        loss = (network(noisy[None], torch.tensor([t])).sample[0] - noise).square().mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        total = total + torch.cat([gradient.flatten() for gradient in gradients])
    result: Tensor = total / (len(taken) * draws)
    return result


def brute_force(
    context: AttributionContext, queries: Queries, share: float, taken: list[int], draws: int, eta: float = 0.0
) -> np.ndarray:
    x = torch.stack(
        [journey(context, name, seed, taken, draws, eta) for name, seed in zip(queries.ids, SEEDS, strict=True)]
    ).numpy()
    train = context.train
    found = moments(context.target_model(), train.images, train.ids, context.seed, range(0, 1000, 250), draws)
    phi = torch.stack(
        [torch.stack([m.gradient((m.predicted - m.noise).square().mean()) for m in own]).mean(0) for own in found]
    ).numpy()
    _, values, axes = np.linalg.svd(phi, full_matrices=False)  # (ΦᵀΦ + λI)⁻¹Φᵀ along the axes of ΦᵀΦ
    lam = share * np.mean(np.sum(phi**2, axis=1))
    result: np.ndarray = x @ (axes.T @ ((axes @ phi.T) / (values[:, None] ** 2 + lam)))
    return result


@pytest.mark.parametrize(
    ("share", "num_steps", "taken", "draws", "eta"),
    [
        (0.1, 50, [0, 1, 2, 3, 4], 1, 0.0),
        (1.0, 5, [0, 1, 2, 3, 4], 2, 0.0),
        (0.01, 2, [0, 2], 1, 0.0),
        (0.1, 1, [0], 1, 0.0),
        (0.1, 50, [0, 1, 2, 3, 4], 1, 0.8),
    ],
)
def test_scores_equal_the_formula(
    context: AttributionContext, share: float, num_steps: int, taken: list[int], draws: int, eta: float
) -> None:
    queries = generated(context, eta)
    expected = brute_force(context, queries, share, taken, draws, eta)
    method = JourneyTRAK(**WHOLE, regularization=share, noise_draws=draws, num_steps=num_steps)
    found = scores_of(method, context, queries).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    plain = scores_of(TRAK(**WHOLE, regularization=share, noise_draws=draws), context, queries).numpy()
    assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max()  # the way makes a difference


def test_the_way_ends_at_the_query_and_is_that_of_the_equations(context: AttributionContext, queries: Queries) -> None:
    way = trajectories.Way(queries, context.target_model(), 50, CPU)
    for number, seed in enumerate(SEEDS):
        expected, image = predictions(context.target_model(), seed, 0.0)
        assert [t for t, _ in way.predictions()] == [t for t, _ in expected] == [0, 200, 400, 600, 800]
        for (_, found), (_, clean) in zip(way.predictions(), expected, strict=True):
            assert (
                found[number].double() - clean
            ).abs().max() < 1e-3  # at t = 800, float32's rounding counts twentyfold
        pixels = ((image / 2 + 0.5).clamp(0, 1) * 255).round()
        assert (pixels - queries.images[number].double()).abs().max() <= 1


@pytest.mark.parametrize(
    ("num_steps", "timesteps"),
    [(50, list(range(0, 1000, 20))), (1000, list(range(0, 1000, 20))), (10, list(range(0, 1000, 100))), (1, [0])],
)
def test_steps_are_evenly_spaced_from_the_image_on(num_steps: int, timesteps: list[int]) -> None:
    queries = Queries(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ("a",), "g", Sampling((0,), 50))
    way = trajectories.Way(queries, nn.Identity(), num_steps, CPU)
    assert [20 * position for position in way.positions] == timesteps


@pytest.mark.parametrize("change", [{"seeds": (4, 1, 7)}, {"num_inference_steps": 10}, {"eta": 0.9}])
def test_a_way_that_leads_elsewhere_is_an_error(
    context: AttributionContext, queries: Queries, change: dict[str, Any]
) -> None:
    assert queries.sampling is not None
    wrong = replace(queries, sampling=replace(queries.sampling, **change))
    with pytest.raises(AttribenchError, match="grey levels away from it"):
        scores_of(JourneyTRAK(**WHOLE), context, wrong)


def test_it_is_not_defined_on_images_that_nobody_sampled(
    context: AttributionContext, tiny_data: AttributionDataModule
) -> None:
    held_out = Queries.of(tiny_data.validation, "validation")
    method = JourneyTRAK(**WHOLE)
    assert "no trajectory" in (method.undefined_on(held_out) or "")
    with pytest.raises(UsageError, match="not defined on the query set 'validation': they were not sampled"):
        scores_of(method, context, held_out)
    with pytest.raises(UsageError, match="is not known"):
        method.attribute(held_out)


def test_train_features_are_those_of_trak(context: AttributionContext, queries: Queries) -> None:
    scores_of(TRAK(**WHOLE), context, queries)
    before = {artifact.key for artifact in context.store.artifacts()}
    scores_of(JourneyTRAK(**WHOLE), context, queries)
    new = [artifact for artifact in context.store.artifacts() if artifact.key not in before]
    kinds = sorted(artifact.kind.rpartition("/")[2] for artifact in new)
    # The queries' products with the train features; those of the train features with each other were there.
    assert kinds == ["inner-products", "trajectory-gradients"]


def test_other_ridges_and_more_draws_add_to_what_is_there(
    context: AttributionContext, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    original = trajectories.sample_noise_batch

    def noting(seed: int, ids: tuple[str, ...], timestep: int, draw: int, shape: Any) -> Tensor:
        asked.extend((name, draw) for name in ids if timestep == 0)
        return original(seed, ids, timestep, draw, shape)

    monkeypatch.setattr(trajectories, "sample_noise_batch", noting)
    scores_of(JourneyTRAK(**WHOLE), context, queries)
    assert asked == [(name, 0) for name in queries.ids]
    asked.clear()
    monkeypatch.setattr(trajectories, "ddim_trajectory", lambda *_: pytest.fail("computed again"))
    before = {artifact.key for artifact in context.store.artifacts()}
    scores_of(JourneyTRAK(**WHOLE, regularization=3.0), context, queries)
    assert asked == []
    assert {artifact.key for artifact in context.store.artifacts()} == before  # nor is anything multiplied again
    monkeypatch.undo()
    monkeypatch.setattr(trajectories, "sample_noise_batch", noting)
    scores_of(JourneyTRAK(**WHOLE, noise_draws=3), context, queries)
    assert asked == [(name, draw) for draw in (1, 2) for name in queries.ids]


def test_a_killed_computation_goes_on_with_the_same_result(
    context: AttributionContext, queries: Queries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "_LARGEST_CHUNK", 1)
    elsewhere = ArtifactStore(tmp_path / "whole")
    whole = scores_of(JourneyTRAK(**WHOLE), replace(context, store=elsewhere, shared=None), queries)
    seen: list[tuple[int, ...]] = []
    original = trajectories.ddim_trajectory

    def counting(model: nn.Module, seeds: tuple[int, ...], *others: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(seeds)
        return original(model, seeds, *others)

    monkeypatch.setattr(trajectories, "ddim_trajectory", counting)
    with pytest.raises(KeyboardInterrupt):
        scores_of(JourneyTRAK(**WHOLE), context, queries)
    assert seen == [(4,), (0,)]
    seen.clear()
    assert torch.equal(scores_of(JourneyTRAK(**WHOLE), context, queries), whole)
    assert seen == [(7,)]


@pytest.mark.parametrize(
    "options", [{"projection": "basic", "proj_dim": 16}, {"projection": "factored", "proj_dim": 600, "noise_draws": 2}]
)
def test_conforms(options: dict[str, Any]) -> None:
    assert check_method(JourneyTRAK, num_timesteps=1, num_steps=3, **options) is None


def test_what_cannot_run_is_a_reason_to_skip(context: AttributionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    assert JourneyTRAK(**WHOLE).skip_reason(context) is None
    assert "trained model" in (JourneyTRAK(**WHOLE).skip_reason(replace(context, models=None)) or "")
    for other in (
        replace(context, schedule=NoiseSchedule(prediction_type="v_prediction")),
        replace(context, inputs=PixelInputs(3)),
    ):
        assert "and this is another" in (JourneyTRAK(**WHOLE).skip_reason(other) or "")
    monkeypatch.setattr(trajectories, "layerwise_bytes", lambda *_: None)
    assert "linear layers" in (JourneyTRAK(**WHOLE).skip_reason(context) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ({"num_timesteps": 0}, "num_timesteps must lie in 1..1000; got 0"),
        ({"noise_draws": 0}, "noise_draws must be at least 1; got 0"),
        ({"regularization": 0.0}, "regularization must be positive"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        JourneyTRAK(**options)
