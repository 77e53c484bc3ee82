from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from attribench.configuration.resolution import resolve
from attribench.diffusion.network import build_network
from attribench.errors import UsageError
from attribench.settings import ModelSettings


def test_every_dropout_gets_the_configured_probability(tiny_model: ModelSettings) -> None:
    attention = replace(tiny_model, down_block_types=["AttnDownBlock2D", "DownBlock2D"])
    dropouts = [m for m in build_network(attention, (1, 8, 8)).modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) > 4
    assert {module.p for module in dropouts} == {0.1}


def test_time_enters_by_scale_and_shift(tiny_model: ModelSettings) -> None:
    network = build_network(tiny_model, (1, 8, 8))
    assert network.config.resnet_time_scale_shift == "scale_shift"
    assert network(torch.zeros(2, 1, 8, 8), torch.tensor([0, 999])).sample.shape == (2, 1, 8, 8)


def test_images_that_cannot_be_halved_are_refused(tiny_model: ModelSettings) -> None:
    with pytest.raises(UsageError, match="multiples of 2"):
        build_network(tiny_model, (1, 8, 7))


def test_the_paper_s_cifar_network() -> None:
    # The papers' 35.7 million parameters are counted without scale and shift, which doubles the time projections.
    network = build_network(resolve("cifar2", "paper", [], {}).settings.model, (3, 32, 32))
    plain = UNet2DModel(**{**network.config, "resnet_time_scale_shift": "default"})

    def millions(module: nn.Module) -> float:
        return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)

    assert (millions(plain), millions(network)) == (35.7, 38.3)
