"""Gradients of a model output, one a sample, averaged over timesteps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribench.computing.device import exact_float32
from attribench.data import to_unit_range
from attribench.diffusion.noise import NoiseSchedule, sample_noise_batch
from attribench.gradients.outputs import OutputFunction, loss_weights

#: Samples whose gradients are taken at a time, at most: beyond it, activations cost memory and gain no speed.
_LARGEST_BATCH = 64

#: Bytes of gradients that are held at a time, about, for the samples of one batch and one timestep.
_BATCH_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}


def batch_size(num_parameters: int, device: torch.device) -> int:
    """Samples whose gradients are taken together: bounded by memory alone, so the same in every run."""
    budget = _BATCH_BYTES.get(device.type, _BATCH_BYTES["cpu"])
    return max(1, min(_LARGEST_BATCH, budget // (4 * num_parameters)))


def num_parameters(network: nn.Module) -> int:
    """The length of a gradient."""
    return sum(parameter.numel() for parameter in network.parameters())


def mean_gradients(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[str],
    timesteps: Sequence[int],
    output: OutputFunction,
    seed: int,
    schedule: NoiseSchedule,
    device: torch.device,
    report: Callable[[float], None] = lambda passes: None,
) -> Tensor:
    """Average ∇_θ f over timesteps, for every sample, with one draw of noise a timestep.

    All parameters count, frozen or not; nothing of ``network`` is changed.

    Args:
        network: an epsilon-predicting ``UNet2DModel`` in evaluation mode, on ``device``.
        images: uint8 ``(num_images, C, H, W)``.
        ids: one name an image; its noise is a function of (seed, id, timestep) alone.
        report: called with the number of backward passes (samples) just done.

    Returns:
        float32 ``(num_images, num_parameters)`` on ``device``; parameters in the order of ``named_parameters()``.
    """
    parameters = {name: value.detach().to(device) for name, value in network.named_parameters()}
    buffers = {name: value.detach().to(device) for name, value in network.named_buffers()}
    weights = loss_weights(schedule).to(device)

    def evaluate(parameters: dict[str, Tensor], noisy: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        predicted = functional_call(network, (parameters, buffers), (noisy[None], timestep[None])).sample[0]
        return output(predicted, noise, weights[timestep])

    gradients = vmap(grad(evaluate), in_dims=(None, 0, 0, None))
    result = torch.zeros(len(images), num_parameters(network), device=device)
    size = batch_size(result.shape[1], device)
    # Attention's fused kernels neither promise the same bits twice nor can be mapped over samples everywhere.
    with exact_float32(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for begin in range(0, len(images), size):
            rows = result[begin : begin + size]
            clean = to_unit_range(images[begin : begin + size])
            for timestep in timesteps:
                noise = sample_noise_batch(seed, ids[begin : begin + size], timestep, 0, clean.shape[1:])
                noisy = schedule.add_noise(clean, noise, timestep)
                step = torch.tensor(timestep, device=device)
                found: dict[str, Tensor] = gradients(parameters, noisy.to(device), noise.to(device), step)
                at = 0
                for gradient in found.values():  # added in place: a second copy of all of them would be as large
                    flat = gradient.flatten(1)
                    rows[:, at : at + flat.shape[1]] += flat
                    at += flat.shape[1]
                report(float(len(rows)))
    return result.div_(len(timesteps))
