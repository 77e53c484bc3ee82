"""A user's folder of images, of any size, format and number: decoded chunk by chunk into one file that is mapped, not read.

What cannot be decoded is left out and named with its reason. A killed call goes on after the last chunk; the same folder is
decoded once, however often it is asked for, and again as soon as any file's content changes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attribench.computing.progress import Progress, silent_progress
from attribench.data import ImageSet
from attribench.data.decoding import Channels, Pixels, is_grey, open_square, to_pixels
from attribench.data.files import IMAGE_SUFFIXES, find_images, some
from attribench.data.reading import attempt_each
from attribench.errors import DataError
from attribench.store.artifacts import Artifact, ArtifactStore, Staging
from attribench.store.code import ROOT, source_hash
from attribench.store.files import atomic_write

#: Images decoded at a time: what a killed call loses.
CHUNK = 256

#: The files that decide pixels; relative to the package.
_DECISIVE = ("data/folders.py", "data/files.py", "data/decoding.py", "data/reading.py", "data/tiff.py")


@dataclass(frozen=True, eq=False)
class Folder:
    """The images of a folder.

    Attributes:
        images: their ids are paths relative to the folder.
        skipped: pictures that were left out, with the reason.
        others: files that are no pictures.
    """

    images: ImageSet
    skipped: dict[str, str]
    others: tuple[str, ...] = ()


def read_folder(
    folder: Path,
    image_size: int,
    store: ArtifactStore,
    *,
    channels: Channels = "auto",
    progress: Progress = silent_progress,
) -> Folder:
    """Decode a folder, or find it decoded in the store.

    Args:
        folder: searched with its subfolders.
        image_size: the shorter side is resized to so many pixels, and the centre cropped.
        store: where the pixels are kept.
        channels: ``RGB``, ``grey`` (luma), or ``auto``: grey if none of the images has any colour.
        progress: two bars: reading and decoding.

    Returns:
        uint8 images ``(num_images, 1 or 3, image_size, image_size)``, mapped from a file.

    Raises:
        DataError: the folder does not exist, holds no images, or none that can be decoded.
    """
    found = find_images(folder)
    skipped = {_printable(_name(path, folder)): reason for path, reason in found.left_out.items()}
    others = tuple(_printable(_name(path, folder)) for path in found.others)
    named = []
    for path in found.images:
        name = _name(path, folder)
        if _printable(name) == name:
            named.append(path)
        else:
            skipped[_printable(name)] = "its name is not UTF-8"
    if not named:
        detail = f" that can be read; {_listed(skipped)}" if skipped else f" ({', '.join(IMAGE_SUFFIXES)})"
        passed = f"; files that are no pictures: {some(others)}" if others else ""
        raise DataError(f"{folder} holds no images{detail}{passed}.")

    sums = _sums(named, folder, progress)
    names = [_name(path, folder) for path in named]
    listing = hashlib.sha256("\0".join(f"{name}\0{total}" for name, total in zip(names, sums, strict=True)).encode())
    code = source_hash(*(ROOT / name for name in _DECISIVE))
    spec = {"code": code, "files": listing.hexdigest(), "image_size": image_size, "channels": channels}
    artifact = store.find("folders", spec)
    if artifact is None:
        work = store.working_folder("folders", spec)
        _decode(named, names, image_size, channels, work, progress)
        artifact = store.get_or_create("folders", spec, lambda staging: _assemble(staging, work, len(named), channels))
    decoded = artifact.load_json("names")
    skipped.update(artifact.load_json("skipped"))
    if not decoded:
        raise DataError(f"None of the {len(named)} images in {folder} can be read; {_listed(skipped)}.")
    return Folder(ImageSet(_mapped(artifact), tuple(decoded)), skipped, others)


def same_channels(first: Folder, second: Folder) -> tuple[Folder, Folder]:
    """Repeat the grey channel of one folder where the other one has colour."""
    channels = max(first.images.image_shape[0], second.images.image_shape[0])
    return _widened(first, channels), _widened(second, channels)


def _widened(folder: Folder, channels: int) -> Folder:
    images = folder.images
    if images.image_shape[0] == channels:
        return folder
    return replace(folder, images=replace(images, images=images.images.expand(-1, channels, -1, -1)))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _printable(name: str) -> str:
    """The name itself, or with escapes if it is not UTF-8 on the disk."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return ascii(name)
    return name


def _sums(paths: Sequence[Path], folder: Path, progress: Progress) -> list[str]:
    """SHA-256 of every file; one that cannot be read fails again, with its reason, when it is decoded."""

    def total(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    found: list[str] = []
    with progress.task(f"reading {folder.name}", len(paths), "files") as task:
        for begin in range(0, len(paths), CHUNK):
            part = attempt_each(paths[begin : begin + CHUNK], total)
            found += [f"unreadable: {item}" if isinstance(item, DataError) else item for item in part]
            task.advance(len(part))
    return found


def _decode(
    paths: Sequence[Path], names: Sequence[str], image_size: int, channels: Channels, work: Path, progress: Progress
) -> None:
    """Write each chunk's pixels, and which files could not be decoded, into the working folder."""

    def read(path: Path) -> Pixels:
        image = open_square(path, image_size)
        return to_pixels(image.convert("L") if channels == "grey" else image)

    with progress.task(f"decoding {len(paths)} images", len(paths), "images") as task:
        for begin in range(0, len(paths), CHUNK):
            part = paths[begin : begin + CHUNK]
            target = work / f"{begin}.npz"
            if target.exists() and not _intact(target, names[begin : begin + CHUNK]):
                progress.message(f"Damaged: {target}; these images are decoded again.")
                target.unlink()
            if not target.exists():
                results = attempt_each(part, read)
                good = [result for result in results if not isinstance(result, DataError)]
                pixels = np.stack(good) if good else np.zeros((0, 1, 1, 1), np.uint8)
                reasons = [str(result) if isinstance(result, DataError) else "" for result in results]
                buffer = io.BytesIO()
                np.savez(buffer, pixels=pixels, names=np.array(names[begin : begin + CHUNK]), reasons=np.array(reasons))
                atomic_write(target, buffer.getvalue())
            task.advance(len(part))


def _intact(chunk: Path, names: Sequence[str]) -> bool:
    """Whether a chunk of an earlier call can be read, checksums and all, and is of these files."""
    try:
        with np.load(chunk, allow_pickle=False) as content:
            held = {key: content[key] for key in ("pixels", "names", "reasons")}
    except Exception:  # numpy, zipfile and zlib each raise their own
        return False
    return bool(held["names"].tolist() == list(names))


def _assemble(staging: Staging, work: Path, count: int, channels: Channels) -> None:
    """Join the chunks, one after the other."""
    chunks = [work / f"{begin}.npz" for begin in range(0, count, CHUNK)]
    names: list[str] = []
    skipped: dict[str, str] = {}
    grey, shape = channels == "auto", (1, 1, 1)
    for chunk in chunks:
        with np.load(chunk, allow_pickle=False) as content:
            for name, reason in zip(content["names"].tolist(), content["reasons"].tolist(), strict=True):
                if reason:
                    skipped[name] = reason
                else:
                    names.append(name)
            pixels = content["pixels"]
        if len(pixels):
            shape = pixels.shape[1:]
            grey = grey and is_grey(pixels)
    if grey:
        shape = (1, *shape[1:])
    joined = np.lib.format.open_memmap(
        staging.folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(names), *shape)
    )
    begin = 0
    for chunk in chunks:
        with np.load(chunk, allow_pickle=False) as content:
            pixels = content["pixels"]
        if len(pixels):
            joined[begin : begin + len(pixels)] = pixels[:, : shape[0]]
            begin += len(pixels)
    joined.flush()
    staging.save_json("names", names)
    staging.save_json("skipped", skipped)


def _mapped(artifact: Artifact) -> Tensor:
    # Copy on write: torch wants writable memory, and nothing may reach the file.
    return torch.from_numpy(np.load(artifact.folder / "images.npy", mmap_mode="c", allow_pickle=False))


def _listed(skipped: dict[str, str], most: int = 3) -> str:
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:most])
    return shown + (f"; and {len(skipped) - most} more" if len(skipped) > most else "")
