"""The linear datamodeling score (LDS): do a method's scores rank the retrained models by their loss?

Park et al., "TRAK: Attributing Model Behavior at Scale", arXiv 2303.14186, definition 2.3; for diffusion models Zheng
et al., arXiv 2311.00500. Models are trained on random subsets of the training set. A method's prediction for a subset
and a query is the sum of its scores of the images in the subset; the LDS is the rank correlation of that sum with how
well the models do on the query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.errors import DataError, UsageError

# Queries are summed in blocks of this many scores, to bound the float64 copies at about 128 MB each.
_BLOCK_ELEMENTS = 2**24


def linear_datamodeling_score(scores: Tensor, masks: Tensor, outputs: Tensor) -> Tensor:
    """The LDS of every query: Spearman's correlation, over subsets, of Σ_{n∈S} score(n, x) with −output(S, x).

    The output is a loss and a positive score marks a proponent (an image whose presence lowers the loss), hence the
    minus: scores that are right get +1. Equal values share the average of their ranks.

    Args:
        scores: ``(num_queries, num_train)``, any real dtype; higher = stronger proponent.
        masks: bool ``(num_subsets, num_train)``; True where the image was in the subset.
        outputs: ``(num_subsets, num_queries)``; the loss of each subset's model on each query.

    Returns:
        float64 ``(num_queries,)`` in [-1, 1]. A query whose predictions or outputs are all equal has no correlation and
        counts as 0; :func:`undefined_queries` says which.

    Raises:
        UsageError: not tensors, masks that are not bool, or fewer than two subsets.
        DataError: shapes that do not fit together, or values that are not finite.
    """
    _check_outputs(scores, masks, outputs)
    return score_predictions(predict_outputs(scores, masks), outputs)


def undefined_queries(scores: Tensor, masks: Tensor, outputs: Tensor) -> Tensor:
    """Which queries have no LDS because all their predictions, or all their outputs, are equal.

    Arguments and errors are those of :func:`linear_datamodeling_score`, which counts these queries as 0.

    Returns:
        bool ``(num_queries,)``.
    """
    _check_outputs(scores, masks, outputs)
    return undefined_correlations(predict_outputs(scores, masks), outputs)


def predict_outputs(scores: Tensor, masks: Tensor) -> Tensor:
    """What the scores predict for every subset: Σ_{n∈S} score(n, x). Higher predicts a lower loss.

    Only the order of the predictions counts, so rounding matters where they are (almost) equal: summed in floating
    point, scores that are all 0.1 give totals that differ in the last digits with the order of summation, and so do
    subsets that share the same few non-zero scores. Ranks would make a correlation of that noise. Therefore the sums
    are exact (see :func:`_exact_sums`) and rounded once to float64: subsets of equal sums tie whatever the order of
    summation, the device and the other queries in the batch, and rounding can join neighbours into a tie but never swap
    them. What is left is the method's own noise: scores that differ in their last digit are taken at their word.

    Args:
        scores: ``(num_queries, num_train)``, any real dtype.
        masks: bool ``(num_subsets, num_train)``.

    Returns:
        float64 ``(num_subsets, num_queries)`` on the device of ``scores``.

    Raises:
        UsageError: not tensors, or masks that are not bool.
        DataError: shapes that do not fit together, or values that are not finite.
    """
    _check_tensors(scores=scores)
    check_masks(masks)
    if scores.ndim != 2 or scores.shape[1] != masks.shape[1] or not scores.numel():
        raise DataError(
            f"scores {_shape(scores)} and masks {_shape(masks)} must be (num_queries, num_train) and "
            "(num_subsets, num_train), with one num_train and at least one query."
        )
    membership = masks.T.to(scores.device, torch.float64)
    rows = max(1, _BLOCK_ELEMENTS // scores.shape[1])
    blocks = (scores[start : start + rows] for start in range(0, scores.shape[0], rows))
    sums = [_exact_sums(_as_float64("scores", block), membership) for block in blocks]
    return torch.cat(sums).T.contiguous()


def score_predictions(predictions: Tensor, outputs: Tensor) -> Tensor:
    """The LDS of every query from its predictions: Spearman's correlation with minus the loss.

    Args:
        predictions: ``(num_subsets, num_queries)``, from :func:`predict_outputs`.
        outputs: ``(num_subsets, num_queries)`` losses.

    Returns:
        float64 ``(num_queries,)`` in [-1, 1], 0 where undefined.

    Raises:
        UsageError: not tensors, or fewer than two subsets.
        DataError: shapes that differ, or values that are not finite.
    """
    _check_pair(predictions, outputs)
    return spearman(predictions, -outputs.double())


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each column of ``first`` with the same column of ``second``.

    Centred average ranks are multiples of ½, so their sums of products are exact in float64: whether a correlation is
    defined is decided exactly, and perfect agreement gives exactly ±1.

    Args:
        first: ``(num_subsets, num_queries)``.
        second: ``(num_subsets, num_queries)``.

    Returns:
        float64 ``(num_queries,)`` in [-1, 1], on the device of ``first``; 0 where one of the two columns is constant.

    Raises:
        UsageError: not tensors, or fewer than two subsets.
        DataError: shapes that differ, or values that are not finite.
    """
    _check_pair(first, second)
    middle = (first.shape[0] + 1) / 2
    a = average_ranks(_as_float64("predictions", first)) - middle
    b = average_ranks(_as_float64("outputs", second).to(first.device)) - middle
    return correlation_from_sums((a * b).sum(dim=0), (a * a).sum(dim=0), (b * b).sum(dim=0))


def correlation_from_sums(covariance: Tensor, first_variance: Tensor, second_variance: Tensor) -> Tensor:
    """Covariance / √(variance · variance) in float64, with 0 where a variance is exactly 0.

    The three tensors are sums over one sample, of any common shape, which is also the result's.
    """
    denominator = (first_variance.double() * second_variance.double()).sqrt()
    defined = denominator > 0
    return torch.where(defined, covariance.double() / torch.where(defined, denominator, 1.0), 0.0).clamp(-1.0, 1.0)


def undefined_correlations(first: Tensor, second: Tensor) -> Tensor:
    """Which columns have no correlation because one of the two is constant.

    Arguments and errors are those of :func:`spearman`, which gives 0 there.

    Returns:
        bool ``(num_queries,)``.
    """
    _check_pair(first, second)
    first, second = _as_float64("predictions", first), _as_float64("outputs", second).to(first.device)
    return (first == first[0]).all(dim=0) | (second == second[0]).all(dim=0)


def average_ranks(values: Tensor) -> Tensor:
    """Ranks within each column, from 1; equal values share the average of their ranks.

    Args:
        values: ``(num_subsets, num_columns)``, without NaN.

    Returns:
        float64 of the shape of ``values``; each column sums to n(n+1)/2 exactly.
    """
    rows = values.T.contiguous()  # sorting along the contiguous dimension is several times faster
    ordered, order = rows.sort(dim=1)
    size = rows.shape[1]
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = changes.new_ones(rows.shape[0], 1)
    starts = torch.cat([edge, changes], dim=1)
    ends = torch.cat([changes, edge], dim=1)
    position = torch.arange(size, device=rows.device)
    first = torch.where(starts, position, 0).cummax(dim=1).values
    last = torch.where(ends, position, size - 1).flip(1).cummin(dim=1).values.flip(1)
    ranks = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    return ranks.scatter_(1, order, (first + last).double() / 2 + 1).T


def _exact_sums(scores: Tensor, membership: Tensor) -> Tensor:
    """``scores @ membership`` without accumulated rounding, for float64 scores (Q, N) and 0/1 membership (N, S).

    Each row is scaled by a power of two and split into integer parts, small enough that any partial sum of N of them stays
    below 2^53. Float64 adds such integers exactly, in any order (the splitting of Ozaki et al., Numerical Algorithms 59,
    2012). There are as many parts as the row's scores have digits, two as a rule: a subset without the largest scores is
    ranked by what it has. Sums that are more than 2^1000 times smaller than the largest score are lost.
    """
    step = 2.0 ** (52 - scores.shape[1].bit_length())
    largest = scores.abs().amax(dim=1, keepdim=True)
    # x / mantissa(x) is a power of two exactly; the clamp keeps its inverse finite for subnormal scores.
    scale = torch.where(largest > 0, torch.frexp(largest).mantissa / largest, 1.0).clamp(max=2.0**1000)
    rest = scores * scale * step
    parts: list[Tensor] = []
    while not parts or rest.any():
        whole = rest.round()
        parts.append(whole @ membership)
        rest = (rest - whole) * step
    digits = _carried(parts, step)
    # The digits of a negative number near 0 would all be large, and lost in rounding: take those of its opposite.
    sign = torch.where(digits[0] < 0, -1.0, 1.0)
    total = torch.zeros_like(sign)
    for digit in reversed(_carried([part * sign for part in parts], step)):
        total = digit + total / step
    return sign * total / step / scale


def _carried(parts: list[Tensor], step: float) -> list[Tensor]:
    """The same number Σ parts[i] / step^i with all but the first part in 0…step: one form only for equal numbers."""
    digits = [parts[-1]]
    for part in reversed(parts[:-1]):
        carry = (digits[0] / step).floor()
        digits[0] = digits[0] - carry * step
        digits.insert(0, part + carry)
    return digits


def check_masks(masks: Tensor) -> None:
    """Raise unless ``masks`` is a bool tensor (num_subsets, num_train).

    Raises:
        UsageError: not a tensor, or not bool.
        DataError: not two-dimensional.
    """
    _check_tensors(masks=masks)
    if masks.dtype != torch.bool:
        name = str(masks.dtype).removeprefix("torch.")
        raise UsageError(f"masks must be a bool tensor, not {name}; convert 0 and 1 with .bool().")
    if masks.ndim != 2:
        raise DataError(f"masks {_shape(masks)} must be (num_subsets, num_train).")


def _as_float64(name: str, values: Tensor) -> Tensor:
    values = values.detach().to(torch.float64)
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise DataError(f"{name} must be finite: {bad} of the {values.numel()} values checked are NaN or infinite.")
    return values


def _check_tensors(**tensors: object) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} must be a torch.Tensor, not {type(value).__name__}; wrap it in torch.as_tensor.")


def _check_outputs(scores: Tensor, masks: Tensor, outputs: Tensor) -> None:
    _check_tensors(scores=scores, outputs=outputs)
    check_masks(masks)
    if scores.ndim != 2 or outputs.shape != (masks.shape[0], scores.shape[0]):
        raise DataError(
            f"scores {_shape(scores)}, masks {_shape(masks)} and outputs {_shape(outputs)} must be "
            "(num_queries, num_train), (num_subsets, num_train) and (num_subsets, num_queries)."
        )


def _check_pair(first: Tensor, second: Tensor) -> None:
    _check_tensors(predictions=first, outputs=second)
    if first.ndim != 2 or first.shape != second.shape or not first.shape[1]:
        raise DataError(
            f"predictions {_shape(first)} and outputs {_shape(second)} must both be (num_subsets, num_queries)."
        )
    if first.shape[0] < 2:
        raise UsageError(f"A correlation over subsets needs at least 2 of them, not {first.shape[0]}.")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
