"""CIFAR-2: CIFAR-10's automobiles and horses, 32×32."""

from __future__ import annotations

import os

from attribench import register_datamodule
from attribench.datamodules._cifar import SIDE, CifarDataModule


@register_datamodule("cifar2")
class Cifar2(CifarDataModule):
    """CIFAR-10's automobiles and horses, half of them for training; validation queries are half of their test images.

    Labels are CIFAR-10's own class numbers, 1 and 7.
    """

    classes = (1, 7)

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 5000,
        num_queries: int = 1000,
        image_size: int = SIDE,
        download: bool = True,
    ) -> None:
        super().__init__(root, num_train, num_queries, image_size, download)

    @property
    def label(self) -> str:
        return "cifar2"
