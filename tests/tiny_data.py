"""A data set small enough to train on in a second."""

from __future__ import annotations

import torch

from attribench.data import AttributionDataModule, ImageSet


class TinyData(AttributionDataModule):
    """24 random train images of 8×8 in two classes, and 6 queries.

    Args:
        seed: what the pixels are drawn from.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    @property
    def label(self) -> str:
        return "tiny"

    def load(self) -> tuple[ImageSet, ImageSet]:
        generator = torch.Generator().manual_seed(self.seed)
        pixels = torch.randint(0, 256, (30, 1, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.arange(30) % 2
        names = tuple(f"tiny-{i}" for i in range(30))
        return ImageSet(pixels[:24], names[:24], labels[:24]), ImageSet(pixels[24:], names[24:], labels[24:])
