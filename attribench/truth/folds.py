"""Which subsets a method that sees retrained models is judged on: never on models it was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attribench.errors import UsageError
from attribench.metrics.lds import average_ranks

#: With fewer subsets there are two folds, so that ranks in a fold still say something.
_SUBSETS_FOR_FOUR = 16
_FEWEST_SUBSETS = 4


def num_folds(num_subsets: int) -> int:
    """How many folds subsets are divided into: four, or two of few.

    Raises:
        UsageError: fewer than four subsets.
    """
    if num_subsets < _FEWEST_SUBSETS:
        raise UsageError(
            f"A method that is given retrained models is judged on others: it needs at least {_FEWEST_SUBSETS} subsets, "
            f"and there are {num_subsets}."
        )
    return 4 if num_subsets >= _SUBSETS_FOR_FOUR else 2


def fold_of(subset: int, folds: int) -> int:
    """The fold a subset is judged in. Subsets are random and independent, so that every choice is as good."""
    return subset % folds


def given(count: int, folds: int, fold: int, within: Sequence[int] | None = None) -> list[int]:
    """The subsets whose models a method may see that is judged on ``fold``, by number: all others of ``count``.

    Args:
        within: only these, where what is to be reported must not be seen; None for all.
    """
    return [subset for subset in (range(count) if within is None else within) if fold_of(subset, folds) != fold]


def ranks_within_folds(values: Tensor, subsets: Sequence[int], folds: int) -> Tensor:
    """Ranks of values among those of the same fold, scaled to 0…1: what one fold's models make of a query compares with
    nothing in another fold.

    With folds of one size and no ties, Spearman's correlation of two such sets of ranks is the mean over folds of the
    correlation within each.

    Args:
        values: ``(num_subsets, num_queries)``.
        subsets: the number of each row's subset.
        folds: their number.

    Returns:
        float64 of the same shape.
    """
    ranks = torch.empty_like(values, dtype=torch.float64)
    of = torch.tensor([fold_of(subset, folds) for subset in subsets])
    for fold in sorted(set(of.tolist())):
        rows = of == fold
        ranks[rows] = (average_ranks(values[rows].double()) - 0.5) / int(rows.sum())
    return ranks
