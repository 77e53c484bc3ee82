"""A data set with fewer train images: nested sizes, in class proportions."""

from __future__ import annotations

import pytest
import torch
from tiny_data import TinyData

from attribench.data.fewer import Fewer, nested_order
from attribench.errors import UsageError


def test_smaller_sizes_are_within_larger_ones_and_the_queries_stay() -> None:
    whole = TinyData()
    found = {size: Fewer(whole, size) for size in (6, 13, 24)}
    ids = {size: set(data.train.ids) for size, data in found.items()}
    assert ids[6] < ids[13] < ids[24] == set(whole.train.ids)
    for size, data in found.items():
        assert len(data.train) == size
        assert data.validation.content_hash == whole.validation.content_hash
        assert (data.label, data.stratify) == ("tiny", True)
        for name, image in zip(data.train.ids, data.train.images, strict=True):
            assert torch.equal(image, whole.train.images[whole.train.ids.index(name)])


def test_every_beginning_has_the_class_proportions() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = nested_order(100, labels)
    assert sorted(order.tolist()) == list(range(100))
    for size in (10, 20, 50, 90):
        counts = torch.bincount(labels[order[:size]], minlength=3).tolist()
        for count, share in zip(counts, (0.6, 0.3, 0.1), strict=True):
            assert abs(count - share * size) <= 1.0
    assert order[:60].tolist() != list(range(60))


def test_without_labels_the_order_is_random_and_the_same_every_time() -> None:
    order = nested_order(50, None)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, nested_order(50, None))
    assert order.tolist() != list(range(50))


@pytest.mark.parametrize("size", [1, 25])
def test_sizes_that_are_not_there(size: int) -> None:
    with pytest.raises(UsageError, match="tiny has 24"):
        Fewer(TinyData(), size)
