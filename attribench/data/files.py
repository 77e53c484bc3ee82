"""Finding the image files in a folder: by name, and where the name does not tell, by content."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attribench.errors import DataError

#: A file called so is taken for an image whatever it holds, and reported if it is none.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm", ".pgm", ".ppm",
    ".pnm", ".ico",
)  # fmt: skip

# Pictures all the same: a folder of them must not look like a folder with nothing in it.
_FOREIGN_SUFFIXES = (
    ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".tga", ".psd", ".xcf", ".svg", ".exr", ".hdr", ".dds", ".pfm",
    ".pam",
)  # fmt: skip
# Cameras' raw files: mostly TIFF by content, with a thumbnail where the picture is expected.
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".orf", ".rw2", ".raf", ".pef", ".3fr")

# The first bytes of files that can be read. Text may begin with "BM" or "P5": more of these headers is looked at.
_READABLE = re.compile(
    rb"""\xff\xd8\xff                                           # JPEG
    | \x89PNG\r\n\x1a\n
    | GIF8[79]a
    | RIFF....WEBP
    | BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0           # BMP, with the size of its second header
    | II[*+]\0 | MM\0[*+]                                       # TIFF, BigTIFF
    | P[1-6](?:\s|\#[^\n]*\n)+\d                                # PBM, PGM, PPM
    | \0\0\x01\0[\x01-\xff]\0...\0                             # ICO
    """,
    re.VERBOSE | re.DOTALL,
)
_FOREIGN = re.compile(
    rb"....ftyp(?:hei|hev|mif1|msf1|avi[fs])|\0\0\0\x0c(?:JXL |jP  )\r\n\x87\n|\xff\x4f\xff\x51|8BPS|gimp\ xcf|v/1\x01"
    rb"|DDS |qoif|P[7Ff]\n",
    re.DOTALL,
)
_HEAD = 128  # bytes: a comment may stand before the numbers of a PGM header


@dataclass(frozen=True)
class FoundFiles:
    """What a folder and its subfolders hold, each in natural order; hidden files and folders are passed over.

    Attributes:
        images: image files to be decoded.
        left_out: what may be a picture and cannot be taken, with the reason: foreign formats, folders without
            permission, files that are no regular files.
        others: files that are no pictures.
    """

    images: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)


def natural_key(path: str) -> list[list[tuple[str, int]]]:
    """Sort key for ``/``-separated paths under which ``"img2.png"`` comes before ``"img10.png"``."""
    return [
        [(text.casefold(), int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", part)]
        for part in path.split("/")
    ]


def list_images(folder: Path) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, in natural order; hidden files and folders are left out.

    Raises:
        DataError: the folder cannot be read, or holds pictures that cannot be; the message names up to three.
    """
    found = find_images(folder)
    if found.left_out:
        names = [f"{path.relative_to(folder).as_posix()}: {reason}" for path, reason in found.left_out.items()]
        raise DataError(
            f"{folder} holds {len(names)} pictures or folders that attribench cannot read ({some(names, '; ')}): convert "
            "them to PNG or JPEG, make them readable, or take them out."
        )
    return found.images


def find_images(folder: Path) -> FoundFiles:
    """Sort the files in ``folder`` and its subfolders into images, pictures that cannot be read, and others.

    A name with an image's suffix is an image; any other file is one if it begins like one.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    images: list[Path] = []
    others: list[Path] = []
    left_out: dict[Path, str] = {}
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error
        left_out[Path(error.filename)] = f"the folder cannot be read: {error.strerror}"

    for parent, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above would be walked for ever
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        for name in names:
            # macOS leaves "._photo.jpg" beside photo.jpg on foreign disks: not a picture.
            if name.startswith("."):
                continue
            path = Path(parent, name)
            try:
                readable, reason = _look_at(path)
            except OSError as error:
                readable, reason = False, error.strerror or str(error)
            if readable:
                images.append(path)
            elif reason:
                left_out[path] = reason
            else:
                others.append(path)

    def key(path: Path) -> tuple[list[list[tuple[str, int]]], str]:
        return natural_key(path.relative_to(folder).as_posix()), str(path)

    return FoundFiles(
        sorted(images, key=key), {path: left_out[path] for path in sorted(left_out, key=key)}, sorted(others, key=key)
    )


def _look_at(path: Path) -> tuple[bool, str]:
    """Whether a file is an image, and if it is a picture that cannot be taken, why."""
    # Asked before anything is opened: opening a named pipe waits for someone to write into it.
    if not stat.S_ISREG(path.stat().st_mode):
        return False, "not a regular file (a pipe, socket or device)"
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True, ""
    head = b""
    if suffix not in _RAW_SUFFIXES:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    if _READABLE.match(head):
        return True, ""
    foreign = suffix in (*_FOREIGN_SUFFIXES, *_RAW_SUFFIXES) or _FOREIGN.match(head)
    return False, "a format attribench does not read; convert it to PNG or JPEG" if foreign else ""


def some(names: Sequence[str], separator: str = ", ") -> str:
    """The first three, and how many more there are."""
    rest = len(names) - 3
    return separator.join(names[:3]) + (f"{separator}and {rest} more" if rest > 0 else "")
