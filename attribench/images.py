"""Image files: finding them in a folder, and decoding them to 8-bit pixels the same way everywhere.

Decoding honours EXIF orientation, puts transparency on white, scales 16-bit grey by its full range, converts CMYK and
palettes to RGB, and takes the first frame of an animation. Embedded colour profiles are ignored. A file that cannot be
read is an error that names it; nothing is passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from attribench.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

# Pictures all the same: a folder of them must not look like a folder with nothing in it.
_FOREIGN_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")

# Named, because Pillow would otherwise go by content, and hand a PostScript file called ".png" to Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")

Channels = Literal["auto", "RGB", "grey"]
Pixels = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")


def natural_key(path: str) -> list[list[tuple[str, int]]]:
    """Sort key for ``/``-separated paths under which ``"img2.png"`` comes before ``"img10.png"``."""
    return [
        [(text.casefold(), int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", part)]
        for part in path.split("/")
    ]


def list_images(folder: Path) -> list[Path]:
    """Return the image files in ``folder`` and its subfolders, in natural order; hidden files and folders are left out.

    Raises:
        DataError: the folder cannot be read, or holds pictures in a format that attribench does not read.
    """
    found, foreign = find_images(folder)
    if foreign:
        names = [path.relative_to(folder).as_posix() for path in foreign]
        raise DataError(
            f"{folder} holds {len(foreign)} pictures in formats attribench does not read "
            f"({_some(names)}): convert them to PNG or JPEG, or take them out."
        )
    return found


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Like :func:`list_images`, with the pictures in formats that attribench does not read apart, as the second list."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    found: list[Path] = []
    foreign: list[Path] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error

    for parent, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back to a folder above would be walked for ever
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        for name in names:
            suffix = Path(name).suffix.lower()
            # macOS leaves "._photo.jpg" beside photo.jpg on foreign disks: not a picture.
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                found.append(Path(parent, name))
            elif suffix in _FOREIGN_SUFFIXES:
                foreign.append(Path(parent, name))

    def key(path: Path) -> tuple[list[list[tuple[str, int]]], str]:
        return natural_key(path.relative_to(folder).as_posix()), str(path)

    return sorted(found, key=key), sorted(foreign, key=key)


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Decode one image file to an upright, opaque RGB image.

    Raises:
        DataError: it cannot be decoded. The message is the reason alone; :func:`read_each` puts the name before it.
    """
    try:
        with Image.open(source, formats=_FORMATS) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened), opened.format)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise DataError("not an image attribench can read, or its beginning is damaged") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"refused as a decompression bomb: {error}") from error
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    except Exception as error:  # a decoder can raise anything on a damaged file
        raise DataError(f"damaged ({type(error).__name__}: {error})") from error


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        # Pillow's own conversions clip or drop bits, depending on its version.
        values = np.asarray(image).astype(np.int64)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            values = np.where(values == transparent, 65535, values)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError("32-bit pixels have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow converts premultiplied grey to nothing but LA
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square and resize it to ``(size, size)``, bilinear with antialiasing.

    Pillow's resizing is integer arithmetic, so the pixels are the same on every machine.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def to_pixels(image: Image.Image) -> Pixels:
    """The image as uint8 ``(channels, height, width)``."""
    array = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def read_image(
    path: Path, *, image_size: int | None = None, channels: Channels = "RGB", name: str | None = None
) -> Pixels:
    """Decode one image file.

    Args:
        path: the file.
        image_size: resize the shorter side to this many pixels and crop the centre; None leaves the size alone.
        channels: ``"RGB"``, ``"grey"`` (luma), or ``"auto"``: grey if the picture has no colour in any pixel.
        name: what an error calls the file, in place of its path.

    Returns:
        uint8 ``(channels, height, width)``.

    Raises:
        DataError: the file cannot be decoded; the message names it.
    """
    images = read_images([path], image_size=image_size, channels=channels, names=None if name is None else [name])
    image: Pixels = images[0]
    return image


def read_images(
    paths: Sequence[Path],
    *,
    image_size: int | None = None,
    channels: Channels = "auto",
    names: Sequence[str] | None = None,
) -> Pixels:
    """Decode image files to one array.

    Args:
        paths: the files, at least one.
        image_size: resize each one's shorter side to this many pixels and crop the centre; None leaves sizes alone, and
            they must then be equal.
        channels: ``"RGB"``, ``"grey"`` (luma), or ``"auto"``: grey if no picture has colour in any pixel, else RGB.
        names: what an error calls the files, in place of their paths.

    Returns:
        uint8 ``(num_images, channels, height, width)``, in the order of ``paths``.

    Raises:
        DataError: some files cannot be decoded, or sizes differ and no ``image_size`` is given; the message names them.
    """
    called = [str(path) for path in paths] if names is None else names

    def read(path: Path) -> Pixels:
        image = open_image(path)
        if image_size is not None:
            image = fit_square(image, image_size)
        return to_pixels(image.convert("L") if channels == "grey" else image)

    images = read_each(paths, read, called)
    for image, name in zip(images, called, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"Images must have one size: {called[0]} is {_size(images[0])} and {name} is {_size(image)} "
                "(width x height). Pass --data.image_size to resize and crop them."
            )
    stacked = np.stack(images)
    return stacked[:, :1].copy() if channels == "auto" and is_grey(stacked) else stacked


def read_each(
    sources: Sequence[T],
    read: Callable[[T], R],
    names: Sequence[str],
    remedy: str = "Replace or remove them.",
) -> list[R]:
    """Apply ``read`` to every source, and report all that fail together.

    Args:
        sources: what ``read`` is given, one at a time, from several threads.
        read: raises DataError with the reason alone as message, or OSError, if it cannot read its source.
        names: what an error calls each source.
        remedy: what an error tells its reader to do.

    Raises:
        DataError: up to three of the failures by name, and how many there are.
    """

    results = attempt_each(sources, read)
    failed = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, DataError)]
    if failed and len(results) == 1:
        raise DataError(f"An image cannot be read ({failed[0]}). {remedy}")
    if failed:
        raise DataError(f"{len(failed)} of {len(results)} images cannot be read ({_some(failed, '; ')}). {remedy}")
    return [result for result in results if not isinstance(result, DataError)]


def attempt_each(sources: Sequence[T], read: Callable[[T], R]) -> list[R | DataError]:
    """Apply ``read`` to every source, several at a time; what cannot be read gives the error, in its place."""

    def attempt(source: T) -> R | DataError:
        try:
            return read(source)
        except DataError as error:
            return error
        except OSError as error:
            return DataError(error.strerror or str(error))

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(attempt, sources))


def is_grey(images: Pixels) -> bool:
    """Whether RGB images ``(num_images, 3, height, width)`` have no colour in any pixel."""
    return all(bool((image[0] == image[1]).all() and (image[1] == image[2]).all()) for image in images)


def _size(image: Pixels) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _some(names: Sequence[str], separator: str = ", ") -> str:
    rest = len(names) - 3
    return separator.join(names[:3]) + (f"{separator}and {rest} more" if rest > 0 else "")
