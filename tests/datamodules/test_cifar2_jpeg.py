from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attribench.datamodules.cifar2_jpeg import Cifar2Jpeg
from attribench.datamodules.image_folder import ImageFolder
from attribench.errors import DataError, UsageError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "cifar2"


def write(root: Path, classes: tuple[str, ...] = ("automobile", "horse"), count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                picture.save(root / part / name / f"{number:04d}.jpg")
    return root


def test_the_images_are_those_of_the_folder_in_class_proportions(tmp_path: Path) -> None:
    root = write(tmp_path / "any name")
    data = Cifar2Jpeg(root, num_train=8, num_queries=4, image_size=16)
    assert (data.label, data.licence, data.galleries, data.stratify) == ("cifar2-jpeg", None, False, True)
    folder = ImageFolder(root, image_size=16, channels="RGB", num_train=8, num_queries=4)
    assert data.train.content_hash == folder.train.content_hash
    assert data.validation.content_hash == folder.validation.content_hash
    assert data.train.labels is not None
    assert sorted(data.train.labels.tolist()) == [0] * 4 + [1] * 4
    assert data.train.image_shape == (3, 16, 16)


def test_the_folder_must_be_named() -> None:
    with pytest.raises(UsageError, match=r"--data\.root is needed .* train/automobile"):
        Cifar2Jpeg()


@pytest.mark.parametrize("classes", [("automobile", "cat"), ("automobile", "cat", "horse"), ("automobile",)])
def test_other_classes_are_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    root = write(tmp_path, classes)
    with pytest.raises(
        DataError, match="train must hold JPEG files in the subfolders automobile and horse, and no others"
    ):
        Cifar2Jpeg(root, num_train=4, num_queries=4).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 13}, "num_train is 13, but there are only 12 images"),
        ({"num_queries": 13}, "num_queries is 13, but there are only 12 images"),
        ({"num_queries": 1}, "num_queries must be at least 2"),
        ({"image_size": 33}, "image_size must be between 1 and 32"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    root = write(tmp_path)
    with pytest.raises(UsageError, match=message):
        Cifar2Jpeg(root, **{"num_train": 8, "num_queries": 4, **options}).load()


def test_the_photos_themselves() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"needs the photos (no {SHARED})")
    data = Cifar2Jpeg(SHARED, num_train=20, num_queries=10, image_size=16)
    assert (len(data.train), len(data.validation)) == (20, 10)
