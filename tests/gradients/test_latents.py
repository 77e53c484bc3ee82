"""Gradients of a denoiser of latents that is told a text, against plain autograd in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from tiny_pipelines import adapt, unet
from torch import Tensor, nn

from attribench.diffusion.inputs import Rows
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.diffusion.parameters import choose, trainable
from attribench.gradients.kronecker import kronecker_layers
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import Example, held_bytes, layerwise_bytes, summed_gradients

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TEXTS = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
#: The first and the last are told the same.
TOLD = {"encoder_hidden_states": Rows(TEXTS, torch.tensor([1, 0, 1]))}
IDS = ("a", "b", "c")
TERMS = [(0, 0), (700, 1), (999, 3)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return unet().eval()


NETWORKS: Mapping[str, nn.Module] = {
    "all": network().double(),
    "lora": adapt(network(), targets=["to_q", "to_v", "conv1", "proj_in", "net.2"]).double(),
    "attention": choose(network().double(), "attn.*"),
    "keys of the text": choose(adapt(network()).double(), "attn2.to_k"),
}


def expected(model: nn.Module, f: str, schedule: NoiseSchedule) -> Tensor:
    rows = []
    for latent, name, text in zip(LATENTS, IDS, TEXTS[[1, 0, 1]], strict=True):
        total: Tensor | float = 0.0
        for timestep, draw in TERMS:
            noise = sample_noise(7, name, timestep, draw, latent.shape)
            noisy, target = (
                getattr(schedule, what)(latent, noise, timestep).double() for what in ("add_noise", "target")
            )
            told = text.double()[None]
            predicted = model(noisy[None], torch.tensor([timestep]), encoder_hidden_states=told).sample[0]
            value = output_function(f)(predicted, target, torch.tensor(1.0))
            found = torch.autograd.grad(value, list(trainable(model).values()))
            total = total + torch.cat([gradient.flatten() for gradient in found])
        rows.append(total)
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer_by_layer", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_autograd_s(name: str, layer_by_layer: bool) -> None:
    model, example = NETWORKS[name], {"encoder_hidden_states": TEXTS[:1]}
    row_bytes = layerwise_bytes(model, (4, 8, 8), CPU, example)
    assert row_bytes is not None, "layer norms and feed-forward layers are known too"
    for f, schedule in (
        ("loss", NoiseSchedule()),
        ("mean-squared-l2-norm", NoiseSchedule(prediction_type="v_prediction")),
    ):
        found = summed_gradients(
            model, LATENTS, IDS, TERMS, output_function(f), 7, schedule, CPU, row_bytes if layer_by_layer else None,
            conditions=TOLD,
        )  # fmt: skip
        right = expected(model, f, schedule)
        assert right.norm(dim=1).min() > 0
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-7)


def test_a_layer_of_the_text_is_one_of_its_tokens() -> None:
    """Kronecker factors of what the text goes into are taken over its tokens, those of the rest over places of the image."""
    layers = kronecker_layers(NETWORKS["lora"], (4, 8, 8), CPU, TOLD)
    assert layers is not None
    found = {layer.name: layer.positions for layer in layers}
    text = [found[name] for name in found if "attn2.to_v" in name]
    image = [found[name] for name in found if "mid_block" in name and "attn1.to_v" in name]
    assert set(text) == {12}
    assert set(image) == {16}


def test_what_is_held_is_of_the_captions_as_well() -> None:
    example = Example((4, 8, 8), {"encoder_hidden_states": Rows(TEXTS, torch.tensor([0]))})
    short = {"encoder_hidden_states": TEXTS[:1, :2]}
    whole, _ = held_bytes(NETWORKS["lora"], example.shape, CPU, example.conditions)
    part, _ = held_bytes(NETWORKS["lora"], example.shape, CPU, short)
    assert part < whole
