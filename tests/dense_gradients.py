"""Gradients one image, timestep and draw at a time, in float64: what the gradient methods' brute forces are made of."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribench.computing.seeding import derive_seed
from attribench.diffusion.noise import NoiseSchedule, sample_noise


@dataclass
class Moment:
    """A network's prediction on one noisy image.

    Attributes:
        predicted: float64 ``(C, H, W)``, with a graph.
        noise: what was in the image.
    """

    predicted: Tensor
    noise: Tensor
    parameters: list[nn.Parameter]

    def gradient(self, value: Tensor) -> Tensor:
        """Of a scalar made of ``predicted``: all parameters' in one vector, 0 where one has no part in it."""
        found = torch.autograd.grad(value, self.parameters, allow_unused=True, retain_graph=True)
        parts = [
            torch.zeros_like(parameter) if part is None else part
            for part, parameter in zip(found, self.parameters, strict=True)
        ]
        return torch.cat([part.flatten() for part in parts])


def moments(
    network: nn.Module, images: Tensor, ids: Sequence[str], seed: int, timesteps: Sequence[int], draws: int = 1
) -> list[list[Moment]]:
    """For every image the network's predictions at all timesteps and draws, with the noise of gradient features.

    Args:
        images: uint8 ``(N, C, H, W)``.
        seed: of the context.
    """
    network, alpha_bars = copy.deepcopy(network).double(), NoiseSchedule().alpha_bar.double()
    parameters = list(network.parameters())
    result = []
    for image, name in zip(images, ids, strict=True):
        own = []
        for timestep, draw in itertools.product(timesteps, range(draws)):
            clean, alpha_bar = image.double() / 127.5 - 1, alpha_bars[timestep]
            noise = sample_noise(derive_seed(seed, "gradients"), name, timestep, draw, clean.shape).double()
            noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
            own.append(Moment(network(noisy[None], torch.tensor([timestep])).sample[0], noise, parameters))
        result.append(own)
    return result
