"""Generation with DDIM, one generator an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attribench.diffusion.trajectory import ddim_trajectory, to_pixels
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
    network = network.to(device)
    batches = []
    for begin in range(0, len(seeds), batch_size):
        some = seeds[begin : begin + batch_size]
        steps = ddim_trajectory(network, some, image_shape, settings.num_inference_steps, settings.eta, device)
        for step in steps:
            sample = step.sample
            report(float(len(some)))
        batches.append(to_pixels(sample))
    return torch.cat(batches)
