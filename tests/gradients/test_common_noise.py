"""Losses and Fisher information, against plain autograd in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loss_change_reference import context_of, drawn_loss, gradient, losses, move
from tiny_data import TinyData

from attribench import AttributionContext
from attribench.computing.seeding import derive_seed
from attribench.errors import AttribenchError, UsageError
from attribench.gradients import common_noise, fisher
from attribench.gradients.common_noise import COMMON, CommonNoiseLosses, NoiseOwner, noise_seed
from attribench.gradients.fisher import diagonal_fisher
from attribench.gradients.loss_change import added, flattened
from attribench.settings import ModelSettings

pytestmark = pytest.mark.slow

TERMS = [(0, 0), (500, 0), (500, 1)]


@pytest.fixture
def context(tiny_data: TinyData, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    return context_of(tiny_data.train, tiny_model, tmp_path)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("owner", ["common", "own"])
def test_losses_at_target_and_at_other_weights(
    owner: NoiseOwner, kept: bool, context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common_noise, "_FORWARD_ROWS", {"cpu": 7})
    if not kept:
        monkeypatch.setattr(common_noise, "_NOISE_BYTES", {"cpu": 0})
    model = context.target_model()
    found = CommonNoiseLosses(context, model, TERMS, owner)
    names = [COMMON] * len(context.train) if owner == "common" else context.train.ids
    expected = losses(model, context.train_images, names, noise_seed(context), TERMS)
    assert found.passes == expected.numel()
    assert torch.allclose(found.at_target(), expected, rtol=1e-10)

    weights = {name: value.detach() for name, value in model.named_parameters()}
    step = 0.01 * torch.randn(len(flattened(weights)), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = found.at({"moved": 1}, lambda: added(weights, step))
    assert torch.allclose(found.at_target(), expected, rtol=1e-10)  # the model has stayed as it was
    move(model, step)
    moved = losses(model, context.train_images, names, noise_seed(context), TERMS)
    assert torch.allclose(other, moved, rtol=1e-10)
    assert not torch.allclose(moved, expected, rtol=1e-3)


def test_what_is_in_the_store_is_not_computed_again(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = context.target_model()
    first = CommonNoiseLosses(context, model, TERMS).at({"query": "a"}, lambda: dict(model.named_parameters()))

    def never() -> common_noise.Weights:
        raise AssertionError("the weights were made again")

    assert torch.equal(CommonNoiseLosses(context, model, TERMS).at({"query": "a"}, never), first)
    for other in (CommonNoiseLosses(context, model, TERMS[:2]), CommonNoiseLosses(context, model, TERMS, "own")):
        with pytest.raises(AssertionError, match="again"):
            other.at({"query": "a"}, never)
    with pytest.raises(AssertionError, match="again"):
        CommonNoiseLosses(context, model, TERMS).at({"query": "b"}, never)


def test_weights_that_explode_are_an_error(context: AttributionContext) -> None:
    model = context.target_model()
    weights = {name: torch.full_like(value, float("nan")) for name, value in model.named_parameters()}
    with pytest.raises(AttribenchError, match="moved too far"):
        CommonNoiseLosses(context, model, TERMS).at({"query": "a"}, lambda: weights)


def test_an_unknown_owner_is_refused(context: AttributionContext) -> None:
    with pytest.raises(UsageError, match="noise must be 'common' or 'own'; got 'mine'"):
        CommonNoiseLosses(context, context.target_model(), TERMS, "mine")  # type: ignore[arg-type]


def test_the_mean_gradient_is_that_of_plain_autograd(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common_noise, "_BACKWARD_ROWS", {"cpu": 2})
    model = context.target_model()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    image, like = context.train_images[3], next(model.parameters())
    rows = common_noise.noisy_rows(image, "x", TERMS, 5, context.schedule, like)
    value, gradients = common_noise.mean_loss_and_gradient(model, weights, *rows)
    expected = sum((drawn_loss(model, image, "x", 5, *term) for term in TERMS), torch.zeros(())) / len(TERMS)
    assert torch.allclose(value, expected.detach(), rtol=1e-10)
    assert torch.allclose(flattened(gradients), gradient(model, expected), rtol=1e-8, atol=1e-12)
    assert all(value.grad is None for value in model.parameters())


def test_fisher_is_the_mean_of_squares(context: AttributionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fisher, "_IMAGES_PER_PART", 3)
    model, seed = context.target_model(), derive_seed(context.seed, "gradients")
    expected = torch.zeros(sum(value.numel() for value in model.parameters()), dtype=torch.float64)
    for image, name in zip(context.train_images, context.train.ids, strict=True):
        for term in TERMS:
            expected += gradient(model, drawn_loss(model, image, name, seed, *term)).square()
    expected /= len(TERMS) * len(context.train)
    found = diagonal_fisher(context, model, TERMS)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-12)  # images and noise are mixed in float32
    assert len([artifact for artifact in context.store.artifacts() if artifact.kind == "fisher"]) == 3

    def never(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(fisher, "_squares", never)
    assert torch.equal(diagonal_fisher(context, model, TERMS), found)
