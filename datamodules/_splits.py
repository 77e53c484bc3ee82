"""Which of a data set's images are used: the protocol's splits, and the checks on the numbers asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from attribench.errors import UsageError

SEED = 42

Indices = NDArray[np.int64]


def check_range(option: str, value: int | None, low: int, high: int | None = None) -> None:
    """Refuse an option outside ``[low, high]``; None is an option left out."""
    if value is None or (low <= value and (high is None or value <= high)):
        return
    bound = f"at least {low}" if high is None else f"between {low} and {high}"
    raise UsageError(f"--data.{option} must be {bound}, not {value}.")


def can_stratify(labels: Indices, size: int) -> bool:
    """Whether ``size`` of these images can be chosen in class proportions: each side needs room for every class."""
    counts = np.unique(labels, return_counts=True)[1]
    return size == len(labels) or bool(counts.min() >= 2 and len(counts) <= size <= len(labels) - len(counts))


def choose(candidates: Indices, size: int, labels: Indices | None = None, *, option: str) -> Indices:
    """Choose ``size`` of the candidates as the published splits do.

    That is ``train_test_split(candidates, train_size=size, random_state=42)[0]``, stratified by ``labels``. The result
    has the order the split returns; ``size`` equal to all candidates takes them all in their own order.
    Without labels, a smaller choice is the tail of a larger one.

    Args:
        candidates: indices, in the data set's own order.
        size: how many to choose.
        labels: the candidates' classes, to keep their proportions; None does not stratify.
        option: the data option that gave ``size``, for errors.

    Raises:
        UsageError: there are not so many, or too few to keep the class proportions.
    """
    from sklearn.model_selection import train_test_split

    count = len(candidates)
    if size > count:
        raise UsageError(f"--data.{option} is {size}, but there are only {count} images to choose from.")
    if size == count:
        return candidates
    if labels is not None and not can_stratify(labels, size):
        classes = len(np.unique(labels))
        raise UsageError(
            f"--data.{option} cannot be {size}: a choice in class proportions among {classes} classes takes "
            f"between {classes} and {count - classes} images, or all {count}."
        )
    chosen: Indices = train_test_split(candidates, train_size=size, random_state=SEED, stratify=labels)[0]
    return chosen
