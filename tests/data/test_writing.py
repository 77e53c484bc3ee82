"""Images written for other programs: the same pixels when read by Pillow, in the order of the index."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attribench.computing.progress import silent_progress
from attribench.data import ImageSet
from attribench.data.writing import write_image_sets
from attribench.errors import DataError


def images(count: int, channels: int, labels: bool) -> ImageSet:
    pixels = torch.randint(0, 256, (count, channels, 3, 4), dtype=torch.uint8)
    names = tuple(f'a/"{number}", b' for number in range(count))
    return ImageSet(pixels, names, torch.arange(count) if labels else None)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_read_again_is_what_was_written(tmp_path: Path, channels: int) -> None:
    sets = {"train": images(12, channels, labels=True), "validation": images(2, channels, labels=False)}
    index = write_image_sets(sets, tmp_path / "new", silent_progress)
    with index.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], int(row["index"])) for row in rows] == [
        *(("train", number) for number in range(12)),
        *(("validation", number) for number in range(2)),
    ]
    assert sorted(row["file"] for row in rows) == [row["file"] for row in rows]
    for row in rows:
        of, number = sets[row["set"]], int(row["index"])
        with Image.open(index.parent / row["file"]) as image:
            pixels = np.asarray(image).reshape(3, 4, channels)
        np.testing.assert_array_equal(pixels.transpose(2, 0, 1), of.images[number])
        assert row["id"] == of.ids[number]
        assert row["label"] == ("" if of.labels is None else str(number))


def test_more_channels_than_a_picture_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5 channels"):
        write_image_sets({"train": images(1, 5, labels=False)}, tmp_path, silent_progress)
