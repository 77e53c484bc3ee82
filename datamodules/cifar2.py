"""CIFAR-2: CIFAR-10's automobiles and horses, 32×32."""

from __future__ import annotations

import os

import numpy as np

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.datamodules._cifar import SIDE, Part, read_cifar10
from attribench.datamodules._splits import Indices, check_range, choose

CLASSES = (1, 7)


@register_datamodule("cifar2")
class Cifar2(AttributionDataModule):
    """CIFAR-10's automobiles and horses, half of them for training; validation queries are half of their test images.

    Labels are CIFAR-10's own class numbers, 1 and 7.

    Args:
        root: folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`; by default `$ATTRIBENCH_DATA`, or
            else the user's cache folder.
        num_train: how many of the two classes' 10,000 train images to use, in class proportions.
        num_queries: how many of the two classes' 2,000 test images are validation queries.
        image_size: side of the images in pixels; less than 32 resizes them.
        download: fetch the files (170 MB) if they are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 5000,
        num_queries: int = 1000,
        image_size: int = SIDE,
        download: bool = True,
    ) -> None:
        super().__init__()
        check_range("num_train", num_train, 1)
        check_range("num_queries", num_queries, 1)
        check_range("image_size", image_size, 1, SIDE)
        self.root, self.download = root, download
        self.num_train, self.num_queries, self.image_size = num_train, num_queries, image_size

    @property
    def label(self) -> str:
        return "cifar2"

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, test = read_cifar10(self.root, self.download)
        return (
            train.select(_choose(train, self.num_train, "num_train"), self.image_size),
            test.select(_choose(test, self.num_queries, "num_queries"), self.image_size),
        )


def _choose(part: Part, size: int, option: str) -> Indices:
    candidates = np.flatnonzero(np.isin(part.labels, CLASSES))
    return choose(candidates, size, part.labels[candidates], option=option)
