"""NDA from its definition, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attribench.diffusion.noise import NoiseSchedule
from attribench.methods.nda.task import PatchTask

ALPHA_BAR = NoiseSchedule().alpha_bar.double()


def noised(image: Tensor, noise: Tensor, timestep: int) -> Tensor:
    alpha_bar = ALPHA_BAR[timestep]
    return (alpha_bar.sqrt() * image.double() + (1 - alpha_bar).sqrt() * noise.double()).float()


def brute_force(task: PatchTask, train: Tensor) -> Tensor:
    """The definition, word by word: pad with 10, compare all patches with all, softmax, sum of the k largest."""
    size, radius = task.patch_size, (task.patch_size - 1) // 2

    def patches(image: Tensor) -> Tensor:
        channels, height, width = image.shape
        padded = torch.full((channels, height + 2 * radius, width + 2 * radius), 10.0, dtype=torch.float64)
        padded[:, radius : radius + height, radius : radius + width] = image
        cut = padded.unfold(1, size, 1).unfold(2, size, 1).transpose(0, 2).transpose(0, 1).flatten(0, 1)
        return cut if task.downsample == 1 else torch.nn.functional.avg_pool2d(cut, 2) * 2

    query = patches(task.noisy_query.double()).flatten(1)
    candidates = torch.stack([patches(math.sqrt(task.alpha_bar) * image.double()).flatten(1) for image in train])
    distances = (query[:, None, None] - candidates[None]).square().sum(-1)  # (p, n, q)
    logits = -distances / (2 * (1 - task.alpha_bar))
    weights = logits.flatten(1).softmax(1).view(logits.shape)
    return weights.topk(min(task.top_k, weights.shape[2])).values.sum((0, 2))


def error(scores: Tensor, truth: Tensor) -> float:
    return ((scores.double() - truth).abs().max() / truth.max()).item()
