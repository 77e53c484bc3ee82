"""CIFAR-10: 50,000 photos of ten classes, 32×32."""

from __future__ import annotations

import os

import numpy as np

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.datamodules._cifar import SIDE, read_cifar10
from attribench.datamodules._splits import check_range, choose


@register_datamodule("cifar10")
class Cifar10(AttributionDataModule):
    """CIFAR-10, all ten classes; the validation queries are test images, in class proportions.

    Args:
        root: folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`; by default `$ATTRIBENCH_DATA`, or
            else the user's cache folder.
        num_train: how many of the 50,000 train images to use, in class proportions.
        num_queries: how many of the 10,000 test images are validation queries.
        image_size: side of the images in pixels; less than 32 resizes them.
        download: fetch the files (170 MB) if they are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 50_000,
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
        return "cifar10"

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, test = read_cifar10(self.root, self.download)
        train_indices = choose(np.arange(len(train.labels)), self.num_train, train.labels, option="num_train")
        query_indices = choose(np.arange(len(test.labels)), self.num_queries, test.labels, option="num_queries")
        return train.select(train_indices, self.image_size), test.select(query_indices, self.image_size)
