"""Images in every form that is taken, against the same images in a folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attribench import ImageSet
from attribench.data.sources import folder_labels, read_source
from attribench.errors import DataError, UsageError
from attribench.store.artifacts import ArtifactStore


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> Image.Image:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


PICTURES = [picture(seed) for seed in range(3)]


def cut_off() -> Image.Image:
    """Opened, as data sets hand pictures out, and not yet decoded."""
    file = io.BytesIO()
    picture(0, size=(99, 99)).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:2000]))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "runs")


@pytest.fixture
def expected(tmp_path: Path, store: ArtifactStore) -> Tensor:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(PICTURES):
        image.save(folder / f"{number}.png")
    return read_source(folder, 8, store).images.images


class Sequence:
    """As data sets of Hugging Face and torchvision are: a length, and items by number."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


def test_pictures_are_those_of_a_folder(expected: Tensor, store: ArtifactStore, tmp_path: Path) -> None:
    forms: dict[str, Any] = {
        "pictures": PICTURES,
        "arrays": [np.asarray(image) for image in PICTURES],
        "paths": [str(tmp_path / "pictures" / f"{number}.png") for number in range(3)],
        "items": Sequence([{"image": image, "label": np.int64(7)} for image in PICTURES]),
        "pairs": Sequence([(image, 7) for image in PICTURES]),
    }
    for name, source in forms.items():
        found = read_source(source, 8, store).images
        assert torch.equal(found.images, expected), name
        assert found.ids == ("0", "1", "2")
        labels = None if found.labels is None else found.labels.tolist()
        assert labels == ([7, 7, 7] if name in ("items", "pairs") else None)


def test_many_attributes_are_no_class(store: ArtifactStore) -> None:
    """As torchvision's CelebA has them."""
    for several in (torch.zeros(40), np.zeros(40)):
        assert read_source([(PICTURES[0], several)], 8, store).images.labels is None
    assert read_source([(PICTURES[0], torch.tensor([2]))], 8, store).images.labels == 2


def test_tensors(expected: Tensor, store: ArtifactStore) -> None:
    for source in (expected, expected.double() / 255, list(expected), list(expected.float() / 255)):
        assert torch.equal(read_source(source, 8, store).images.images, expected)
    own = ImageSet(expected, tuple("abc"), torch.arange(3))
    found = read_source(own, None, store).images
    assert torch.equal(found.images, expected)
    assert (found.ids, found.labels) == (own.ids, own.labels)


def test_grey_and_colour(store: ArtifactStore) -> None:
    grey = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    alike = grey.expand(-1, 3, -1, -1)
    coloured = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(read_source(alike, None, store).images.images, grey)
    assert torch.equal(read_source(grey, None, store, channels="RGB").images.images, alike)
    assert read_source(coloured, None, store).images.image_shape == (3, 4, 4)
    luma = read_source(coloured, None, store, channels="grey").images.images
    expected = np.asarray(Image.fromarray(coloured[1].permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(luma[1, 0].numpy(), expected)
    assert read_source([picture(0, "L")], None, store).images.image_shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(2, 3, 4), r"must be \(N, C, H, W\) with C = 1 or 3; got \(2, 3, 4\)"),
        (torch.zeros(2, 4, 4, 3), "with C = 1 or 3"),
        (torch.zeros(0, 3, 4, 4), "with C = 1 or 3"),
        (torch.full((1, 1, 8, 8), -0.5), r"must lie in \[0, 1\]; these go from -0.5 to -0.5. Scale \[-1, 1\] by"),
        (torch.full((1, 1, 8, 8), float("nan")), r"must lie in \[0, 1\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "uint8, or float"),
        (torch.zeros(1, 1, 9, 8), "images of 9×8 where 8×8 are needed"),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 9, 9)], "must have one size, and these have 8×8 and 9×9"),
        ([], "there are none"),
        ([{"picture": PICTURES[0]}], r"mine\[0\] has no 'image': its keys are picture"),
        (["nowhere.png"], "nowhere.png"),
        ([3], r"mine\[0\]: a int is no picture"),
        ([()], r"mine\[0\]: a NoneType is no picture"),
        ([PICTURES[0], PICTURES[0].convert("F")], r"mine\[1\]: 32-bit pixels have no agreed range"),
        ([cut_off()], r"mine\[0\]: image file is truncated"),
        (ImageSet(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), ("a",)), "with C = 1 or 3"),
        (ImageSet(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), ()), "with C = 1 or 3"),
    ],
)
def test_what_is_no_image_is_named(source: Any, message: str, store: ArtifactStore) -> None:
    with pytest.raises(DataError, match=message):
        read_source(source, 8, store, name="mine")


def test_what_is_no_source_is_named(store: ArtifactStore) -> None:
    for source in (None, 3, {"image": PICTURES}, iter(PICTURES)):
        with pytest.raises(UsageError, match="holds no images that attribench can read"):
            read_source(source, 8, store)


def test_labels_from_subfolders() -> None:
    train, queries, names = folder_labels(["dog/1.png", "cat/x/2.png", "dog/3.png"], ["cat/9.png"], 3)
    assert (train.tolist(), queries.tolist(), names) == ([1, 0, 1], [0], ["cat", "dog"])
    train, queries, _ = folder_labels(["10/a.png", "2/b.png"], ["7/c.png"], 11)
    assert (train.tolist(), queries.tolist()) == ([10, 2], [7])
    train, queries, names = folder_labels(["dog/1.png", "cat/2.png"], ["2/made-without-a-class.png", "dog/3.png"], 3)
    assert (train.tolist(), queries.tolist(), names) == ([1, 0], [2, 1], ["cat", "dog", "2"])
    assert folder_labels([], ["1/a.png"], 3)[1].tolist() == [1]


@pytest.mark.parametrize(
    ("train", "queries", "message"),
    [
        (["cat/1.png", "2.png"], [], r"1 train images lie in no subfolder \(2.png\)"),
        (["cat/1.png"], ["2.png"], r"1 queries lie in no subfolder \(2.png\)"),
        (["a/1", "b/1", "c/1"], [], "The model knows 2 classes, numbered from 0; the subfolder c would be class 2"),
        (["0/1", "5/1"], [], "the subfolder 5 would be class 5"),
        (["a/1", "b/1"], ["1/1"], r"subfolder 1 is no class of the train images \(there are: a, b\)"),
        (["a/1", "b/1"], ["2/1"], "the subfolder 2 would be class 2"),
        ([], ["cat/1"], "subfolder cat is no number of a class"),
        (["cat/1.png"], ["dog/1.png"], r"subfolder dog is no class of the train images \(there are: cat\)"),
    ],
)
def test_labels_that_there_are_not(train: list[str], queries: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder_labels(train, queries, 2)
