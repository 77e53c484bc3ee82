"""Fine-tune influence, against its formula in float64 with plain autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_change_reference import context_of, drawn_loss, gradient, loss, losses, move
from tiny_data import TinyData

from attribench import AttributionContext, Queries
from attribench.computing.seeding import derive_seed
from attribench.errors import UsageError
from attribench.gradients.common_noise import COMMON, noise_seed
from attribench.method import score, start
from attribench.methods import fine_tune
from attribench.methods.fine_tune import FineTune
from attribench.settings import ModelSettings
from attribench.testing import check_method

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"steps": 2, "num_timesteps": 2}


@pytest.fixture
def context(tiny_data: TinyData, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    return context_of(tiny_data.train, tiny_model, tmp_path)


def scores_of(method: FineTune, context: AttributionContext, queries: Queries) -> torch.Tensor:
    start(method, context)
    return score(method, queries)


@pytest.mark.parametrize(("noise", "fresh", "batch"), [("common", False, 3), ("own", False, 64), ("common", True, 4)])
def test_equals_its_formula(
    noise: str,
    fresh: bool,
    batch: int,
    context: AttributionContext,
    tiny_data: TinyData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 10.0)  # the tiny model knows nothing: its loss is about 1
    queries = Queries.of(tiny_data.validation, "validation")[:2]
    options = {**QUICK, "noise": noise, "fresh_noise": fresh, "noise_batch": batch, "noise_draws": 2}
    found = scores_of(FineTune(learning_rate=0.01, **options), context, queries)
    terms = [(0, 0), (500, 0), (0, 1), (500, 1)]
    seed, names = noise_seed(context), [COMMON] * 8 if noise == "common" else context.train.ids
    for row, image, name in zip(found, queries.images, queries.ids, strict=True):
        model = context.target_model()
        before = losses(model, context.train_images, names, seed, terms).mean(0)
        for step in range(2):
            if fresh:
                generator = torch.Generator().manual_seed(derive_seed(context.seed, "fine-tune", name, step))
                timesteps = torch.randint(1000, (batch,), generator=generator)
                noises = torch.randn((batch, *image.shape), generator=generator)
                values = [loss(model, image, one, int(t)) for one, t in zip(noises, timesteps, strict=True)]
            else:  # three of four in turn, those far apart first, or all
                chosen = [[0, 3, 2], [1, 0, 3]][step] if batch == 3 else [0, 1, 2, 3]
                owner = COMMON if noise == "common" else name
                values = [drawn_loss(model, image, owner, seed, *terms[number]) for number in chosen]
            move(model, 0.01 * gradient(model, torch.stack(values).mean()))
        after = losses(model, context.train_images, names, seed, terms).mean(0)
        assert torch.allclose(row, after / before - 1, rtol=1e-6, atol=1e-12)
        assert float(row.abs().max()) > 1e-3


def test_a_step_beyond_what_there_is_to_unlearn_is_not_taken(
    context: AttributionContext, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = Queries.of(tiny_data.validation, "validation")[:1]
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 2.0)
    wild = scores_of(FineTune(learning_rate=1e9, **QUICK), context, queries)
    assert torch.equal(wild, torch.zeros_like(wild))
    first = scores_of(FineTune(learning_rate=0.03, **{**QUICK, "steps": 1}), context, queries)
    model = context.target_model()
    image, bounds = queries.images[0], []
    for _ in range(3):  # the loss before, and after one and two steps
        value = torch.stack(
            [drawn_loss(model, image, COMMON, noise_seed(context), *term) for term in [(0, 0), (500, 0)]]
        )
        bounds.append(value.mean().item())
        move(model, 0.03 * gradient(model, value.mean()))
    assert bounds == sorted(bounds)
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", (bounds[1] + bounds[2]) / 2)
    several = scores_of(FineTune(learning_rate=0.03, **{**QUICK, "steps": 5}), context, queries)
    assert torch.equal(several, first)


def test_a_train_image_as_a_query_raises_its_own_loss_most(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 10.0)
    queries = Queries(context.train.images[3:6], context.train.ids[3:6])
    options = {"steps": 5, "num_timesteps": 5, "learning_rate": 0.01}
    scores = scores_of(FineTune(**options), context, queries)[:, 3:6]  # type: ignore[arg-type]
    assert (scores > 0).all()
    # Nobody trained this model: some images' losses rise more than others' whatever the query, so that is taken out.
    own = scores - scores.mean(0) - scores.mean(1, keepdim=True)
    assert own.argmax(1).tolist() == [0, 1, 2]


def test_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 10.0)
    assert check_method(FineTune, steps=2, noise_batch=4, num_timesteps=1, noise="own", fresh_noise=True) is None


def test_without_a_model_it_is_skipped_with_a_reason(context: AttributionContext) -> None:
    assert FineTune().skip_reason(context) is None
    assert "trained model" in (FineTune().skip_reason(replace(context, models=None)) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"noise_batch": 0}, "noise_batch must be at least 1; got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive; got 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive; got inf"),
        ({"num_timesteps": 0}, r"num_timesteps must lie in 1\.\.1000; got 0"),
        ({"noise_draws": 0}, "noise_draws must be at least 1; got 0"),
        ({"noise": "mine"}, "noise must be 'common' or 'own'; got 'mine'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FineTune(**options)
