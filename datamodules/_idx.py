"""The idx format of MNIST-like data sets: a magic number, the sizes, then the values; often gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attribench.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, num_axes: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an idx file, gzipped if the name ends in ``.gz``.

    Args:
        path: the file.
        num_axes: how many axes the array must have: 3 for images, 1 for labels.

    Raises:
        DataError: it cannot be read, is cut short, or is something else; the message names the file.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): take it again.") from error
    begin = 4 * (1 + num_axes)
    if content[:4] != bytes((0, 0, _UNSIGNED_BYTE, num_axes)) or len(content) < begin:
        raise DataError(
            f"{path} is no idx file of unsigned bytes with {num_axes} axes: it begins {content[:4].hex(' ')}."
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:begin], dtype=">u4"))
    if len(content) - begin != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - begin} values where its header says {' × '.join(map(str, shape))}: "
            "it is cut short or damaged. Take it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=begin).reshape(shape)
