"""The noise schedule, and noise as a pure function of (seed, sample id, timestep, draw)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.errors import UsageError

NUM_TIMESTEPS = 1000

#: What a network says of a noisy image x_t: the noise ε in it, v = √ᾱ_t ε − √(1−ᾱ_t) x, or the image x.
PredictionType = Literal["epsilon", "v_prediction", "sample"]


class NoiseSchedule:
    """How much noise there is at a timestep, and what a network is to predict there.

    By default DDPM's linear schedule: 1000 steps, β from 1e-4 to 0.02 (the defaults of diffusers' ``DDPMScheduler``), and
    a network that predicts the noise.

    Args:
        alpha_bar: float32 ``(1000,)``: ᾱ_t, the product of 1 − β up to and including step t; None for DDPM's.
        prediction_type: what the network predicts.

    Raises:
        UsageError: not 1000 values from 0 to 1, or there is no such prediction type.
    """

    def __init__(self, alpha_bar: Tensor | None = None, prediction_type: PredictionType = "epsilon") -> None:
        betas = torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float32)
        usual = torch.cumprod(1.0 - betas, dim=0)
        self.alpha_bar = usual if alpha_bar is None else alpha_bar.detach().to("cpu", torch.float32)
        self.prediction_type = prediction_type
        known = get_args(PredictionType)
        if prediction_type not in known:
            raise UsageError(f"The prediction type {prediction_type!r} is not known; known: {', '.join(known)}.")
        if self.alpha_bar.shape != usual.shape:
            raise UsageError(
                f"The noise schedule has {len(self.alpha_bar)} timesteps; attribench works with models of {NUM_TIMESTEPS}."
            )
        if not bool(((self.alpha_bar >= 0) & (self.alpha_bar <= 1)).all()):
            raise UsageError("The noise schedule's ᾱ must lie from 0 to 1.")
        self._is_usual = prediction_type == "epsilon" and torch.equal(self.alpha_bar, usual)

    @property
    def spec(self) -> dict[str, Any]:
        """What it adds to a specification: nothing if it is the default."""
        if self._is_usual:
            return {}
        digest = hashlib.sha256(self.alpha_bar.numpy().tobytes()).hexdigest()
        return {"schedule": {"alpha_bar": digest, "prediction_type": self.prediction_type}}

    def target(self, images: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """What the network is to predict at ``add_noise(images, noise, timestep)``, of the same shape."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return images
        alpha_bar = self.alpha_bar[timestep].to(images)
        return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * images

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
