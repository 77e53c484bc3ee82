from __future__ import annotations

from fractions import Fraction

import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from attribench.datamodules.digits import Digits
from attribench.errors import UsageError


def test_splits_are_stratified_disjoint_and_as_scikit_learn_makes_them() -> None:
    data = Digits()
    frame = pd.DataFrame({"label": load_digits().target})
    train, rest = train_test_split(frame, train_size=500, random_state=42, stratify=frame.label)
    queries = train_test_split(rest.sort_index(), train_size=100, random_state=42, stratify=rest.sort_index().label)[0]
    assert data.train.ids == tuple(f"digits-{i}" for i in train.index)
    assert data.validation.ids == tuple(f"digits-{i}" for i in queries.index)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == train.label.tolist()
    assert not set(data.train.ids) & set(data.validation.ids)
    assert data.train.image_shape == (1, 8, 8)
    assert (data.label, data.stratify) == ("digits", True)


def test_sixteenths_become_bytes_with_exact_rounding() -> None:
    data = Digits()
    images = load_digits().images
    for name, image in zip(data.validation.ids, data.validation.images, strict=True):
        expected = [[round(Fraction(int(v) * 255, 16)) for v in row] for row in images[int(name.split("-")[1])]]
        assert image[0].tolist() == expected


def test_the_whole_data_set_can_be_used() -> None:
    data = Digits(num_train=1700, num_queries=97)
    assert len({*data.train.ids, *data.validation.ids}) == 1797
    assert data.train.content_hash == Digits(num_train=1700, num_queries=97).train.content_hash
    assert data.train.images.dtype == torch.uint8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1, not 0"),
        ({"num_queries": -3}, "num_queries must be at least 1, not -3"),
        ({"num_train": 1798}, "num_train is 1798, but there are only 1797"),
        ({"num_train": 9}, "num_train cannot be 9: .* between 10 and 1787"),
        ({"num_queries": 1298}, "num_queries is 1298, but there are only 1297"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Digits(**options).load()
