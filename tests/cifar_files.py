"""CIFAR-10's true on-disk format, with made-up content."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10


@dataclass
class CifarFiles:
    """A made-up CIFAR-10 on disk. Rows are (N, 3072): 1024 red values, then green, then blue."""

    root: Path
    rows: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]

    def images(self, part: str) -> NDArray[np.uint8]:
        return self.rows[part].reshape(-1, 3, 32, 32)

    def pack(self, patch: pytest.MonkeyPatch) -> Path:
        """Replace the folder by the archive that torchvision would download."""
        archive, folder = self.root / CIFAR10.filename, self.root / CIFAR10.base_folder
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            tar.add(folder, CIFAR10.base_folder)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        patch.setattr(CIFAR10, "tgz_md5", _md5(archive))
        return archive


def write_cifar(
    root: Path, train_labels: NDArray[np.int64], test_labels: NDArray[np.int64], patch: pytest.MonkeyPatch
) -> CifarFiles:
    """Write made-up images with these labels as CIFAR-10's files, and make their MD5 sums the official ones."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = {"train": train_labels, "test": test_labels}
    rows = {part: rng.integers(0, 256, (len(found), 3072), dtype=np.uint8) for part, found in labels.items()}

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return _md5(folder / name)

    def batch(name: str, rows: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[str]:
        files = [f"{i}.png" for i in range(len(labels))]
        content = {"batch_label": name, "labels": labels.tolist(), "data": rows, "filenames": files}
        return [name, write(name, content)]

    pieces = zip(np.array_split(rows["train"], 5), np.array_split(train_labels, 5), strict=True)
    patch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}", *piece) for i, piece in enumerate(pieces, 1)])
    patch.setattr(CIFAR10, "test_list", [batch("test_batch", rows["test"], test_labels)])
    meta = write("batches.meta", {"label_names": list("abcdefghij"), "num_cases_per_batch": 10000, "num_vis": 3072})
    patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return CifarFiles(root, rows, labels)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
