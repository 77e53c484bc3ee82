from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attribench.datamodules.image_folder import ImageFolder
from attribench.errors import DataError, UsageError

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "cifar2"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes one small picture for each name, no two alike, and returns the root."""

    def make(*names: str, size: tuple[int, int] = (6, 6), grey: bool = False) -> Path:
        root = tmp_path / "my photos"
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
            seed = list(name.encode())
            Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
        return root

    return make


def test_flat_folders(write: Write) -> None:
    data = ImageFolder(write("train/10.png", "train/9.png", "test/q.bmp"))
    assert data.train.ids == ("train/9.png", "train/10.png")
    assert data.validation.ids == ("test/q.bmp",)
    for images in (data.train, data.validation):
        assert images.labels is None
        for name, pixels in zip(images.ids, images.images, strict=True):
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(data.root / name)))
    assert (data.label, data.stratify) == ("my photos", False)


def test_first_level_subfolders_are_classes_in_natural_order(write: Write) -> None:
    names = [f"train/{c}/{deep}{i}.png" for c in ("class10", "class9") for i in range(2) for deep in ("", "x/")]
    data = ImageFolder(write(*names, "test/class10/a.png", "test/class9/a.png"))
    assert data.stratify is True
    assert data.train.labels is not None
    assert data.validation.labels is not None
    assert [
        (name.split("/")[1], label) for name, label in zip(data.train.ids, data.train.labels.tolist(), strict=True)
    ] == ([("class9", 0)] * 4 + [("class10", 1)] * 4)
    assert data.validation.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("train/a/1.png", "train/b/1.png", "test/1.png"),
        ("train/a/1.png", "train/b/1.png", "train/2.png", "test/a/1.png"),
        ("train/a/1.png", "train/a/2.png", "test/a/1.png"),
    ],
    ids=["queries without classes", "a loose train image", "one class"],
)
def test_no_labels_where_classes_are_not_plain(write: Write, names: tuple[str, ...]) -> None:
    data = ImageFolder(write(*names))
    assert data.train.labels is None
    assert data.validation.labels is None
    assert data.stratify is False


def test_a_class_with_one_train_image_cannot_be_stratified(write: Write) -> None:
    data = ImageFolder(write("train/a/1.png", "train/a/2.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"))
    assert data.train.labels is not None
    assert data.stratify is False


def test_a_part_is_chosen_in_class_proportions_the_same_every_time(write: Write) -> None:
    names = [f"train/a/{i}.png" for i in range(30)] + [f"train/b/{i}.png" for i in range(10)]
    root = write(*names, *(f"test/{c}/{i}.png" for c in "ab" for i in range(5)))
    data = ImageFolder(root, num_train=8, num_queries=4)
    assert Counter(name.split("/")[1] for name in data.train.ids) == {"a": 6, "b": 2}
    assert Counter(name.split("/")[1] for name in data.validation.ids) == {"a": 2, "b": 2}
    assert ImageFolder(root, num_train=8, num_queries=4).train.content_hash == data.train.content_hash
    # Too few for both classes: chosen all the same.
    assert len(ImageFolder(root, num_train=1).train) == 1


def test_only_the_chosen_images_are_decoded(write: Write) -> None:
    root = write(*(f"train/{i}.png" for i in range(10)), "test/q.png")
    chosen = ImageFolder(root, num_train=3).train.ids
    for i in range(10):
        if f"train/{i}.png" not in chosen:
            (root / f"train/{i}.png").write_bytes(b"not an image")
    assert ImageFolder(root, num_train=3).train.ids == chosen


def test_grey_is_found_out_over_both_folders(write: Write) -> None:
    root = write("train/1.png", "train/2.png", "test/1.png", grey=True)
    assert ImageFolder(root).train.image_shape == (1, 6, 6)
    assert ImageFolder(root).train.content_hash == ImageFolder(root, channels="grey").train.content_hash
    assert ImageFolder(root, channels="RGB").train.image_shape == (3, 6, 6)
    write("test/2.png")
    assert ImageFolder(root).train.image_shape == (3, 6, 6)


def test_image_size_resizes_and_crops(write: Write) -> None:
    write("train/1.png", size=(9, 12))
    root = write("test/1.png", size=(20, 7))
    assert ImageFolder(root, image_size=4).validation.image_shape == (3, 4, 4)
    with pytest.raises(DataError, match=r"train/1\.png is 9x12 and test/1\.png is 20x7 .*--data\.image_size"):
        ImageFolder(root).load()


def test_a_changed_picture_changes_the_content_hash(write: Write) -> None:
    root = write("train/1.png", "train/2.png", "test/1.png")
    before = ImageFolder(root).train.content_hash
    (root / "train/1.png").write_bytes((root / "train/2.png").read_bytes())
    assert ImageFolder(root).train.content_hash != before


def test_what_is_missing_is_said(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder .*nowhere: put the train images into .*train"):
        ImageFolder(tmp_path / "nowhere").load()
    root = write("train/1.png")
    with pytest.raises(DataError, match="my photos has no folder test: put"):
        ImageFolder(root).load()
    (root / "test").mkdir()
    (root / "test" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"test holds no images \(\.jpg"):
        ImageFolder(root).load()


def test_content_decides_where_the_name_does_not(write: Write) -> None:
    root = write("train/a.png", "test/b.png")
    (root / "train" / "a.png").rename(root / "train" / "no-suffix")
    (root / "train" / "notes.txt").write_text("no picture")
    assert ImageFolder(root).train.ids == ("train/no-suffix",)


def test_a_pipe_is_named_and_not_waited_for(write: Write) -> None:
    root = write("train/a.png", "test/b.png")
    os.mkfifo(root / "train" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: not a regular file"):
        _ = ImageFolder(root).train


def test_unreadable_images_are_named_and_never_skipped(write: Write) -> None:
    root = write(*(f"train/{i}.png" for i in range(8)), "test/q.png")
    for i in range(1, 6):
        (root / f"train/{i}.png").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        ImageFolder(root).load()
    message = str(caught.value)
    assert message.startswith("5 of 9 images cannot be read (train/1.png: not an image")
    assert "train/3.png" in message
    assert "train/4.png" not in message
    assert "and 2 more" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar2"}, "'cifar2', the name of a built-in data set: .*--data.name"),
        ({"name": "CelebA"}, "'CelebA', the name of a built-in data set"),
        ({"name": "a/b"}, "cannot be filed under 'a/b'"),
        ({"name": ".."}, "cannot be filed under '..'"),
        ({"name": ""}, "cannot be filed under ''"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"channels": "gray"}, "channels must be one of auto, RGB, grey, not 'gray'. Did you mean 'grey'"),
    ],
)
def test_impossible_options_are_refused(write: Write, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageFolder(write("train/1.png", "test/1.png"), **options).load()


def test_a_folder_named_like_a_built_in_data_set_is_not_taken_for_it(tmp_path: Path) -> None:
    assert ImageFolder(tmp_path / "cifar10").label == "cifar10-folder"
    assert ImageFolder(tmp_path / "cifar10", name="cifar10-jpeg").label == "cifar10-jpeg"


def test_sizes_are_upper_limits(write: Write) -> None:
    data = ImageFolder(write("train/1.png", "train/2.png", "test/1.png"), num_train=5, num_queries=2)
    assert (len(data.train), len(data.validation)) == (2, 1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the folder of CIFAR-2 JPEGs beside the repository")
def test_a_real_folder_of_photos() -> None:
    data = ImageFolder(SHARED, name="photos", num_train=200, num_queries=60)
    assert data.train.image_shape == (3, 32, 32)
    assert (len(data.train), len(data.validation), data.stratify) == (200, 60, True)
    assert data.train.labels is not None
    assert data.train.labels.bincount().tolist() == [100, 100]
    for name, label, pixels in zip(data.train.ids, data.train.labels, data.train.images, strict=True):
        assert name.split("/")[1] == ("automobile", "horse")[int(label)]
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(SHARED / name).convert("RGB")))
