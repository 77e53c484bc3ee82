"""CelebA: 202,599 aligned photos of faces, read one file at a time and only where chosen."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.data.decoding import Pixels, fit_square, open_image, to_pixels
from attribench.data.reading import read_each
from attribench.datamodules._downloads import data_root, fetching, reason
from attribench.datamodules._splits import Indices, check_range, choose
from attribench.errors import DataError

PAGE = "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
PARTITION, ARCHIVE, PICTURES = "list_eval_partition.txt", "img_align_celeba.zip", "img_align_celeba"
TRAIN, VALIDATION = 0, 1
FULL_SIZE = (178, 218)
CROP = 140


@register_datamodule("celeba")
class CelebA(AttributionDataModule):
    """CelebA's aligned faces: train images from the official train part, queries from its validation part; no classes.

    Pictures are cropped to their central 140×140 and resized. Of the official files two are needed: the list of parts
    and the aligned pictures, which are read from the zip itself if they are not unpacked.

    Args:
        root: folder that holds `celeba/list_eval_partition.txt` and `celeba/img_align_celeba` (or
            `celeba/img_align_celeba.zip`); by default `$ATTRIBENCH_DATA`, or else the user's cache folder.
        num_train: how many of the 162,770 train images to use.
        num_queries: how many of the 19,867 validation images are queries.
        image_size: side of the images in pixels.
        download: fetch the files (1.4 GB, from Google Drive; needs the package gdown) if they are not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 5000,
        num_queries: int = 1000,
        image_size: int = 64,
        download: bool = True,
    ) -> None:
        super().__init__()
        check_range("num_train", num_train, 1)
        check_range("num_queries", num_queries, 1)
        check_range("image_size", image_size, 1, CROP)
        self.root, self.download = root, download
        self.num_train, self.num_queries, self.image_size = num_train, num_queries, image_size

    @property
    def label(self) -> str:
        return "celeba"

    @property
    def stratify(self) -> bool:
        return False

    def indices(self) -> tuple[Indices, Indices]:
        """The (train, validation) images' places in the whole of CelebA, counted from 0; no picture is read.

        Raises:
            DataError: the official files are not there and cannot be had.
        """
        parts = _read_parts(self._folder)
        train, validation = np.flatnonzero(parts == TRAIN), np.flatnonzero(parts == VALIDATION)
        return (
            choose(train, self.num_train, option="num_train"),
            choose(validation, self.num_queries, option="num_queries"),
        )

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, validation = self.indices()
        indices = [*train.tolist(), *validation.tolist()]
        names = [f"{index + 1:06d}.jpg" for index in indices]  # files are counted from 1
        with _pictures(self._folder) as (where, fetch):
            pixels = read_each(
                names,
                lambda name: _decode(fetch(name), self.image_size),
                [f"{where / name}" for name in names],
                remedy=f"Take {ARCHIVE} again from {PAGE}.",
            )
        images, ids = torch.from_numpy(np.stack(pixels)), tuple(f"celeba-{index}" for index in indices)
        cut = len(train)
        return ImageSet(images[:cut], ids[:cut]), ImageSet(images[cut:], ids[cut:])

    @property
    def _folder(self) -> Path:
        folder = data_root(self.root) / "celeba"
        if _missing(folder):
            _provide(folder, self.download)
        return folder


def _missing(folder: Path) -> list[str]:
    pictures = (folder / PICTURES).is_dir() or (folder / ARCHIVE).is_file()
    return [*([] if (folder / PARTITION).is_file() else [PARTITION]), *([] if pictures else [ARCHIVE])]


def _provide(folder: Path, download: bool) -> None:
    from torchvision.datasets import CelebA as Official
    from torchvision.datasets.utils import download_file_from_google_drive

    sources = {name: (drive_id, md5) for drive_id, md5, name in Official.file_list}
    problem = "downloading is switched off"
    if download:
        try:
            with fetching(folder):
                for name in _missing(folder):
                    drive_id, md5 = sources[name]
                    # Under another name until it is whole and checked: a kill or a wrong MD5 sum leaves no file in use.
                    download_file_from_google_drive(drive_id, str(folder), f"{name}.part", md5)
                    (folder / f"{name}.part").replace(folder / name)
        except Exception as error:  # gdown, requests and torchvision each raise their own
            problem = f"fetching failed: {reason(error)}"
    if missing := _missing(folder):
        files = " and ".join(f"{name} (Google Drive id {sources[name][0]}, MD5 {sources[name][1]})" for name in missing)
        raise DataError(
            f"CelebA is not complete in {folder}, and {problem.rstrip('.')}. Fetch {files}, "
            f"linked from {PAGE}, and put it there, the zip unpacked or not; --data.root DIR names another place for "
            "the folder celeba."
        )


def _read_parts(folder: Path) -> Indices:
    """The official part (0 train, 1 validation, 2 test) of every image, ``(202599,)``."""
    from torchvision.datasets import CelebA as Official
    from torchvision.datasets.utils import check_integrity

    path = folder / PARTITION
    md5 = {name: md5 for _, md5, name in Official.file_list}[PARTITION]
    if not check_integrity(path, md5):
        raise DataError(
            f"{path} is not CelebA's official file (its MD5 sum is not {md5}), so the splits cannot be made. "
            f"Take it again from {PAGE}."
        )
    return np.array([line.split()[1] for line in path.read_text().splitlines()], dtype=np.int64)


@contextmanager
def _pictures(folder: Path) -> Iterator[tuple[Path, Callable[[str], bytes]]]:
    """Where the pictures lie, and a function that returns the bytes of one, by file name."""
    unpacked = folder / PICTURES
    if unpacked.is_dir():
        yield unpacked, lambda name: (unpacked / name).read_bytes()
        return
    archive = folder / ARCHIVE
    try:
        opened = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive} cannot be opened ({error}): delete it and take it again from {PAGE}.") from error

    def read(name: str) -> bytes:
        try:
            return opened.read(f"{PICTURES}/{name}")
        except (KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"damaged or missing in the zip: {error}") from error

    with opened:
        yield archive, read


def _decode(data: bytes, image_size: int) -> Pixels:
    image = open_image(io.BytesIO(data))
    if image.size != FULL_SIZE:
        raise DataError(f"{image.width}x{image.height}, but aligned pictures are 178x218")
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    return to_pixels(fit_square(image.crop((left, top, left + CROP, top + CROP)), image_size))
