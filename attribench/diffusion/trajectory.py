"""The way from noise to an image by DDIM, step by step; generated images are its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribench.computing.device import exact_float32


@dataclass(frozen=True, eq=False)
class TrajectoryStep:
    """One step of some images from noise.

    Attributes:
        timestep: t.
        predicted: x̂₀, the image that the network predicts at t, clipped to [-1, 1], ``(N, C, H, W)``.
        sample: what the step leads to; after the last one, the image.
    """

    timestep: int
    predicted: Tensor
    sample: Tensor


@torch.no_grad()
def ddim_trajectory(
    network: nn.Module,
    seeds: Sequence[int],
    image_shape: tuple[int, int, int],
    num_inference_steps: int,
    eta: float,
    device: torch.device,
) -> Iterator[TrajectoryStep]:
    """Sample images with DDIM from the DDPM schedule, and show every step, from noise to image.

    Args:
        network: an epsilon-predicting ``UNet2DModel`` in evaluation mode, on ``device``.
        seeds: image i starts from noise of a CPU generator seeded ``seeds[i]``.
        eta: DDIM's η; 0 is deterministic.
    """
    from diffusers import DDIMScheduler

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sample = torch.stack([torch.randn(image_shape, generator=generator) for generator in generators]).to(device)
    scheduler = DDIMScheduler()  # its defaults are DDPMScheduler's: 1000 steps, linear β from 1e-4 to 0.02
    scheduler.set_timesteps(num_inference_steps)
    for timestep in scheduler.timesteps:
        with exact_float32():
            predicted = network(sample, timestep.to(device)).sample
        noise = None
        if eta > 0:
            noise = torch.stack([torch.randn(image_shape, generator=g) for g in generators]).to(device)
        step = scheduler.step(predicted, timestep, sample, eta=eta, variance_noise=noise)
        sample = step.prev_sample
        yield TrajectoryStep(int(timestep), step.pred_original_sample, sample)


def to_pixels(sample: Tensor) -> Tensor:
    """The end of a trajectory as uint8 on the CPU: what an 8-bit PNG of the image holds."""
    return ((sample / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
