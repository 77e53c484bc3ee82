"""Images in whatever form somebody has them: a folder, a tensor, pictures, or a sequence of items with pictures in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attribench.computing.progress import Progress, silent_progress
from attribench.data import ImageSet
from attribench.data.captions import CAPTION_KEYS
from attribench.data.decoding import Channels, is_grey, open_square, square_of, to_pixels
from attribench.data.files import natural_key, some
from attribench.data.folders import Folder, read_folder
from attribench.errors import DataError, UsageError
from attribench.store.artifacts import ArtifactStore

#: Side of pictures where nobody says otherwise, in pixels.
DEFAULT_SIZE = 32

#: What an item of a sequence may call its picture, and its class.
_IMAGE_KEYS = ("image", "img")
_LABEL_KEYS = ("label", "labels", "class")


def read_source(
    source: object,
    image_size: int | None,
    store: ArtifactStore,
    *,
    channels: Channels = "auto",
    progress: Progress = silent_progress,
    name: str = "images",
) -> Folder:
    """Bring images to the one form they have here.

    Args:
        source: the path of a folder; a tensor ``(N, C, H, W)``, uint8 or float in [0, 1]; an :class:`ImageSet`; or a sequence
            of pictures (PIL), paths or tensors ``(C, H, W)``, or of items that hold one: mappings with ``image`` and perhaps
            ``label`` and ``caption`` or ``text``, as in Hugging Face's data sets, or pairs of picture and label, as in
            torchvision's.
        image_size: pictures are resized and cropped to squares of so many pixels, and tensors must have that size; None
            leaves tensors alone and makes pictures 32×32.
        store: where the pixels of a folder are kept.
        channels: ``RGB``, ``grey``, or ``auto``: grey if none has colour.
        progress: of reading a folder.
        name: what messages call them.

    Returns:
        The images, uint8 ``(N, 1 or 3, H, W)``. Names are paths in a folder, else numbers from 0.

    Raises:
        DataError: they cannot be read, are of several sizes, or of another size than ``image_size``.
        UsageError: the source is of no kind that is known.
    """
    if isinstance(source, str | Path):
        return read_folder(Path(source), image_size or DEFAULT_SIZE, store, channels=channels, progress=progress)
    if isinstance(source, ImageSet):
        images = _fitted(_bytes(source.images, name, 4), image_size, channels, name)
        return Folder(ImageSet(images, source.ids, source.labels, source.captions), {})
    if isinstance(source, Tensor):
        images = _fitted(_bytes(source, name, 4), image_size, channels, name)
        return Folder(ImageSet(images, _numbers(len(images))), {})
    if isinstance(source, Mapping) or not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise UsageError(
            f"{name}: a {type(source).__name__} holds no images that attribench can read; give a folder, a tensor, a list of "
            "pictures, or a data set of items with an image."
        )
    return Folder(_from_sequence(source, image_size, channels, name), {})  # type: ignore[arg-type]


def folder_labels(
    train: Sequence[str], queries: Sequence[str], num_classes: int, what: str = "queries"
) -> tuple[Tensor, Tensor, list[str]]:
    """Class numbers from first-level subfolders.

    Subfolders whose names are all numbers are the classes of these numbers; else classes are numbered from 0 in alphabetical
    order of the train images' subfolders, as torchvision's ``ImageFolder`` does, and a query's subfolder may also be a higher
    number: a class without train images.

    Args:
        train: names of the train images, paths within their folder; none where they come from elsewhere.
        queries: likewise.
        num_classes: that the model knows.
        what: messages call them.

    Returns:
        int64 ``(num_train,)`` and ``(num_queries,)``, and the names of the classes in order of their numbers.

    Raises:
        DataError: an image lies in no subfolder, or in one that is no class.
    """
    for kind, names in (("train images", train), (what, queries)):
        loose = [name for name in names if "/" not in name]
        if loose:
            raise DataError(
                f"The model is told classes, and {len(loose)} {kind} lie in no subfolder ({some(loose)}): put them into one "
                "subfolder a class."
            )
    folders = sorted({name.partition("/")[0] for name in train})
    if all(folder.isdecimal() for folder in folders):
        numbers = {folder: int(folder) for folder in folders}
        numbers.update(
            {folder: int(folder) for name in queries for folder in [name.partition("/")[0]] if folder.isdecimal()}
        )
    else:
        numbers = {folder: number for number, folder in enumerate(folders)}
        # A number that names no subfolder is a class without train images: that of images made without a class, say.
        others = {name.partition("/")[0] for name in queries} - numbers.keys()
        numbers.update({folder: int(folder) for folder in others if folder.isdecimal() and int(folder) >= len(folders)})
    too_high = [folder for folder, number in numbers.items() if number >= num_classes]
    if too_high:
        raise DataError(
            f"The model knows {num_classes} classes, numbered from 0; the subfolder {too_high[0]} would be class "
            f"{numbers[too_high[0]]}."
        )
    unknown = sorted({name.partition("/")[0] for name in queries} - set(numbers))
    if unknown:
        known = f"class of the train images (there are: {some(folders)})" if folders else "number of a class"
        raise DataError(f"The {what}' subfolder {unknown[0]} is no {known}: rename it.")
    found = [torch.tensor([numbers[name.partition("/")[0]] for name in names]) for names in (train, queries)]
    return found[0], found[1], sorted(numbers, key=lambda folder: (numbers[folder], natural_key(folder)))


def _from_sequence(items: Sequence[Any], image_size: int | None, channels: Channels, name: str) -> ImageSet:
    count = len(items)
    if not count:
        raise DataError(f"{name}: there are none.")
    found = [_picture(items[number], f"{name}[{number}]") for number in range(count)]
    pixels = [_pixels(picture, image_size, f"{name}[{number}]") for number, (picture, *_) in enumerate(found)]
    shapes = {tuple(image.shape[1:]) for image in pixels}
    if len(shapes) > 1:
        sizes = " and ".join("×".join(map(str, shape)) for shape in sorted(shapes)[:2])
        raise DataError(f"{name}: images must have one size, and these have {sizes}; resize them.")
    most = max(image.shape[0] for image in pixels)
    images = _fitted(torch.stack([_widened(image, most) for image in pixels]), image_size, channels, name)
    labels = [label for _, label, _ in found if label is not None]
    captions = tuple(caption for *_, caption in found)  # of some alone: who needs them says which are missing
    return ImageSet(
        images,
        _numbers(count),
        torch.tensor(labels) if len(labels) == count else None,
        captions if any(caption is not None for caption in captions) else None,
    )


def _picture(item: Any, name: str) -> tuple[Any, int | None, str | None]:
    """An item's picture, and its class and caption if it has them."""
    caption = None
    if isinstance(item, Mapping):
        picture = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if picture is None:
            raise DataError(f"{name} has no 'image': its keys are {some([str(key) for key in item])}.")
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        caption = next((item[key] for key in CAPTION_KEYS if isinstance(item.get(key), str)), None)
    elif isinstance(item, tuple | list):
        picture, label = (*item, None, None)[:2]
    else:
        picture, label = item, None
    if isinstance(label, Tensor | np.generic | np.ndarray):
        label = label.item() if math.prod(label.shape) == 1 else None  # many attributes are no class
    return picture, label if isinstance(label, int) and not isinstance(label, bool) else None, caption


def _pixels(picture: Any, image_size: int | None, name: str) -> Tensor:
    """uint8 ``(C, H, W)``."""
    if isinstance(picture, Tensor):
        return _bytes(picture, name, 3)
    if isinstance(picture, np.ndarray):
        try:
            picture = Image.fromarray(picture)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: an array {picture.dtype} {picture.shape} is no picture: {error}.") from error
    size = image_size or DEFAULT_SIZE
    if isinstance(picture, Image.Image):
        try:
            return torch.from_numpy(to_pixels(square_of(picture, size)))
        except (DataError, OSError) as error:  # pictures are decoded when they are first looked at
            raise DataError(f"{name}: {error}") from error
    if isinstance(picture, str | Path):
        try:
            return torch.from_numpy(to_pixels(open_square(Path(picture), size)))
        except (DataError, OSError) as error:
            raise DataError(f"{picture}: {error}") from error
    raise DataError(f"{name}: a {type(picture).__name__} is no picture.")


def _bytes(images: Tensor, name: str, dimensions: int) -> Tensor:
    shape = "(N, C, H, W)" if dimensions == 4 else "(C, H, W)"
    channels = images.shape[-3] if images.ndim == dimensions else 0
    if channels not in (1, 3) or not images.numel():
        raise DataError(f"{name}: images must be {shape} with C = 1 or 3; got {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.detach().cpu()
    if not images.is_floating_point():
        raise DataError(
            f"{name}: images must be uint8, or float in [0, 1]; got {str(images.dtype).removeprefix('torch.')}."
        )
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{name}: float images must lie in [0, 1]; these go from {low:.3g} to {high:.3g}. Scale [-1, 1] by (x + 1) / 2."
        )
    return (images.detach().cpu() * 255).round().to(torch.uint8)


def _fitted(images: Tensor, image_size: int | None, channels: Channels, name: str) -> Tensor:
    """uint8 ``(N, C, H, W)`` with the channels that are asked for.

    Raises:
        DataError: of another size, or coloured where grey is needed.
    """
    height, width = images.shape[2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        raise DataError(f"{name}: images of {height}×{width} where {image_size}×{image_size} are needed; resize them.")
    coloured = images.shape[1] == 3 and not is_grey(images.numpy())
    if channels == "grey" and coloured:
        pictures = (Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L") for image in images)
        return torch.stack([torch.tensor(to_pixels(picture)) for picture in pictures])
    if channels == "RGB":
        return _widened(images, 3)
    return images if coloured else images[:, :1]


def _widened(images: Tensor, channels: int) -> Tensor:
    """Repeat the grey channel."""
    if images.shape[-3] == channels:
        return images
    return images.expand(*images.shape[:-3], channels, -1, -1)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))
