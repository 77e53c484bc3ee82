"""Losses and gradients of a tiny model in float64, one image and term at a time, by plain autograd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tiny_models import TinyModels
from torch import Tensor, nn

from attribench import Access, AttributionContext, ImageSet
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.settings import ModelSettings
from attribench.store.artifacts import ArtifactStore

ALPHA_BAR = NoiseSchedule().alpha_bar.double()


class DoubleModels:
    """The tiny models in float64."""

    def __init__(self, settings: ModelSettings) -> None:
        self._models = TinyModels(settings)

    def target_model(self) -> nn.Module:
        return self._models.target_model().double()

    def checkpoints(self) -> Iterator[nn.Module]:
        return (model.double() for model in self._models.checkpoints())


def context_of(train: ImageSet, settings: ModelSettings, folder: Path) -> AttributionContext:
    """Of the first eight train images."""
    train = ImageSet(train.images[:8], train.ids[:8])
    store = ArtifactStore(folder)
    return AttributionContext(
        train, NoiseSchedule(), torch.device("cpu"), 42, store, Access.MODEL, DoubleModels(settings)
    )


def loss(model: nn.Module, image: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """mean((ε_θ(√ᾱ x + √(1−ᾱ) ε, t) − ε)²) of one image."""
    clean, noise = (image.float() / 127.5 - 1).double(), noise.double()
    noisy = ALPHA_BAR[timestep].sqrt() * clean + (1 - ALPHA_BAR[timestep]).sqrt() * noise
    error: Tensor = model(noisy[None], torch.tensor([timestep])).sample[0] - noise
    return error.square().mean()


def drawn_loss(model: nn.Module, image: Tensor, name: str, seed: int, timestep: int, draw: int) -> Tensor:
    return loss(model, image, sample_noise(seed, name, timestep, draw, image.shape), timestep)


def losses(
    model: nn.Module, images: Tensor, names: Sequence[str], seed: int, terms: Iterable[tuple[int, int]]
) -> Tensor:
    """``(num_terms, num_images)``."""
    with torch.no_grad():
        return torch.stack(
            [
                torch.stack(
                    [drawn_loss(model, image, name, seed, *term) for image, name in zip(images, names, strict=True)]
                )
                for term in terms
            ]
        )


def gradient(model: nn.Module, value: Tensor) -> Tensor:
    """Flat."""
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, list(model.parameters()))])


def move(model: nn.Module, step: Tensor) -> None:
    """Add a flat step to the parameters, in place."""
    at = 0
    with torch.no_grad():
        for value in model.parameters():
            value += step[at : at + value.numel()].view_as(value)
            at += value.numel()
