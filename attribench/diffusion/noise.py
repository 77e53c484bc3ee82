"""The noise schedule, and noise as a pure function of (seed, sample id, timestep, draw)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed

NUM_TIMESTEPS = 1000


class NoiseSchedule:
    """DDPM's linear schedule: 1000 steps, β from 1e-4 to 0.02 (the defaults of diffusers' ``DDPMScheduler``).

    Attributes:
        alpha_bar: float32 ``(1000,)``: ᾱ_t, the product of 1 − β up to and including step t.
    """

    def __init__(self) -> None:
        betas = torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float32)
        self.alpha_bar = torch.cumprod(1.0 - betas, dim=0)

    def add_noise(self, images: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t = √ᾱ_t x + √(1−ᾱ_t) ε for images in [-1, 1] and noise of one shape."""
        alpha_bar = self.alpha_bar[timestep].to(images)
        return alpha_bar.sqrt() * images + (1.0 - alpha_bar).sqrt() * noise


def sample_noise(seed: int, sample_id: str, timestep: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 on the CPU, that depends on these arguments alone.

    The batch an image is in, the device and the order of calls never enter, so results do not change with them.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise", sample_id, timestep, draw))
    return torch.randn(tuple(shape), generator=generator)


def sample_noise_batch(seed: int, sample_ids: Sequence[str], timestep: int, draw: int, shape: Sequence[int]) -> Tensor:
    """Stack :func:`sample_noise` of every id: ``(len(sample_ids), *shape)``."""
    return torch.stack([sample_noise(seed, sample_id, timestep, draw, shape) for sample_id in sample_ids])
