"""What a network is trained on or measured with: images in the space that noise is added in, and what it is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attribench.diffusion.inputs import Conditions, Rows
from attribench.diffusion.noise import NoiseSchedule


@dataclass(frozen=True, eq=False)
class Examples:
    """Images as a network is given them.

    Attributes:
        clean: uint8 pixels ``(N, C, H, W)``, or float32 latents.
        mirrored: the latents of the mirrored images; None: pixels, or nothing is mirrored.
        conditions: what the network is told of each image.
    """

    clean: Tensor
    mirrored: Tensor | None = None
    conditions: Conditions = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clean)

    def select(self, indices: Sequence[int]) -> Examples:
        """The images at ``indices``, in that order."""
        chosen = torch.as_tensor(list(indices), dtype=torch.long)
        conditions: dict[str, Tensor | Rows] = {
            name: Rows(value.table, value.index[chosen]) if isinstance(value, Rows) else value[chosen]
            for name, value in self.conditions.items()
        }
        return Examples(self.clean[chosen], None if self.mirrored is None else self.mirrored[chosen], conditions)


def told(conditions: Conditions, indices: Sequence[int]) -> dict[str, Tensor]:
    """What a network is told of some images, by the name of its argument."""
    chosen = torch.as_tensor(list(indices), dtype=torch.long)
    return {
        name: value.table[value.index[chosen]] if isinstance(value, Rows) else value[chosen]
        for name, value in conditions.items()
    }


def target_of(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """What a network of the schedule is to predict of √ᾱ x + √(1−ᾱ) ε, an ᾱ an image.

    Args:
        clean: x, ``(N, C, H, W)``.
        noise: ε, likewise.
        alpha_bar: ``(N, 1, 1, 1)``.
    """
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return clean
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
