"""A target model and checkpoints that nobody trained, for tests of what looks at models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from attribench.diffusion.network import build_network
from attribench.settings import ModelSettings


class TinyModels:
    """A target model and two checkpoints, the last of which is the target model; for grey images of 8×8."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings

    def target_model(self) -> nn.Module:
        return self._build(0)

    def checkpoints(self) -> Iterator[nn.Module]:
        return iter([self._build(1), self._build(0)])

    def _build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_network(self._settings, (1, 8, 8)).eval()
