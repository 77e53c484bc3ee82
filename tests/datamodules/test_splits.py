from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from attribench.datamodules._splits import can_stratify, choose
from attribench.errors import UsageError


@pytest.mark.parametrize("stratified", [False, True])
def test_choose_is_the_published_split_over_a_pandas_index(stratified: bool) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 60)
    series = pd.Series(labels, index=np.arange(100, 160))
    expected = train_test_split(series.index, train_size=20, random_state=42, stratify=series if stratified else None)
    chosen = choose(np.arange(100, 160), 20, labels if stratified else None, option="num_train")
    assert chosen.tolist() == expected[0].tolist()


def test_all_candidates_are_taken_in_their_own_order() -> None:
    candidates = np.array([5, 3, 9])
    assert choose(candidates, 3, np.array([0, 1, 1]), option="num_train").tolist() == [5, 3, 9]


def test_without_labels_a_smaller_choice_is_the_tail_of_a_larger_one() -> None:
    candidates = np.arange(1000)
    large, small = (choose(candidates, size, option="num_train") for size in (400, 30))
    assert large[-30:].tolist() == small.tolist()


@pytest.mark.parametrize(
    ("labels", "size", "possible"),
    [([0, 0, 1, 1, 1], 1, False), ([0, 0, 1, 1, 1], 2, True), ([0, 0, 1, 1, 1], 4, False), ([0, 1, 1, 1, 1], 2, False)],
)
def test_can_stratify_agrees_with_scikit_learn(labels: list[int], size: int, possible: bool) -> None:
    assert can_stratify(np.array(labels), size) is possible
    if possible:
        assert len(choose(np.arange(5), size, np.array(labels), option="x")) == size
    else:
        with pytest.raises(ValueError, match=r"class|classes"):
            train_test_split(range(5), train_size=size, random_state=42, stratify=labels)


def test_too_many_is_refused_by_the_option_s_name() -> None:
    with pytest.raises(UsageError, match=r"--data\.num_queries is 4, but there are only 3"):
        choose(np.arange(3), 4, option="num_queries")
