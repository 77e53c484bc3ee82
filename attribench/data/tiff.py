"""What the values in a TIFF file mean: its tags are honoured, or the file is refused by their name.

Pillow reads many layouts and tells no one where it passes over a tag: here is what must be known beside its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import ImageFileDirectory_v2
from PIL.TiffTags import lookup

_WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR = 256, 258, 259, 262, 266, 277, 284
_COLOR_MAP, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _SUBSAMPLING = 320, 338, 339, 530
_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 2, 3, 5, 6
_OLD_JPEG = 6

_PREFIXES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FORMATS = {2: "signed", 3: "floating point", 4: "undefined", 5: "complex", 6: "complex"}

Tags = Mapping[int, Any]


def read_tags(source: Path | BinaryIO) -> Tags | None:
    """The tags of the first picture, also of a file that Pillow cannot open; None if it is no TIFF, or has none."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return read_tags(file)
    source.seek(0)
    header = source.read(8)
    if header[:4] not in _PREFIXES:
        return None
    if b"+" in header[:4]:  # BigTIFF
        header += source.read(8)
    tags = ImageFileDirectory_v2(header)
    source.seek(tags.next)
    tags.load(source)
    return tags if _WIDTH in tags else None


def refusal(tags: Tags) -> str:
    """Why the values have no known meaning, or one that Pillow does not see; empty if there is no such reason."""
    photometric, bits = tags.get(_PHOTOMETRIC), max(tags.get(_BITS, (1,)))
    raw = tags.get(_COMPRESSION, 1) == 1
    if photometric is None and tags.get(_COMPRESSION) != _OLD_JPEG:
        return "it does not say what its values mean (no PhotometricInterpretation)"
    formats = set(tags.get(_SAMPLE_FORMAT, (1,))) - {1}
    if formats or bits > 16:
        what = f"SampleFormat {min(formats)}, {_FORMATS.get(min(formats), 'unknown')}" if formats else "BitsPerSample"
        return f"{bits}-bit pixels have no agreed range ({what}); save it with 8 or 16 unsigned bits"
    if tags.get(_PLANAR, 1) == 2 and tags.get(_SAMPLES, 1) > 1 and _planes_are_misread(tags, raw, bits):
        return f"its {bits}-bit samples lie in separate planes (PlanarConfiguration 2); save them pixel by pixel"
    if photometric == _WHITE_IS_ZERO and bits == 8 and raw and tags.get(_FILL_ORDER) == 2:
        return "its bits are stored in reverse order (FillOrder 2); save it with FillOrder 1"
    if photometric == _YCBCR and raw and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        return "uncompressed YCbCr with fewer colour samples (YCbCrSubSampling); save it as RGB"
    if photometric == _PALETTE and 0 < max(tags.get(_COLOR_MAP, (0,))) < 256:
        return "its colours have 8 bits in place of 16 (ColorMap); save it as RGB"
    return ""


def _planes_are_misread(tags: Tags, raw: bool, bits: int) -> bool:
    photometric, extra = tags.get(_PHOTOMETRIC), set(tags.get(_EXTRA_SAMPLES, ()))
    if raw:
        return photometric not in (_RGB, _CMYK) or bits > 8 or 1 in extra
    return photometric not in (_RGB, _CMYK, _YCBCR) and extra != {0}


def levels(tags: Tags) -> tuple[int, int]:
    """The values of black and white in grey of more than 8 bits."""
    white = 2 ** max(tags.get(_BITS, (1,))) - 1
    return (white, 0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, white)


def described(tags: Tags) -> str:
    """The layout in the words of the TIFF standard, for a file that Pillow does not know how to read."""
    number = tags.get(_PHOTOMETRIC, -1)
    names = {value: name for name, value in lookup(_PHOTOMETRIC).enum.items()}
    bits = ", ".join(str(count) for count in tags.get(_BITS, (1,)))
    order = "big" if getattr(tags, "prefix", b"II") == b"MM" else "little"
    return (
        f"a TIFF of a kind attribench does not read (PhotometricInterpretation {number} {names.get(number, '')}, "
        f"BitsPerSample {bits}, Compression {tags.get(_COMPRESSION, 1)}, {order}-endian); save it as RGB or grey with 8 bits"
    )
