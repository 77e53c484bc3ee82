"""Gradients taken layer by layer, against ``torch.func`` in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.func import functional_call, grad

from attribench.diffusion.network import build_network
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.diffusion.parameters import trainable
from attribench.errors import AttribenchError
from attribench.gradients import per_sample
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import layerwise_bytes, pass_size, summed_gradients
from attribench.settings import ModelSettings

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (3, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IDS = ("a", "b", "c")
TERMS = [(0, 0), (700, 1), (999, 3)]


def network(down: str, up: str) -> nn.Module:
    settings = ModelSettings([4, 8], ["DownBlock2D", down], [up, "UpBlock2D"], 1, 4, 2, downsample_padding=0)
    torch.manual_seed(1)
    return build_network(settings, (2, 8, 8)).double().eval()


def without_scale_shift() -> nn.Module:
    """A network of the default kind: its attention has group normalisation, its time embedding is added."""
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return (
        UNet2DModel(8, 2, 2, **blocks, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1).double().eval()
    )


@dataclass
class Prediction:
    sample: Tensor


class Scaled(nn.Module):
    """A network with a parameter that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        return Prediction(self.convolution(noisy) * self.scale)


class Layers(nn.Module):
    """Layers called in unusual ways: one of them twice, with strides, groups and dilation, without a bias, and not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", bias=False)
        self.grouped = nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2)
        self.frozen = nn.Linear(4, 5).requires_grad_(False)
        self.unused = nn.Linear(2, 3)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        return Prediction(self.frozen(self.grouped(self.twice(self.twice(noisy).tanh()))).cos())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: network("AttnDownBlock2D", "AttnUpBlock2D"),
    "resnet": lambda: network("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    "default": without_scale_shift,
    "layers": lambda: Layers().double(),
}


def expected(model: nn.Module, f: str, normalized: bool = False) -> Tensor:
    """One sample, timestep and draw at a time."""
    schedule, rows = NoiseSchedule(), []
    for image, name in zip(IMAGES, IDS, strict=True):
        total = 0.0
        for timestep, draw in TERMS:
            clean = (image.float() / 127.5 - 1).double()
            noise = sample_noise(7, name, timestep, draw, clean.shape).double()
            alpha_bar = schedule.alpha_bar[timestep].double()
            noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

            def value(parameters: dict[str, Tensor], noisy: Tensor, noise: Tensor, timestep: int) -> Tensor:
                predicted = functional_call(model, parameters, (noisy[None], torch.tensor([timestep]))).sample[0]
                return output_function(f)(predicted, noise, torch.tensor(1.0))

            gradients = grad(value)(dict(trainable(model)), noisy, noise, timestep)
            flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
            total = total + (flat / flat.norm() if normalized else flat)
        rows.append(total)
    return torch.stack(rows).detach()


def found(model: nn.Module, f: str, normalized: bool = False) -> Tensor:
    row_bytes = layerwise_bytes(model, (2, 8, 8), CPU)
    function, schedule = output_function(f), NoiseSchedule()
    return summed_gradients(model, IMAGES, IDS, TERMS, function, 7, schedule, CPU, row_bytes, normalized=normalized)


@pytest.mark.parametrize("name", ["attention", "resnet", "default", "layers"])
def test_layer_by_layer_equals_one_sample_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    before = [parameter.requires_grad for parameter in model.parameters()]
    assert layerwise_bytes(model, (2, 8, 8), CPU) is not None
    f = "mean-squared-l2-norm"
    reference = expected(model, f)
    for rows in (1, 4, 100):
        monkeypatch.setattr(per_sample, "_LARGEST_PASS", rows)
        # Noisy images are made in float32; the rest is exact to 15 digits.
        torch.testing.assert_close(found(model, f), reference, rtol=1e-5, atol=1e-7)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["attention", "layers", "scaled"])
def test_the_gradient_of_each_timestep_has_length_1_before_the_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled().double() if name == "scaled" else MODELS[name]()
    reference = expected(model, "mean", normalized=True)
    for rows in (1, 4, 100):
        monkeypatch.setattr(per_sample, "_LARGEST_PASS", rows)
        torch.testing.assert_close(found(model, "mean", normalized=True), reference, rtol=1e-5, atol=1e-7)


def test_a_gradient_of_0_adds_nothing() -> None:
    model = Scaled().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not found(model, "mean-squared-l2-norm", normalized=True).any()


def test_a_parameter_that_no_layer_uses_is_not_forgotten() -> None:
    model = Scaled().double()
    assert layerwise_bytes(model, (2, 8, 8), CPU) is None
    torch.testing.assert_close(found(model, "loss"), expected(model, "loss"), rtol=1e-5, atol=1e-7)


class Constant(nn.Module):
    """A network with a layer that is given one row, whatever the batch; or as many as it is told."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__()
        self.convolution, self.embedding = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(3, 2)
        self.register_buffer("constant", torch.ones(rows, 3))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        return Prediction(self.convolution(noisy) + self.embedding(self.constant).mean(0)[:, None, None])


def test_a_layer_that_is_given_the_same_for_all_images_is_not_forgotten() -> None:
    model = Constant().double()
    assert layerwise_bytes(model, (2, 8, 8), CPU) is None
    reference = expected(model, "mean-squared-l2-norm")
    assert reference[:, -8:].all()
    torch.testing.assert_close(found(model, "mean-squared-l2-norm"), reference, rtol=1e-5, atol=1e-7)


def test_a_layer_that_is_first_missed_with_more_images_is_an_error() -> None:
    model = Constant(rows=2).double()
    assert layerwise_bytes(model, (2, 8, 8), CPU) is not None, "with two blank images, it looks like any other"
    with pytest.raises(AttribenchError, match="layer by layer"):
        found(model, "mean-squared-l2-norm")


def test_bytes_a_row_do_not_depend_on_how_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["resnet"]()
    two = layerwise_bytes(model, (2, 8, 8), CPU)
    monkeypatch.setattr(per_sample, "_BLANKS", 4)
    four = layerwise_bytes(model, (2, 8, 8), CPU)
    assert two is not None
    assert four is not None
    assert four == pytest.approx(two, rel=0.02)


def test_a_pass_is_as_large_as_memory_allows() -> None:
    assert pass_size(2**40, CPU) == 1
    assert pass_size(1, CPU) == pass_size(0, CPU) > 1
    assert pass_size(16 * 2**20, CPU) * 16 * 2**20 <= 512 * 2**20
