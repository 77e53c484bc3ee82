"""Fine-tune influence, against its formula in float64 with plain autograd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_change_reference import context_of, gradient, loss, losses, move
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

QUICK: dict[str, Any] = {"steps": 2, "noise_batch": 4, "num_timesteps": 2}


@pytest.fixture
def context(tiny_data: TinyData, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    return context_of(tiny_data.train, tiny_model, tmp_path)


def scores_of(method: FineTune, context: AttributionContext, queries: Queries) -> torch.Tensor:
    start(method, context)
    return score(method, queries)


@pytest.mark.parametrize(("noise", "bound"), [("common", 10.0), ("own", 10.0), ("common", 0.5)])
def test_equals_its_formula(
    noise: str, bound: float, context: AttributionContext, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", bound)  # the tiny model knows nothing: its loss is about 1
    queries = Queries.of(tiny_data.validation, "validation")[:2]
    method = FineTune(learning_rate=0.01, noise=noise, noise_draws=2, **QUICK)  # type: ignore[arg-type]
    found = scores_of(method, context, queries)
    terms = [(0, 0), (500, 0), (0, 1), (500, 1)]
    names = [COMMON] * len(context.train) if noise == "common" else context.train.ids
    for row, image, name in zip(found, queries.images, queries.ids, strict=True):
        model = context.target_model()
        before = losses(model, context.train_images, names, noise_seed(context), terms).mean(0)
        for step in range(2 if bound > 1 else 0):
            generator = torch.Generator().manual_seed(derive_seed(context.seed, "fine-tune", name, step))
            timesteps = torch.randint(1000, (4,), generator=generator)
            noises = torch.randn((4, *image.shape), generator=generator)
            values = [loss(model, image, one, int(t)) for one, t in zip(noises, timesteps, strict=True)]
            move(model, 0.01 * gradient(model, torch.stack(values).mean()))
        after = losses(model, context.train_images, names, noise_seed(context), terms).mean(0)
        assert torch.allclose(row, after / before - 1, rtol=1e-6, atol=1e-12)
        assert (float(row.abs().max()) > 0) == (bound > 1)


def test_a_train_image_as_a_query_raises_its_own_loss_most(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 10.0)
    queries = Queries(context.train.images[3:6], context.train.ids[3:6])
    options = {"steps": 5, "noise_batch": 32, "num_timesteps": 5, "learning_rate": 0.01}
    scores = scores_of(FineTune(**options), context, queries)[:, 3:6]  # type: ignore[arg-type]
    assert (scores > 0).all()
    # Nobody trained this model: some images' losses rise more than others' whatever the query, so that is taken out.
    own = scores - scores.mean(0) - scores.mean(1, keepdim=True)
    assert own.argmax(1).tolist() == [0, 1, 2]


def test_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 10.0)
    assert check_method(FineTune, steps=2, noise_batch=4, num_timesteps=1, noise="own") is None


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
