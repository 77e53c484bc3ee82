"""Per-(noise draw, timestep, query) losses of a model: what retraining on a subset changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.data import to_unit_range
from attribench.diffusion.examples import target_of, told
from attribench.diffusion.inputs import Conditions
from attribench.diffusion.noise import NoiseSchedule, sample_noise


@torch.inference_mode()
def denoising_losses(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[str],
    timesteps: Sequence[int],
    num_draws: int,
    seed: int,
    device: torch.device,
    batch_size: int = 256,
    report: Callable[[float], None] = lambda passes: None,
    conditions: Conditions | None = None,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """The per-pixel mean squared error ‖ε − ε_θ(√ᾱ_t x + √(1−ᾱ_t) ε, t)‖² of every image, timestep and noise draw.

    Args:
        network: an epsilon-predicting ``UNet2DModel`` in evaluation mode; of what the schedule says, if there is one.
        images: uint8 ``(num_images, C, H, W)``, or float32 latents.
        ids: one name an image; ε is a function of (seed, id, timestep, draw).
        report: called with the number of forward passes (images) just done.
        conditions: what the network is told of each image; None: nothing.
        schedule: the network's; None: DDPM's.

    Returns:
        float32 ``(num_draws, len(timesteps), num_images)``, each at least 0.
    """
    network = network.to(device)
    schedule = schedule or NoiseSchedule()
    clean = to_unit_range(images) if images.dtype == torch.uint8 else images
    shape = tuple(clean.shape[1:])
    cells = [(d, t, q) for d in range(num_draws) for t in range(len(timesteps)) for q in range(len(clean))]
    losses = torch.empty(len(cells))
    with exact_float32():
        for begin in range(0, len(cells), batch_size):
            batch = cells[begin : begin + batch_size]
            times = torch.tensor([timesteps[t] for _, t, _ in batch])
            noise = torch.stack([sample_noise(seed, ids[q], timesteps[t], d, shape) for d, t, q in batch])
            alpha_bar = schedule.alpha_bar[times][:, None, None, None]
            noisy = alpha_bar.sqrt() * clean[[q for _, _, q in batch]] + (1 - alpha_bar).sqrt() * noise
            given = told(conditions or {}, [q for _, _, q in batch])
            given = {name: value.to(device) for name, value in given.items()}
            predicted = network(noisy.to(device), times.to(device), **given).sample
            target = target_of(schedule, clean[[q for _, _, q in batch]], noise, alpha_bar)
            errors = (predicted.float() - target.to(device)).square().flatten(1).mean(dim=1)
            losses[begin : begin + len(batch)] = errors.cpu()
            report(float(len(batch)))
    return losses.reshape(num_draws, len(timesteps), len(clean))
