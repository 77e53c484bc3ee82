"""CIFAR-10's official Python files, verified and read through torchvision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attribench.data import AttributionDataModule, ImageSet
from attribench.data.decoding import fit_square, to_pixels
from attribench.datamodules._downloads import data_root, fetching, reason
from attribench.datamodules._splits import Indices, check_range, choose
from attribench.errors import DataError

SIDE = 32


@dataclass(frozen=True, eq=False)
class Part:
    """CIFAR-10's train or test part, in its own order.

    Args:
        name: ``"train"`` or ``"test"``.
        images: uint8 ``(num_images, 32, 32, 3)``.
        labels: int64 ``(num_images,)``, 0 to 9.
    """

    name: str
    images: NDArray[np.uint8]
    labels: Indices

    def select(self, indices: Indices, image_size: int) -> ImageSet:
        """The images at ``indices``, resized, with the ids and class numbers they have in CIFAR-10."""
        images = self.images[indices]
        if image_size == SIDE:
            pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        else:
            pixels = np.stack([to_pixels(fit_square(Image.fromarray(image), image_size)) for image in images])
        ids = tuple(f"cifar10-{self.name}-{index}" for index in indices)
        return ImageSet(torch.from_numpy(pixels), ids, torch.from_numpy(self.labels[indices]))


class CifarDataModule(AttributionDataModule):
    """Some classes of CIFAR-10; the validation queries are test images, in class proportions like the train images.

    Args:
        root: folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`; by default `$ATTRIBENCH_DATA`, or
            else the user's cache folder.
        num_train: how many of the classes' train images to use, in class proportions.
        num_queries: how many of the classes' test images are validation queries.
        image_size: side of the images in pixels; less than 32 resizes them.
        download: fetch the files (170 MB) if they are not there.
    """

    #: CIFAR-10's numbers of the classes.
    classes: ClassVar[Sequence[int]]

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        num_train: int,
        num_queries: int,
        image_size: int,
        download: bool,
    ) -> None:
        super().__init__()
        check_range("num_train", num_train, 1)
        check_range("num_queries", num_queries, 1)
        check_range("image_size", image_size, 1, SIDE)
        self.root, self.download = root, download
        self.num_train, self.num_queries, self.image_size = num_train, num_queries, image_size

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, test = read_cifar10(self.root, self.download)
        return (
            train.select(self._choose(train, self.num_train, "num_train"), self.image_size),
            test.select(self._choose(test, self.num_queries, "num_queries"), self.image_size),
        )

    def _choose(self, part: Part, size: int, option: str) -> Indices:
        candidates = np.flatnonzero(np.isin(part.labels, self.classes))
        return choose(candidates, size, part.labels[candidates], option=option)


def read_cifar10(root: str | os.PathLike[str] | None, download: bool) -> tuple[Part, Part]:
    """Return CIFAR-10's (train, test) parts, fetched or unpacked first if need be.

    Raises:
        DataError: the official files are not there and cannot be had; says what to fetch and where to put it.
    """
    from torchvision.datasets import CIFAR10

    folder = data_root(root)
    if _faulty(folder):
        _provide(folder, download)
    # The files are pickles. They are opened only as the official ones: torchvision checks their MD5 sums again here.
    train, test = CIFAR10(folder, train=True), CIFAR10(folder, train=False)
    return _part("train", train.data, train.targets), _part("test", test.data, test.targets)


def _part(name: str, images: NDArray[np.uint8], labels: list[int]) -> Part:
    return Part(name, images, np.asarray(labels, dtype=np.int64))


def _faulty(folder: Path) -> list[str]:
    """Files that are missing, or not the official ones."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    sums = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    paths = [(folder / CIFAR10.base_folder / name, md5) for name, md5 in sums]
    return [
        f"{path} {'is not the official file (its MD5 sum is wrong)' if path.is_file() else 'is missing'}"
        for path, md5 in paths
        if not check_integrity(path, md5)
    ]


def _provide(folder: Path, download: bool) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    archive = folder / CIFAR10.filename
    problem = "downloading is switched off"
    if download or check_integrity(archive, CIFAR10.tgz_md5):
        try:
            with fetching(folder):
                if _faulty(folder):  # another process may have fetched them while this one waited
                    # Does not touch the network if the verified archive is there already.
                    download_and_extract_archive(CIFAR10.url, str(folder), filename=archive.name, md5=CIFAR10.tgz_md5)
        except Exception as error:  # urllib, tarfile, zlib and torchvision each raise their own
            problem = f"fetching it failed: {reason(error)}"
        else:
            problem = "the archive did not contain it"
    if faulty := _faulty(folder):
        raise DataError(
            f"CIFAR-10: {faulty[0]}, and {problem.rstrip('.')}. Fetch {CIFAR10.url} (MD5 {CIFAR10.tgz_md5}) and put "
            f"it, unpacked or not, into {folder}; --data.root DIR names another folder."
        )
