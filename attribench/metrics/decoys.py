"""Do train images stand out from images that cannot have been trained on? P-values against the scores of decoys.

A ranking always has a first place. Decoys are scored together with the train images; a train image that has nothing to do with
a query scores as a decoy does. What scores higher, by more than so many draws explain, stands out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.errors import DataError, UsageError

#: The fewest decoys that anything is said from.
FEWEST_DECOYS = 20

#: A tail is the highest tenth of the decoys; of fewer than 600 it is 60, or two fifths of them; of fewer than 50 there is none.
_SHARE, _USUAL, _LARGEST_SHARE, _FEWEST_FOR_TAIL = 0.1, 60, 0.4, 50

#: So large a share of a tail must be different scores: of few that come again and again no continuous tail can be told.
_DIFFERENT = 0.9

#: Drawing goes on, until a p-value of 1/(200 · number of groups) can be seen, for groups that fewer than 10 draws reach.
_REACHED, _DRAWS_A_GROUP = 10, 200

#: The prior of the tail's shape, a normal distribution cut off where the grid ends.
_SHAPE_MEAN, _SHAPE_DEVIATION = 0.3, 0.5
_SHAPES = np.linspace(-0.5, 2.5, 31)
_SCALES = np.exp(np.linspace(math.log(0.05), math.log(3.0), 41))

#: Elements of a temporary.
_BLOCK = 2**22

Floats = NDArray[np.float64]


def decoy_p_values(scores: Tensor, decoys: Tensor) -> Tensor:
    """For each query and train image, how often an image that has nothing to do with the query scores so high.

    *Among the decoys* the p-value is the image's rank with them, p = (1 + #{decoys as high or higher}) / (D + 1): exact
    for any scores, as long as the image is exchangeable with the decoys (conformal p-values; Bates, Candès, Lei, Romano and
    Sesia, Annals of Statistics 51, 2023; with one set of decoys for all images, Benjamini and Hochberg's adjustment holds).

    *Above them* that would be 1/(D + 1) for all, and one image among N could stand out only from D ≥ N/α decoys. So p-values go
    on in the tail of k decoys above the threshold u, the highest tenth (of fewer than 600 decoys 60, or two fifths), as a
    generalised Pareto distribution does (Pickands, Annals of Statistics 3, 1975; Knijnenburg, Wessels, Reinders and
    Shmulevich, Bioinformatics 25, 2009):

        p(x) = (k + 1)/(D + 1) · E [ (1 + ξ (x − u)/σ)^(−1/ξ) ],

    the mean being over what the k excesses leave open of σ and ξ, by Bayes' rule on a grid with an even prior of log σ and a
    normal one of ξ, mean 0.3 and deviation 0.5, between −½ and 2½. Averaging in place of a best fit makes p-values larger, the
    more so the fewer decoys there are and the further off x is. With fewer than 50 decoys there is no tail, and p ≥ 1/(D + 1);
    nor where more than a tenth of the tail's scores are equal to another or to u: such scores are steps, and do not go on.

    Assumptions: the train images that have nothing to do with a query are exchangeable with the decoys; the far tail goes on as
    the tail does, and is not much heavier than x⁻². In simulations of scores with tails up to x⁻³ and of log-normal ones, 50 to
    1000 decoys and 300 to 1000 train images that have nothing to do with the query, at most one query in twenty had any
    discovery, with Student's t of three degrees of freedom one in fourteen; with tails of x⁻¹ it was one in eight, and with
    log-normal scores whose logarithm deviates by 5 one in seven (by 1 to 3, one in twenty).

    Args:
        scores: of train images, ``(num_queries, num_train)``; higher = stronger.
        decoys: of decoys, by the same method in the same call, ``(num_queries, num_decoys)``.

    Returns:
        float64 ``(num_queries, num_train)``, in (0, 1].

    Raises:
        UsageError: fewer than 20 decoys.
        DataError: shapes that do not fit, or scores that are not finite.
    """
    _check(scores, decoys)
    rows = [
        _p_values(row.double().numpy(), others.double().numpy())
        for row, others in zip(scores.cpu(), decoys.cpu(), strict=True)
    ]
    return torch.from_numpy(np.stack(rows))


def _p_values(scores: Floats, decoys: Floats) -> Floats:
    ordered = np.sort(decoys)
    count = len(ordered)
    at_least = count - np.searchsorted(ordered, scores, "left")
    found: Floats = np.asarray((1.0 + at_least) / (count + 1.0), np.float64)
    if count < _FEWEST_FOR_TAIL:
        return found
    number = math.ceil(max(_SHARE * count, min(_USUAL, _LARGEST_SHARE * count)))
    threshold = ordered[-number - 1]
    excesses = ordered[-number:] - threshold
    beyond = scores > threshold
    if len(np.unique(excesses[excesses > 0])) >= _DIFFERENT * number and beyond.any():
        tail = _Tail.of(excesses)
        found[beyond] = (number + 1.0) / (count + 1.0) * tail.survival(scores[beyond] - threshold)
    return found


@dataclass(frozen=True, eq=False)
class _Tail:
    """What excesses over a threshold leave open of their distribution: parameters on a grid, with weights that sum to 1."""

    shapes: Floats
    scales: Floats
    weights: Floats

    @classmethod
    def of(cls, excesses: Floats) -> _Tail:
        unit = float(excesses.mean())
        shapes, scales = (part.ravel() for part in np.meshgrid(_SHAPES, _SCALES, indexing="ij"))
        shapes = np.where(np.abs(shapes) < 1e-6, 1e-6, shapes)  # the exponential distribution, as near as counts
        inner = 1.0 + (shapes / scales)[:, None] * (excesses / unit)
        possible = inner.min(axis=1) > 0
        logarithms = np.log(np.where(inner > 0, inner, 1.0)).sum(axis=1)
        density = -len(excesses) * np.log(scales) - (1.0 + 1.0 / shapes) * logarithms
        density -= 0.5 * ((shapes - _SHAPE_MEAN) / _SHAPE_DEVIATION) ** 2
        density = np.where(possible, density, -np.inf)
        weights = np.exp(density - density.max())
        kept = np.asarray(weights > 1e-9 * weights.max())
        return cls(shapes[kept], scales[kept] * unit, weights[kept] / weights[kept].sum())

    def survival(self, excesses: Floats) -> Floats:
        """The chance of an excess at least so large."""
        found = np.empty(len(excesses))
        step = max(1, _BLOCK // len(self.shapes))
        for begin in range(0, len(excesses), step):
            part = excesses[begin : begin + step]
            inner = np.maximum(1.0 + (self.shapes / self.scales)[:, None] * part, 0.0)
            with np.errstate(divide="ignore"):
                found[begin : begin + step] = self.weights @ inner ** (-1.0 / self.shapes)[:, None]
        return found.clip(np.finfo(np.float64).tiny, 1.0)


def adjusted(p_values: Tensor) -> Tensor:
    """P-values of each row adjusted for their number by Benjamini and Hochberg (JRSS B 57, 1995).

    Of those at most α, called discoveries, a share of no more than α is false in each row, in expectation; where nothing
    is true, discoveries are made in at most a share α of the rows.

    Args:
        p_values: ``(num_rows, num_tests)``.

    Returns:
        float64 of the same shape.
    """
    return torch.from_numpy(stats.false_discovery_control(p_values.double().numpy(), axis=-1))


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums of the scores of groups of train images.

    Attributes:
        totals: float64 ``(num_queries, num_groups)``.
        p_values: of "these are like decoys", float64 of the same shape.
    """

    totals: Tensor
    p_values: Tensor


def sum_p_values(
    scores: Tensor, decoys: Tensor, groups: list[list[int]], *, num_draws: int = 9999, seed: int = 0
) -> Sums:
    """Whether the train images of a group score higher in sum than as many of them and the decoys together would at random.

    A permutation test: of a group's m images and the D decoys, m are drawn without replacement, many times;
    p = (1 + #{draws whose sum is at least the group's}) / (1 + number of draws). It is exact where the group's images are
    exchangeable with the decoys, for whatever scores; images that are like each other are not: give such a one once.
    It sees what many images of a group contribute together; a single image that stands out is often drawn again, and hardly
    seen in a sum.

    Of many groups, one can stand out only with a p-value below 0.05 by their number: where fewer than 10 draws reach a group,
    drawing goes on up to 200 draws a group (Besag and Clifford, Biometrika 78, 1991). A group of **one** image is compared
    with the decoys as any image is, by :func:`decoy_p_values`: of D + 1 possible draws none is rarer than 1/(D + 1). Likewise
    p does not fall below about 2/(D + 1)² for groups of two.

    Args:
        scores: of train images, ``(num_queries, num_train)``.
        decoys: of decoys, ``(num_queries, num_decoys)``.
        groups: the train images of each group, by number.
        num_draws: how many at first.
        seed: the same seed gives the same draws.

    Raises:
        UsageError: fewer than 20 decoys, or a group without images.
        DataError: shapes that do not fit, or scores that are not finite.
    """
    _check(scores, decoys)
    if not all(groups):
        raise UsageError("A group without train images has no sum.")
    values, others = scores.cpu().double(), decoys.cpu().double()
    totals = torch.stack([values[:, group].sum(dim=1) for group in groups], dim=1)
    p_values = torch.empty_like(totals)
    by_size: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        by_size.setdefault(len(group), []).append(number)
    most = max(num_draws, _DRAWS_A_GROUP * len(groups))
    for size, numbers in by_size.items():  # groups of one size share the draws
        if size == 1:
            p_values[:, numbers] = decoy_p_values(totals[:, numbers], others)
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "decoys", "sums", size))
        pools = [torch.cat([values[:, groups[number]], others], dim=1) for number in numbers]
        reached = _reached(pools, size, num_draws, generator)
        found = (1 + reached).double() / (1 + num_draws)
        rare = reached < _REACHED
        again = rare.any(dim=1).nonzero().flatten().tolist()
        if again and most > num_draws:
            further = reached[again] + _reached([pools[place] for place in again], size, most - num_draws, generator)
            found[again] = torch.where(rare[again], (1 + further).double() / (1 + most), found[again])
        p_values[:, numbers] = found.T
    return Sums(totals, p_values)


def _reached(pools: list[Tensor], size: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """How many draws have a sum at least as large as that of the first ``size`` scores: ``(num_pools, num_queries)``."""
    found = torch.zeros(len(pools), len(pools[0]), dtype=torch.int64)
    for drawn in _draws(size, pools[0].shape[1], num_draws, generator):
        for place, pool in enumerate(pools):
            # Rounding must not decide between sums of the same images: those count as equal.
            sums, own = pool @ drawn.T, pool[:, :size].sum(dim=1, keepdim=True)
            slack = 1e-12 * pool.abs().amax(dim=1, keepdim=True) * size
            found[place] += (sums >= own - slack).sum(dim=1)
    return found


def _draws(size: int, total: int, num_draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Which ``size`` of ``total`` scores are drawn: float64 0/1 ``(some draws, total)``, in blocks."""
    step = max(1, _BLOCK // total)
    for begin in range(0, num_draws, step):
        keys = torch.rand(min(step, num_draws - begin), total, generator=generator)
        chosen = keys.topk(size, dim=1, sorted=False).indices
        yield torch.zeros(keys.shape, dtype=torch.float64).scatter_(1, chosen, 1.0)


def _check(scores: Tensor, decoys: Tensor) -> None:
    if scores.ndim != 2 or decoys.ndim != 2 or len(scores) != len(decoys):
        raise DataError(
            f"scores {tuple(scores.shape)} and decoys {tuple(decoys.shape)} must be (num_queries, num_train) and "
            "(num_queries, num_decoys)."
        )
    if not (torch.isfinite(scores).all() and torch.isfinite(decoys).all()):
        raise DataError("Scores must be finite.")
    if decoys.shape[1] < FEWEST_DECOYS:
        raise UsageError(f"{decoys.shape[1]} decoys are too few: {FEWEST_DECOYS} at least are needed.")
