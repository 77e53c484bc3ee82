"""CIFAR-10: 50,000 photos of ten classes, 32×32."""

from __future__ import annotations

import os

from attribench import register_datamodule
from attribench.datamodules._cifar import SIDE, CifarDataModule


@register_datamodule("cifar10")
class Cifar10(CifarDataModule):
    """CIFAR-10, all ten classes; the validation queries are test images, in class proportions."""

    classes = range(10)

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 50_000,
        num_queries: int = 1000,
        image_size: int = SIDE,
        download: bool = True,
    ) -> None:
        super().__init__(root, num_train, num_queries, image_size, download)

    @property
    def label(self) -> str:
        return "cifar10"
