"""Unlearning, against its formula in float64 with plain autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_change_reference import context_of, drawn_loss, gradient, losses, move
from tiny_data import TinyData

from attribench import AttributionContext, ImageSet, Queries
from attribench.computing.seeding import derive_seed
from attribench.errors import AttribenchError, UsageError
from attribench.gradients import common_noise
from attribench.gradients.common_noise import COMMON, noise_seed
from attribench.method import score, start
from attribench.methods.unlearning import Unlearning
from attribench.settings import ModelSettings
from attribench.testing import check_method

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"num_timesteps": 2, "loss_timesteps": 2, "fisher_timesteps": 1}


@pytest.fixture
def context(tiny_data: TinyData, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    return context_of(tiny_data.train, tiny_model, tmp_path)


def scores_of(method: Unlearning, context: AttributionContext, queries: Queries) -> torch.Tensor:
    start(method, context)
    return score(method, queries)


@pytest.mark.parametrize("noise", ["common", "own"])
def test_equals_its_formula(noise: str, context: AttributionContext, tiny_data: TinyData) -> None:
    queries = Queries.of(tiny_data.validation, "validation")[:2]
    options: dict[str, Any] = {"damping": 0.5, "step": 0.2, "noise_draws": 2, "noise": noise}
    found = scores_of(Unlearning(num_timesteps=1, loss_timesteps=2, fisher_timesteps=1, **options), context, queries)

    model = context.target_model()
    fisher = torch.zeros(sum(value.numel() for value in model.parameters()), dtype=torch.float64)
    for image, name in zip(context.train_images, context.train.ids, strict=True):
        value = drawn_loss(model, image, name, derive_seed(context.seed, "gradients"), 0, 0)
        fisher += gradient(model, value).square() / len(context.train)
    seed, common = noise_seed(context), noise == "common"
    train = [COMMON] * len(context.train) if common else context.train.ids
    for row, image, name in zip(found, queries.images, queries.ids, strict=True):
        model = context.target_model()
        own = COMMON if common else name
        value = (drawn_loss(model, image, own, seed, 0, 0) + drawn_loss(model, image, own, seed, 0, 1)) / 2
        slope = gradient(model, value)
        direction = torch.linalg.solve(torch.diag(fisher[:500] + 0.5 * fisher.mean()), slope[:500])  # densely, in part
        direction = torch.cat([direction, slope[500:] / (fisher[500:] + 0.5 * fisher.mean())])
        before = losses(model, context.train_images, train, seed, [(0, 0), (500, 0)]).mean(0)
        move(model, direction * (0.2 * value.detach() / (slope @ direction)))
        after = losses(model, context.train_images, train, seed, [(0, 0), (500, 0)]).mean(0)
        assert torch.allclose(row, after - before, rtol=1e-4, atol=1e-7)  # F mixes images and noise in float32


def test_a_small_step_raises_the_query_s_loss_by_the_share_that_was_asked_for(
    context: AttributionContext, tiny_data: TinyData
) -> None:
    method = Unlearning(**QUICK, step=1e-4)
    start(method, context)
    model = context.target_model()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    image = tiny_data.validation.images[0]
    terms = [(0, 0), (500, 0)]
    before = losses(model, image[None], [COMMON], noise_seed(context), terms).mean()
    model.load_state_dict(dict(method.changed(model, weights, ImageSet(image[None], ("q",)))))
    after = losses(model, image[None], [COMMON], noise_seed(context), terms).mean()
    assert float(after / before - 1) == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize("noise", ["common", "own"])
def test_a_train_image_as_a_query_is_its_own_strongest_proponent(noise: str, context: AttributionContext) -> None:
    queries = Queries(context.train.images[3:6], context.train.ids[3:6])
    scores = scores_of(Unlearning(noise=noise, **QUICK), context, queries)  # type: ignore[arg-type]
    assert scores.argmax(1).tolist() == [3, 4, 5]
    assert (scores.max(1).values > 0).all()


def test_conforms() -> None:
    assert check_method(Unlearning, num_timesteps=2, loss_timesteps=1, fisher_timesteps=1) is None


def test_a_killed_run_goes_on_at_the_query_it_was_at(
    context: AttributionContext, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = Queries.of(tiny_data.validation, "validation")[:3]
    whole = scores_of(Unlearning(**QUICK), replace(context, store=context.store.scoped("other")), queries)
    computed: list[int] = []
    losses_at = common_noise.CommonNoiseLosses._losses

    def counting(self: common_noise.CommonNoiseLosses, weights: common_noise.Weights) -> torch.Tensor:
        if len(computed) == 2:
            computed.append(0)
            raise KeyboardInterrupt  # killed at the second query: the first losses are the target model's
        computed.append(1)
        return losses_at(self, weights)

    monkeypatch.setattr(common_noise.CommonNoiseLosses, "_losses", counting)
    with pytest.raises(KeyboardInterrupt):
        scores_of(Unlearning(**QUICK), context, queries)
    assert torch.equal(scores_of(Unlearning(**QUICK), context, queries), whole)
    assert computed == [1, 1, 0, 1, 1]


def test_without_a_model_it_is_skipped_with_a_reason(context: AttributionContext) -> None:
    assert Unlearning().skip_reason(context) is None
    assert "trained model" in (Unlearning().skip_reason(replace(context, models=None)) or "")


def test_an_unprepared_method_says_so(tiny_data: TinyData) -> None:
    with pytest.raises(AttribenchError, match="not prepared"):
        Unlearning().attribute(Queries.of(tiny_data.validation, "validation"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_timesteps": 0}, r"num_timesteps must lie in 1\.\.1000; got 0"),
        ({"noise_draws": 0}, "noise_draws must be at least 1; got 0"),
        ({"loss_timesteps": 1001}, r"loss_timesteps must lie in 1\.\.1000; got 1001"),
        ({"loss_draws": 0}, "loss_draws must be at least 1; got 0"),
        ({"fisher_timesteps": 0}, r"fisher_timesteps must lie in 1\.\.1000; got 0"),
        ({"damping": 0.0}, "damping must be positive; got 0"),
        ({"step": -1.0}, "step must be positive; got -1"),
        ({"step": float("nan")}, "step must be positive; got nan"),
        ({"noise": "mine"}, "noise must be 'common' or 'own'; got 'mine'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Unlearning(**options)
