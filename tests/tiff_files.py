"""TIFF files written byte by byte after the standard, in layouts that imaging libraries do not write."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from numpy.typing import NDArray

_SHORT, _LONG = 3, 4
_SIZE = {_SHORT: 2, _LONG: 4}
_CODE = {_SHORT: "H", _LONG: "I"}
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def tiff(
    values: NDArray[Any],
    bits: int,
    photometric: int | None,
    *,
    order: str = "<",
    deflate: bool = False,
    planes: bool = False,
    sample_format: int = 1,
    reverse_bits: bool = False,
    extra: tuple[int, ...] = (),
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """A TIFF of one strip a plane.

    Args:
        values: ``(height, width, samples)``.
        bits: of a sample; those that are no whole bytes are packed.
        photometric: tag 262; None leaves it out.
        order: ``<`` or ``>``.
        deflate: compress the strips.
        planes: one plane after the other, in place of pixel by pixel.
        sample_format: 1 unsigned, 2 signed, 3 floating point.
        reverse_bits: FillOrder 2.
        extra: tag 338, what samples beyond the colours are.
        tags: more SHORT tags.
    """
    height, width, samples = values.shape
    parts = [values[..., i] for i in range(samples)] if planes else [values.reshape(height, -1)]
    strips = [b"".join(_row(row, bits, order, sample_format) for row in part) for part in parts]
    if reverse_bits:
        strips = [strip.translate(_REVERSED) for strip in strips]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    entries: dict[int, tuple[int, list[int]]] = {
        256: (_LONG, [width]), 257: (_LONG, [height]), 258: (_SHORT, [bits] * samples),
        259: (_SHORT, [8 if deflate else 1]), 266: (_SHORT, [2 if reverse_bits else 1]),
        277: (_SHORT, [samples]), 278: (_LONG, [height]), 279: (_LONG, [len(strip) for strip in strips]),
        284: (_SHORT, [2 if planes else 1]), 339: (_SHORT, [sample_format] * samples),
    }  # fmt: skip
    if photometric is not None:
        entries[262] = (_SHORT, [photometric])
    if extra:
        entries[338] = (_SHORT, list(extra))
    entries.update({tag: (_SHORT, numbers) for tag, numbers in (tags or {}).items()})
    entries[273] = (_LONG, [0] * len(strips))
    data_at = 8 + 2 + 12 * len(entries) + 4
    position = data_at + sum(
        _SIZE[kind] * len(numbers) for kind, numbers in entries.values() if _SIZE[kind] * len(numbers) > 4
    )
    for number, strip in enumerate(strips):
        entries[273][1][number] = position
        position += len(strip)
    directory, data = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        body = struct.pack(f"{order}{len(numbers)}{_CODE[kind]}", *numbers)
        if len(body) > 4:
            data, body = data + body, struct.pack(f"{order}I", data_at + len(data))
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + body.ljust(4, b"\0")
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return header + directory + b"\0\0\0\0" + data + b"".join(strips)


def _row(row: NDArray[Any], bits: int, order: str, sample_format: int) -> bytes:
    if bits % 8 == 0:
        return row.astype(f"{order}{' uif'[sample_format]}{bits // 8}").tobytes()
    text = "".join(f"{int(value):0{bits}b}" for value in row)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
