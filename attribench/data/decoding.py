"""Image files decoded to 8-bit pixels the same way everywhere.

Decoding honours EXIF orientation, puts transparency on white, scales grey of 9 to 16 bits by its full range, converts CMYK
and palettes to RGB, and takes the first frame of an animation. Embedded colour profiles are ignored. A file that cannot be
read, or whose values have no known meaning, is an error that names it; nothing is passed over.

Memory: files are decoded by several threads that together hold about :data:`MEMORY` bytes of pixels; a picture that is
larger by itself is decoded alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from attribench.data import tiff
from attribench.data.reading import MemoryBudget, read_each
from attribench.errors import DataError

# Named, because Pillow would otherwise go by content, and hand a PostScript file called ".png" to Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "ICO")

#: Bytes of decoded pixels that all threads hold together.
MEMORY = 2**29

# JPEGs of more pixels are decoded at a half, quarter or eighth, never to less than four times the size asked for.
_LARGE_JPEG = 2**26

# Pixels that are converted at a time.
_STRIP = 2**20

Channels = Literal["auto", "RGB", "grey"]
Pixels = NDArray[np.uint8]


_MEMORY = MemoryBudget(MEMORY)


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Decode one image file to an upright, opaque RGB image.

    Raises:
        DataError: it cannot be decoded. The message is the reason alone; :func:`read_each` puts the name before it.
    """
    with _decoded(source) as (image, levels):
        return _to_rgb(image, levels)


def open_square(source: Path | BinaryIO, size: int) -> Image.Image:
    """``fit_square(open_image(source), size)``, pixel by pixel, with little memory beside that of the decoded file.

    A JPEG of more than 67 megapixels is decoded at a fraction of its size, and may differ by rounding.

    Raises:
        DataError: like :func:`open_image`.
    """
    with _decoded(source, sufficient=4 * size) as (image, levels):
        if image.width * image.height <= _STRIP or image.width <= size:
            return fit_square(_to_rgb(image, levels), size)
        # Pillow resizes rows first and columns then, with whole numbers between: rows may come strip by strip.
        left, top, side = _square(image)
        narrow = Image.new("RGB", (size, image.height))
        rows = max(1, _STRIP // image.width)
        for begin in range(0, image.height, rows):
            strip = _to_rgb(image.crop((0, begin, image.width, min(begin + rows, image.height))), levels)
            box = (left, 0, left + side, strip.height)
            narrow.paste(strip.resize((size, strip.height), Image.Resampling.BILINEAR, box=box), (0, begin))
        return narrow.resize((size, size), Image.Resampling.BILINEAR, box=(0, top, size, top + side))


def square_of(image: Image.Image, size: int) -> Image.Image:
    """A picture that is decoded already, upright, opaque, in RGB, cropped and resized like :func:`open_square`.

    Raises:
        DataError: its values have no known range.
    """
    return fit_square(_to_rgb(ImageOps.exif_transpose(image), (0, 65535)), size)


@contextmanager
def _decoded(source: Path | BinaryIO, sufficient: int | None = None) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """The upright image in the file's own mode, and the values of black and white in grey of more than 8 bits.

    Args:
        source: the file.
        sufficient: pixels of the shorter side that are enough, if the image is large.
    """
    try:
        with _identified(source) as opened:
            levels = tiff.levels(opened.tag_v2) if isinstance(opened, TiffImageFile) else (0, 65535)
            if isinstance(opened, PngImageFile):
                _scale_transparent_value(opened)
            if sufficient and opened.width * opened.height > _LARGE_JPEG:
                opened.draft(None, (sufficient, sufficient))  # only JPEGs can
            with _MEMORY.reserved(4 * opened.width * opened.height):
                ImageOps.exif_transpose(opened, in_place=True)
                yield opened, levels
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"refused as a decompression bomb: {error}") from error
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    except Exception as error:  # a decoder can raise anything on a damaged file
        raise DataError(f"damaged ({type(error).__name__}: {error})") from error


def _identified(source: Path | BinaryIO) -> ImageFile:
    """The file, opened but not decoded, if its values have a known meaning."""
    try:
        opened = Image.open(source, formats=_FORMATS)
    except UnidentifiedImageError as error:
        tags = tiff.read_tags(source)
        reason = "not an image attribench can read, or its beginning is damaged"
        raise DataError(reason if tags is None else tiff.refusal(tags) or tiff.described(tags)) from error
    if isinstance(opened, TiffImageFile) and (reason := tiff.refusal(opened.tag_v2)):
        opened.close()
        raise DataError(reason)
    return opened


def _scale_transparent_value(image: PngImageFile) -> None:
    """Pillow scales grey of 2 and 4 bits to 8, and 16-bit colour, but not the value that is marked as transparent."""
    key, layout = image.info.get("transparency"), image.tile[0][3] if image.tile else ""
    if isinstance(key, int) and layout in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if layout == "L;2" else 17)
    elif key is not None and layout == "RGB;16B":
        raise DataError("16-bit colour with one transparent colour (tRNS); save it with 8 bits or an alpha channel")


def _to_rgb(image: Image.Image, levels: tuple[int, int]) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversions clip or drop bits, depending on its version.
        values = np.asarray(image).astype(np.int64)
        black, white = levels
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            values = np.where(values == transparent, white, values)
        grey = np.rint((values - black) * 255 / (white - black)).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError("32-bit pixels have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow converts premultiplied grey to nothing but LA
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image) -> tuple[int, int, int]:
    """Left, top and side of the central square."""
    side = min(image.size)
    return (image.width - side) // 2, (image.height - side) // 2, side


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square and resize it to ``(size, size)``, bilinear with antialiasing.

    Pillow's resizing is integer arithmetic, so the pixels are the same on every machine.
    """
    left, top, side = _square(image)
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
        image = open_image(path) if image_size is None else open_square(path, image_size)
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


def is_grey(images: Pixels) -> bool:
    """Whether RGB images ``(num_images, 3, height, width)`` have no colour in any pixel."""
    return all(bool((image[0] == image[1]).all() and (image[1] == image[2]).all()) for image in images)


def _size(image: Pixels) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
