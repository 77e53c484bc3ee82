"""Groups of train images: by contributor, or nearly equal ones."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attribench.data.files import some
from attribench.errors import DataError

#: Side of the small images that near duplicates are found on.
_SMALL = 8

#: Small images that are compared with all others at a time.
_BLOCK = 1024

#: With more train images, comparing all with all takes too long.
MOST_COMPARED = 50_000


def by_subfolder(ids: Sequence[str]) -> list[str]:
    """The first folder of each path, ``.`` for files beside the folders."""
    return [name.split("/", 1)[0] if "/" in name else "." for name in ids]


def from_csv(path: Path, ids: Sequence[str]) -> list[str]:
    """The contributor of each train image from a CSV file with two columns, ``train`` and ``contributor``.

    Raises:
        DataError: the file cannot be read, lacks a column, names two contributors of one train image, or none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"train", "contributor"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path} must have the columns train and contributor.")
            known: dict[str, str] = {}
            for row in reader:
                name, contributor = row["train"], row["contributor"]
                if known.setdefault(name, contributor) != contributor:
                    raise DataError(
                        f"{path} names two contributors of {name}: {known[name]} and {contributor} (line {reader.line_num})."
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}.") from error
    missing = [name for name in ids if not known.get(name)]
    if missing:
        raise DataError(f"{path} names no contributor of {len(missing)} train images: {some(missing)}.")
    return [known[name] for name in ids]


def near_duplicates(images: Tensor, agreement: float = 0.98) -> list[list[int]]:
    """Clusters of images that are nearly equal: the numbers of those in clusters of two or more.

    Images are averaged to 8×8 pixels and compared by Pearson's correlation over them, each channel by its own mean: what
    tint they share makes pictures no duplicates. Two that reach ``agreement`` are in one cluster, and so is what is linked
    through others. A change of brightness or contrast does not matter, a mirror image does. Images of one colour
    throughout are equal if their colours are.

    Args:
        images: uint8 ``(num_images, C, H, W)``.
        agreement: in (0, 1].

    Returns:
        Clusters in the order of their first images.
    """
    if len(images) < 2:
        return []
    small = torch.nn.functional.adaptive_avg_pool2d(images.float(), _SMALL)
    centred = (small - small.mean(dim=(2, 3), keepdim=True)).flatten(1)
    length = centred.norm(dim=1, keepdim=True)
    plain = (length <= 1e-3).flatten()
    unit = centred / torch.where(length > 1e-3, length, 1.0)
    parent = list(range(len(images)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(first: int, second: int) -> None:
        one, other = sorted((root(first), root(second)))
        parent[other] = one

    for begin in range(0, len(images), _BLOCK):
        rows = unit[begin : begin + _BLOCK]
        # An image has a correlation of 1 − 1e-6 with itself, in float32.
        for row, column in (rows @ unit[begin:].T >= agreement - 1e-6).nonzero().tolist():
            if column > row:
                join(begin + row, begin + column)
    colours: dict[bytes, int] = {}
    for number in plain.nonzero().flatten().tolist():
        join(colours.setdefault(small[number].round().numpy().tobytes(), number), number)
    clusters: dict[int, list[int]] = {}
    for number in range(len(images)):
        clusters.setdefault(root(number), []).append(number)
    return [members for members in clusters.values() if len(members) > 1]
