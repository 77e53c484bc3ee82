"""A problem so small that dense matrices of all parameters fit: a few images, and a network of a few hundred parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.store.artifacts import ArtifactStore
from attribench.store.shared import SharedStore

SEED = 42


@dataclass
class Prediction:
    sample: Tensor


class Small(nn.Module):
    """Convolutions with strides and padding, one without a bias and used twice, linear layers with and without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False)
        self.norm = nn.GroupNorm(2, 4)
        self.time = nn.Linear(2, 4)
        self.mix = nn.Linear(4, 3)
        self.last = nn.Conv2d(3, 2, (1, 3), padding=(0, 1))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        angle = timesteps[:, None].to(noisy) / 200
        hidden = self.first(noisy) + self.time(torch.cat([angle.sin(), angle.cos()], 1))[:, :, None, None]
        hidden = self.twice(self.twice(self.norm(hidden).tanh()).tanh())
        return Prediction(self.last(self.mix(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


class Models:
    def __init__(self, kind: type[nn.Module]) -> None:
        torch.manual_seed(3)
        self.model = kind()

    def target_model(self) -> nn.Module:
        return self.model

    def checkpoints(self) -> Iterator[nn.Module]:
        return iter([self.model])


def problem(kind: type[nn.Module], folder: Path, shape: tuple[int, ...]) -> tuple[AttributionContext, Queries]:
    pixels = torch.randint(0, 256, (11, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    train = ImageSet(pixels[:8], tuple(f"train-{i}" for i in range(8)))
    store = SharedStore(ArtifactStore(folder))
    own, access = ArtifactStore(folder / "own"), Access.MODEL
    context = AttributionContext(
        train, NoiseSchedule(), torch.device("cpu"), SEED, own, access, Models(kind), shared=store
    )
    return context, Queries(pixels[8:], ("a", "b", "c"))
