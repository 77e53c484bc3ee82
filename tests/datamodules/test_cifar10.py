from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cifar_files import CifarFiles
from PIL import Image
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10
from torchvision.transforms import Resize

from attribench.datamodules.cifar10 import Cifar10
from attribench.errors import DataError


class Bomb:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_train_images_are_all_in_order_and_queries_a_stratified_choice(small_cifar: CifarFiles) -> None:
    data = Cifar10(root=small_cifar.root, num_train=300, num_queries=40)
    assert data.train.ids == tuple(f"cifar10-train-{i}" for i in range(300))
    assert np.array_equal(data.train.images.numpy(), small_cifar.images("train"))
    labels = pd.Series(small_cifar.labels["test"])
    expected = train_test_split(labels, train_size=40, random_state=42, stratify=labels)[0]
    assert data.validation.ids == tuple(f"cifar10-test-{i}" for i in expected.index)
    assert data.validation.labels is not None
    assert data.validation.labels.tolist() == expected.tolist()
    assert np.array_equal(data.validation.images.numpy(), small_cifar.images("test")[expected.index])
    assert data.label == "cifar10"


def test_defaults_are_the_paper_s_sizes() -> None:
    data = Cifar10()
    assert (data.num_train, data.num_queries, data.image_size) == (50_000, 1000, 32)


def test_a_smaller_size_resizes_with_antialiasing_and_keeps_ids(small_cifar: CifarFiles) -> None:
    full = Cifar10(root=small_cifar.root, num_train=300, num_queries=20)
    small = Cifar10(root=small_cifar.root, num_train=300, num_queries=20, image_size=16)
    assert small.train.image_shape == (3, 16, 16)
    assert small.train.ids == full.train.ids
    assert small.train.content_hash != full.train.content_hash
    original = Image.fromarray(full.train.images[7].permute(1, 2, 0).numpy())
    assert np.array_equal(small.train.images[7].permute(1, 2, 0).numpy(), np.asarray(Resize(16)(original)))


def test_the_archive_is_unpacked_without_a_network(
    small_cifar: CifarFiles, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar.pack(monkeypatch)
    data = Cifar10(root=small_cifar.root, num_train=300, num_queries=20, download=False)
    assert np.array_equal(data.train.images.numpy(), small_cifar.images("train"))
    assert not no_network


@pytest.mark.parametrize("missing", ["data_batch_3", "batches.meta"])
def test_a_missing_file_is_taken_from_the_archive(
    small_cifar: CifarFiles, no_network: list[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    folder = small_cifar.root / CIFAR10.base_folder
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    small_cifar.pack(monkeypatch)
    folder.mkdir()
    for name in contents.keys() - {missing}:
        (folder / name).write_bytes(contents[name])
    assert len(Cifar10(root=small_cifar.root, num_train=300, num_queries=20).train) == 300
    assert not no_network


def test_without_network_the_error_says_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, no_network: list[str]
) -> None:
    root = tmp_path / "nothing here"
    with pytest.raises(DataError) as caught:
        Cifar10(root=root).load()
    message = str(caught.value)
    assert no_network[0] == CIFAR10.url
    for part in (
        CIFAR10.url,
        "c58f30108f718f92721af3b95e74349a",
        str(root),
        "Network is unreachable",
        "--data.root DIR",
    ):
        assert part in message
    assert "\n" not in message


def test_download_false_never_asks_the_network(tmp_path: Path, no_network: list[str]) -> None:
    with pytest.raises(DataError, match="downloading is switched off"):
        Cifar10(root=tmp_path, download=False).load()
    assert not no_network


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_modified_pickle_is_never_opened(small_cifar: CifarFiles, no_network: list[str], name: str) -> None:
    path, mark = small_cifar.root / CIFAR10.base_folder / name, small_cifar.root / "executed"
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DataError, match=f"{name} is not the official file"):
        Cifar10(root=small_cifar.root, num_train=300, num_queries=20).load()
    assert not mark.exists()


def test_a_damaged_archive_is_refused(
    small_cifar: CifarFiles, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = small_cifar.pack(monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="is missing, and fetching it failed"):
        Cifar10(root=small_cifar.root, num_train=300, num_queries=20).load()


def test_the_default_root_follows_the_environment(
    small_cifar: CifarFiles, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTRIBENCH_DATA", str(small_cifar.root))
    assert len(Cifar10(num_train=300, num_queries=20).train) == 300
    assert not no_network
