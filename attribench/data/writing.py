"""Image sets written as files that other programs can read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from attribench.computing.progress import Progress
from attribench.data.image_sets import ImageSet
from attribench.errors import DataError
from attribench.store.files import atomic_write, storage_error


def write_image_sets(sets: Mapping[str, ImageSet], folder: Path, progress: Progress) -> Path:
    """Write image sets as PNG files, a folder each, and an index of them.

    The index is a CSV file with the columns ``set``, ``index`` (the image's place in its set, from 0), ``id``, ``file`` (from
    ``folder``) and ``label`` (empty where there is none). It comes last: without it the folder is not complete.

    Args:
        sets: by name.
        folder: where; made if need be.

    Returns:
        The index.

    Raises:
        DataError: images of more than four channels, for which PNG has no form.
        ArtifactError: the disk is full or does not take them.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "index", "id", "file", "label"])
    with progress.task(f"Writing images to {folder}", sum(map(len, sets.values()))) as task:
        for name, images in sets.items():
            digits = len(str(len(images) - 1))
            for number, image_id in enumerate(images.ids):
                file = f"{name}/{number:0{digits}}.png"
                _write_png(images, number, folder / file)
                label = "" if images.labels is None else int(images.labels[number])
                writer.writerow([name, number, image_id, file, label])
                task.advance()
    index = folder / "index.csv"
    atomic_write(index, text.getvalue().encode("utf-8", "surrogateescape"))
    return index


def _write_png(images: ImageSet, number: int, path: Path) -> None:
    channels = images.image_shape[0]
    if channels > 4:
        raise DataError(f"Images of {channels} channels cannot be written as PNG.")
    pixels = images.images[number]
    array = pixels[0] if channels == 1 else pixels.permute(1, 2, 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.contiguous().numpy()).save(path)
    except OSError as error:
        raise storage_error(path, error) from error
