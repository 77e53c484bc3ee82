"""Fashion-MNIST's true on-disk format, with made-up content."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAMES = {"train": "train", "test": "t10k"}


@dataclass
class IdxFiles:
    """A made-up Fashion-MNIST on disk: uint8 images ``(N, 28, 28)`` and labels of both parts."""

    folder: Path
    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.uint8]]


def write_fashion(folder: Path, gzipped: bool, num_train: int = 60, num_test: int = 40) -> IdxFiles:
    """Write the four files; all ten classes, in no order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    counts = {"train": num_train, "test": num_test}
    images = {part: rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for part, count in counts.items()}
    labels = {part: rng.permutation(np.arange(count) % 10).astype(np.uint8) for part, count in counts.items()}
    for part, name in NAMES.items():
        header = struct.pack(">4B3I", 0, 0, 8, 3, counts[part], 28, 28)
        write(folder / f"{name}-images-idx3-ubyte", header + images[part].tobytes(), gzipped)
        header = struct.pack(">4BI", 0, 0, 8, 1, counts[part])
        write(folder / f"{name}-labels-idx1-ubyte", header + labels[part].tobytes(), gzipped)
    return IdxFiles(folder, images, labels)


def write(path: Path, content: bytes, gzipped: bool) -> None:
    if gzipped:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content, compresslevel=1)
    path.write_bytes(content)
