from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cifar_files import CifarFiles, write_cifar
from sklearn.model_selection import train_test_split

from attribench.datamodules.cifar2 import Cifar2
from attribench.errors import DataError, UsageError

# The first five validation queries of the published runs, as indices of CIFAR-10's test part.
PUBLISHED = [7405, 5226, 1363, 6615, 7612]


def test_splits_are_those_of_a_filtered_pandas_table(small_cifar: CifarFiles) -> None:
    data = Cifar2(root=small_cifar.root, num_train=30, num_queries=20)
    for part, size, chosen in (("train", 30, data.train), ("test", 20, data.validation)):
        table = pd.DataFrame({"label": small_cifar.labels[part]})
        table = table[table.label.isin([1, 7])]
        expected = train_test_split(table, train_size=size, random_state=42, stratify=table.label)[0]
        assert chosen.ids == tuple(f"cifar10-{part}-{i}" for i in expected.index)
        assert chosen.labels is not None
        assert chosen.labels.tolist() == expected.label.tolist()
        assert np.array_equal(chosen.images.numpy(), small_cifar.images(part)[expected.index])
    assert (data.label, data.stratify) == ("cifar2", True)


def test_all_images_are_taken_in_their_own_order(small_cifar: CifarFiles) -> None:
    data = Cifar2(root=small_cifar.root, num_train=60, num_queries=40)
    expected = np.flatnonzero(np.isin(small_cifar.labels["train"], [1, 7]))
    assert data.train.ids == tuple(f"cifar10-train-{i}" for i in expected)


def test_queries_lie_where_the_published_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1,000 test images a class, the split fixes which of its class each query is, whatever the order of classes.

    The k-th of 1,000 images lies near place 10 k of 10,000, with a standard deviation of at most 158. Five places that
    agree to within 3.5 of those by chance: 1 in 100,000. Only the real labels can show equality: see the next test.
    """
    labels = np.arange(10_000) % 10
    files = write_cifar(tmp_path, np.arange(100) % 10, labels, monkeypatch)
    data = Cifar2(root=files.root, num_train=20)
    assert len(data.validation) == 1000
    ours = [int(name.split("-")[-1]) for name in data.validation.ids[:5]]
    for place, published in zip(ours, PUBLISHED, strict=True):
        share = place / 10_000
        assert abs(place - published) < 3.5 * 10 * (1000 * share * (1 - share)) ** 0.5


def test_published_indices_on_the_official_files() -> None:
    try:
        data = Cifar2(download=False)
        queries = data.validation
    except DataError as error:
        pytest.skip(f"needs the official files: {error}")
    assert queries.ids[:5] == tuple(f"cifar10-test-{i}" for i in PUBLISHED)
    assert (len(data.train), len(queries)) == (5000, 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 61}, "num_train is 61, but there are only 60"),
        ({"num_train": 59}, "num_train cannot be 59: .* between 2 and 58 images, or all 60"),
        ({"num_queries": 0}, "num_queries must be at least 1"),
        ({"image_size": 33}, "image_size must be between 1 and 32, not 33"),
    ],
)
def test_impossible_options_are_refused(small_cifar: CifarFiles, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Cifar2(**{"root": small_cifar.root, "num_train": 30, "num_queries": 20, **options}).load()  # type: ignore[arg-type]
