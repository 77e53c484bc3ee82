"""Your own images: a folder to train on and a folder to explain."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path

import numpy as np
import torch

import attribench.datamodules
from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.data.decoding import Channels, read_images
from attribench.data.files import IMAGE_SUFFIXES, list_images, natural_key
from attribench.datamodules._splits import Indices, can_stratify, check_range, choose
from attribench.errors import DataError, UsageError, nearest

FOLDERS = ("train", "test")
CHANNELS = ("auto", "RGB", "grey")


@register_datamodule("image-folder")
class ImageFolder(AttributionDataModule):
    """Your images: `root/train` holds the train images and `root/test` the queries, with or without class subfolders.

    Subfolders are searched to any depth. The first-level subfolders are the classes if, in both folders, every image
    lies in one, and there are at least two of them; otherwise there are no labels. Formats: JPEG, PNG, BMP, GIF, WebP,
    TIFF, PBM, PGM, PPM and ICO, by content where the name does not tell; see `attribench.data.decoding` for how they are
    decoded.

    Args:
        root: the folder that holds `train` and `test`.
        name: what results are filed under; by default the folder's own name (with `-folder` behind it if a built-in
            data set is called that).
        image_size: resize each image's shorter side to this many pixels and crop the centre; by default images keep
            their size, and must all have the same.
        channels: `RGB`, `grey`, or `auto`, which is grey if none of the images has any colour.
        num_train: use at most so many train images, in class proportions where that can be done; by default all.
        num_queries: use at most so many test images as queries, chosen likewise; by default all.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str | None = None,
        image_size: int | None = None,
        channels: Channels = "auto",
        num_train: int | None = None,
        num_queries: int | None = None,
    ) -> None:
        super().__init__()
        check_range("image_size", image_size, 1)
        check_range("num_train", num_train, 1)
        check_range("num_queries", num_queries, 1)
        if channels not in CHANNELS:
            raise UsageError(
                f"--data.channels must be one of {', '.join(CHANNELS)}, not {channels!r}.{nearest(channels, CHANNELS)}"
            )
        self.root = Path(root).expanduser().absolute()
        self.image_size, self.channels = image_size, channels
        self.num_train, self.num_queries = num_train, num_queries
        own_name = self.root.resolve().name
        if name is None and own_name.casefold() in _built_in_names():
            name = f"{own_name}-folder"  # a copy of a known data set is not that data set
        self._label = _checked_label(own_name if name is None else name)

    @property
    def label(self) -> str:
        return self._label

    @property
    def stratify(self) -> bool:
        """Whether there are classes, each with at least two train images."""
        labels = self.train.labels
        return labels is not None and bool(np.unique(labels.numpy(), return_counts=True)[1].min() >= 2)

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, test = (self._list(folder) for folder in FOLDERS)
        train_labels, test_labels = _labels(train, test)
        train_indices = _choose(len(train), self.num_train, train_labels, "num_train")
        test_indices = _choose(len(test), self.num_queries, test_labels, "num_queries")
        ids = [*(train[i] for i in train_indices), *(test[i] for i in test_indices)]
        images = torch.from_numpy(
            read_images(
                [self.root / image_id for image_id in ids],
                image_size=self.image_size,
                channels=self.channels,
                names=ids,
            )
        )
        cut = len(train_indices)
        return (
            ImageSet(images[:cut], tuple(ids[:cut]), _at(train_labels, train_indices)),
            ImageSet(images[cut:], tuple(ids[cut:]), _at(test_labels, test_indices)),
        )

    def _list(self, name: str) -> list[str]:
        """The ids of the images in a folder: their paths from the root, in natural order."""
        folder = self.root / name
        if not folder.is_dir():
            what = f"{self.root} has no folder {name}" if self.root.is_dir() else f"There is no folder {self.root}"
            raise DataError(
                f"{what}: put the train images into {self.root / 'train'} and the images to explain into "
                f"{self.root / 'test'}, or name another folder with --data.root."
            )
        ids = [path.relative_to(self.root).as_posix() for path in list_images(folder)]
        if not ids:
            raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        for image_id in ids:
            try:
                image_id.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"The file name {image_id!r} in {self.root} is not UTF-8: rename the file.") from error
        return ids


def _built_in_names() -> list[str]:
    return [
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(attribench.datamodules.__path__)
        if not module.name.startswith("_") and module.name != "image_folder"
    ]


def _checked_label(label: str) -> str:
    if label.casefold() in _built_in_names():
        raise UsageError(
            f"Results of these images would be filed under {label!r}, the name of a built-in data set: "
            f"give them another name with --data.name, such as {label}-mine."
        )
    if not label.strip(" .") or not label.isprintable() or any(sign in label for sign in "/\\"):
        raise UsageError(f"Results cannot be filed under {label!r}: give the images a name with --data.name.")
    return label


def _labels(train: list[str], test: list[str]) -> tuple[Indices | None, Indices | None]:
    """Class numbers of both folders' images, counted in natural order of the classes' names, or None."""
    classes = [[image_id.split("/")[1:-1][:1] for image_id in ids] for ids in (train, test)]
    names = sorted({name for ids in classes for found in ids for name in found}, key=lambda n: (natural_key(n), n))
    if len(names) < 2 or any(not found for ids in classes for found in ids):
        return None, None
    number = {name: i for i, name in enumerate(names)}
    train_labels, test_labels = (np.array([number[found[0]] for found in ids], dtype=np.int64) for ids in classes)
    return train_labels, test_labels


def _choose(count: int, size: int | None, labels: Indices | None, option: str) -> Indices:
    size = count if size is None else min(size, count)  # a preset's size must fit any folder
    return choose(
        np.arange(count), size, labels if labels is not None and can_stratify(labels, size) else None, option=option
    )


def _at(labels: Indices | None, indices: Indices) -> torch.Tensor | None:
    return None if labels is None else torch.from_numpy(labels[indices])
