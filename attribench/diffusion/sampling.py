"""Generation with DDIM, one generator an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.settings import GenerationSettings


@torch.inference_mode()
def generate_images(
    network: nn.Module,
    seeds: Sequence[int],
    image_shape: tuple[int, int, int],
    settings: GenerationSettings,
    device: torch.device,
    batch_size: int = 256,
    report: Callable[[float], None] = lambda passes: None,
) -> Tensor:
    """Sample one image a seed with DDIM from the DDPM schedule.

    Args:
        network: an epsilon-predicting ``UNet2DModel`` in evaluation mode.
        seeds: image i starts from noise of a CPU generator seeded ``seeds[i]``, whatever its batch.
        report: called with the number of forward passes (images × steps) just done.

    Returns:
        uint8 ``(len(seeds), C, H, W)``: what an 8-bit PNG of the image holds.
    """
    from diffusers import DDIMScheduler

    network = network.to(device)
    batches = []
    with exact_float32():
        for begin in range(0, len(seeds), batch_size):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[begin : begin + batch_size]]
            sample = torch.stack([torch.randn(image_shape, generator=generator) for generator in generators])
            sample = sample.to(device)
            scheduler = DDIMScheduler()  # its defaults are DDPMScheduler's: 1000 steps, linear β from 1e-4 to 0.02
            scheduler.set_timesteps(settings.num_inference_steps)
            for timestep in scheduler.timesteps:
                predicted = network(sample, timestep.to(device)).sample
                noise = None
                if settings.eta > 0:
                    noise = torch.stack([torch.randn(image_shape, generator=g) for g in generators]).to(device)
                sample = scheduler.step(predicted, timestep, sample, eta=settings.eta, variance_noise=noise).prev_sample
                report(float(len(generators)))
            batches.append(((sample / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8))
    return torch.cat(batches)
