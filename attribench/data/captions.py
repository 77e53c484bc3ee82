"""Captions of the images in a folder: from a file of names and captions, or from a text file beside each image."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attribench.errors import DataError

#: What files and items call a caption, and an image's file.
CAPTION_KEYS = ("caption", "text", "prompt")
_NAME_KEYS = ("file_name", "file", "filename", "image", "path", "name")

#: Where Hugging Face's ``imagefolder`` keeps what belongs to a folder's images.
_METADATA = ("metadata.jsonl", "metadata.csv")

_SIDECAR = ".txt"

#: A caption for each image, None for one without.
Captions = tuple[str | None, ...]


def folder_captions(
    folder: Path, names: Sequence[str], file: Path | None = None, of_folder: bool = True
) -> tuple[Captions | None, set[str]]:
    """The captions of a folder's images.

    A file that is named comes first, then ``metadata.jsonl`` or ``metadata.csv`` in the folder or its subfolders, then text
    files with the images' names.

    Args:
        folder: that the images lie in.
        names: their paths in it.
        file: a CSV file with a header, or JSONL: names of images and captions. Names are paths from the file's own folder,
            or from ``folder``.
        of_folder: whether ``file`` is about these images at all. If not, it counts where a path from its own folder leads to
            one of them, and is passed over otherwise.

    Returns:
        One an image, or None where there are no captions at all; and the files in ``folder`` that captions are in, by their
        paths in it.

    Raises:
        DataError: a file cannot be read, names no image, or has two captions for one.
    """
    images = {_plain(folder / name): name for name in names}

    def taken(known: Mapping[str, str], files: Iterable[Path]) -> tuple[Captions, set[str]]:
        inside = {_plain(path) for path in files}
        return tuple(map(known.get, names)), {
            path.relative_to(_plain(folder)).as_posix() for path in inside if _plain(folder) in path.parents
        }

    if file is not None:
        known = _listed(file, (file.parent, folder) if of_folder else (file.parent,), images)
        if known or of_folder:
            return taken(known, [file])
    beside = [path for name in _METADATA for path in sorted(folder.rglob(name))]
    captioned = [path for path in beside if any(key in row for row in _rows(path) for key in CAPTION_KEYS)]
    if captioned:
        known = {}
        for path in captioned:
            known |= _listed(path, (path.parent,), images)
        return taken(known, captioned)
    sidecars = {name: path for name in names if (path := (folder / name).with_suffix(_SIDECAR)).is_file()}
    if not sidecars:
        return None, set()
    return taken({name: _text(path) for name, path in sidecars.items()}, sidecars.values())


def given_captions(captions: Mapping[str, str] | Sequence[str | None], names: Sequence[str], what: str) -> Captions:
    """Captions that somebody holds in memory: by name, or one an image in their order.

    Raises:
        DataError: another number, or something that is no text.
    """
    if isinstance(captions, Mapping):
        found: Captions = tuple(captions.get(name) for name in names)
    else:
        found = tuple(captions)
        if len(found) != len(names):
            raise DataError(f"{len(found)} captions for {len(names)} {what}.")
    odd = next((caption for caption in found if not isinstance(caption, str | None)), None)
    if odd is not None:
        raise DataError(f"A caption of the {what} is a {type(odd).__name__}, no text.")
    return found


def _listed(file: Path, places: Sequence[Path], images: Mapping[Path, str]) -> dict[str, str]:
    """The captions in a file, by the name of their image.

    Args:
        places: that paths in the file may begin at.
        images: place → name.
    """
    found: dict[str, str] = {}
    for row in _rows(file):
        path = next((row[key] for key in _NAME_KEYS if row.get(key)), None)
        if path is None:
            raise DataError(
                f"{file}: a row without the name of an image (file_name); it has {', '.join(row) or 'nothing'}."
            )
        key = _caption_key(row)
        image = next((images[at] for place in places if (at := _plain(place / str(path))) in images), None)
        if image is None or key is None or row[key] is None:
            continue
        if not isinstance(row[key], str):
            raise DataError(f"{file}: the caption of {path} is no text.")
        if found.setdefault(image, row[key]) != row[key]:
            raise DataError(f"{file} has two captions for {path}.")
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    """What a file says of each image.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """
    try:
        content = file.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no file of captions {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    if file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(content, newline=""))
        # An empty cell says nothing; so does one that is not there.
        return [{key: value or None for key, value in row.items() if key is not None} for row in reader]
    if file.suffix not in (".jsonl", ".ndjson"):
        raise DataError(f"{file}: captions are read from .csv (with a header) and .jsonl: file_name and caption.")
    return list(_json_lines(file, content))


def _json_lines(file: Path, content: str) -> Iterator[dict[str, Any]]:
    # Not splitlines, for which lines end at U+2028 and others too, which texts may hold.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: no JSON object.")
        yield row


def _caption_key(row: Mapping[str, Any]) -> str | None:
    """What a row calls its caption: a usual name, or that of its only other column."""
    usual = next((key for key in CAPTION_KEYS if key in row), None)
    others = [key for key in row if key not in _NAME_KEYS]
    return usual or (others[0] if len(others) == 1 else None)


def _plain(path: Path) -> Path:
    """Absolute, without ``..``; links are what they are called."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow links


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
