"""Fashion-MNIST: 70,000 grey pictures of clothes, 28×28, read from the official idx files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.data.decoding import fit_square, to_pixels
from attribench.datamodules._downloads import data_root, fetching, reason
from attribench.datamodules._idx import read_idx
from attribench.datamodules._splits import Indices, check_range, choose
from attribench.errors import DataError

PAGE = "https://github.com/zalandoresearch/fashion-mnist"
#: Where Debian's package ``dataset-fashion-mnist`` puts the files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_RAW = Path("FashionMNIST", "raw")  # torchvision's folder of them
SIDE, LARGEST = 28, 32


@register_datamodule("fashion-mnist")
class FashionMnist(AttributionDataModule):
    """Fashion-MNIST's grey clothes of ten classes; validation queries are test images, in class proportions.

    The four official files may be gzipped or not.

    Args:
        root: folder that holds the files, or has them in torchvision's `FashionMNIST/raw`; by default
            `$ATTRIBENCH_DATA`, or else the user's cache folder, or else that of Debian's `dataset-fashion-mnist`.
        num_train: how many of the 60,000 train images to use, in class proportions.
        num_queries: how many of the 10,000 test images are validation queries, in class proportions.
        image_size: side of the images in pixels; less than 28 resizes them (bilinear with antialiasing), more, up to 32,
            puts a black border around them.
        download: fetch the files (31 MB) if they are not there.
    """

    licence = "MIT, Zalando SE"

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 60_000,
        num_queries: int = 1000,
        image_size: int = SIDE,
        download: bool = True,
    ) -> None:
        super().__init__()
        check_range("num_train", num_train, 1)
        check_range("num_queries", num_queries, 1)
        check_range("image_size", image_size, 1, LARGEST)
        self.root, self.download = root, download
        self.num_train, self.num_queries, self.image_size = num_train, num_queries, image_size

    @property
    def label(self) -> str:
        return "fashion-mnist"

    def load(self) -> tuple[ImageSet, ImageSet]:
        folder = _folder(self.root, self.download)
        return (
            self._select(folder, "train", "train", self.num_train, "num_train"),
            self._select(folder, "t10k", "test", self.num_queries, "num_queries"),
        )

    def _select(self, folder: Path, prefix: str, part: str, size: int, option: str) -> ImageSet:
        images, labels = _read_part(folder, prefix)
        indices = choose(np.arange(len(labels)), size, labels, option=option)
        pixels = np.stack([_resized(image, self.image_size) for image in images[indices]])
        return ImageSet(
            images=torch.from_numpy(pixels),
            ids=tuple(f"fashion-mnist-{part}-{index}" for index in indices),
            labels=torch.from_numpy(labels[indices]),
        )


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """One image ``(28, 28)`` as ``(1, size, size)``."""
    if size < SIDE:
        return to_pixels(fit_square(Image.fromarray(image), size))
    before = (size - SIDE) // 2
    return np.pad(image, (before, size - SIDE - before))[None]


def _read_part(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], Indices]:
    """Images ``(num_images, 28, 28)`` and class numbers of a part, in its own order."""
    images_file, labels_file = (_file(folder, f"{prefix}-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            f"{images_file} holds images of {images.shape[2]}x{images.shape[1]}, but Fashion-MNIST's are 28x28."
        )
    if len(images) != len(labels):
        raise DataError(f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels.")
    return images, labels.astype(np.int64)


def _file(folder: Path, archive: str) -> Path:
    """A file of the folder by its official, gzipped name, unpacked where that is there."""
    unpacked = folder / archive.removesuffix(".gz")
    return unpacked if unpacked.is_file() else folder / archive


def _missing(folder: Path) -> list[str]:
    from torchvision.datasets import FashionMNIST

    return [archive for archive, _ in FashionMNIST.resources if not _file(folder, archive).is_file()]


def _folder(root: str | os.PathLike[str] | None, download: bool) -> Path:
    """The folder that holds all four files, fetched if need be.

    Raises:
        DataError: they are not there and cannot be had; says what to fetch and where to put it.
    """
    for folder in _places(root):
        if not _missing(folder):
            return folder
    folder = data_root(root) / _RAW
    _provide(folder, download)
    return folder


def _places(root: str | os.PathLike[str] | None) -> Iterator[Path]:
    yield data_root(root) / _RAW
    yield data_root(root)
    if root is None:
        yield DEBIAN_FOLDER


def _provide(folder: Path, download: bool) -> None:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    sums = dict(FashionMNIST.resources)
    mirror = FashionMNIST.mirrors[0]
    problem = "downloading is switched off"
    if download:
        try:
            with fetching(folder):
                for archive in _missing(folder):  # another process may have fetched some while this one waited
                    # Under another name until it is whole and checked: a kill or a wrong MD5 sum leaves no file in use.
                    download_url(mirror + archive, str(folder), f"{archive}.part", sums[archive])
                    (folder / f"{archive}.part").replace(folder / archive)
        except Exception as error:  # urllib and torchvision each raise their own
            problem = f"fetching failed: {reason(error)}"
    if missing := _missing(folder):
        files = ", ".join(f"{mirror}{archive} (MD5 {sums[archive]})" for archive in missing)
        raise DataError(
            f"Fashion-MNIST is not complete in {folder}, and {problem.rstrip('.')}. Fetch {files}, described at {PAGE}, and "
            "put it there, unpacked or not; or name the files' folder with --data.root DIR; or install Debian's package "
            "dataset-fashion-mnist, which is found without --data.root."
        )
