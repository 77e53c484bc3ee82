"""The machine's answer at every position of a query, and how it changes without a train image.

The machine denoises the query's pixel p by the posterior mean D(p) of the pixels y_n(q) in the middle of all train patches,
weighted by π_nq(p), the posterior that patch q of image n is what the query's was before the noise (arXiv 2412.20292). With
a_n = Σ_q π_nq and b_n = Σ_q π_nq y_n(q), D = Σ_n b_n, and without image n it would be

    D₋ₙ = (D − b_n) / (1 − a_n) = D − δ_n,     δ_n = (b_n − D a_n) / (1 − a_n).

So the squared error at p grows by ‖x₀ − D₋ₙ‖² − ‖x₀ − D‖² = δ_n · (2 (x₀ − D) + δ_n), to first order in a_n by
2 (x₀ − D) · (b_n − D a_n). (The influence is ours; the machine is theirs.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribench.data import to_unit_range
from attribench.errors import UsageError
from attribench.methods.nda.engine.partial import rescaled
from attribench.methods.nda.patches import Geometry
from attribench.methods.nda.task import PatchTask

Order = Literal["first", "leave-one-out"]
ORDERS: tuple[Order, ...] = get_args(Order)

#: If all other train images have less than 2^-64 of a position's weight, the machine without one knows nothing there.
NOTHING = 64

#: How far below the best match, in units of ln 2, a candidate may lie and still count. To first order, 2^16 of what is left
#: out are below float32's resolution. Without the best image, others take its place: 2^24 of what is left out are 2^-16 of
#: the least that counts.
CUTS: dict[Order, int] = {"first": 40, "leave-one-out": NOTHING + 24 + 16}

_CHUNK = 2**12  # images, while the mean is taken


@dataclass(frozen=True, eq=False)
class MachineTask:
    """A query at one timestep.

    Args:
        clean: x₀ in [-1, 1], floating point ``(C, H, W)``.
        noisy: x_t = √ᾱ x₀ + √(1−ᾱ) ε, likewise.
        alpha_bar: ᾱ_t, strictly between 0 and 1.
        patch_size: side P of the patches, odd; may exceed the image.
    """

    clean: Tensor
    noisy: Tensor
    alpha_bar: float
    patch_size: int

    def __post_init__(self) -> None:
        check_odd(self.patch_size)

    @property
    def patches(self) -> PatchTask:
        """What NDA's engine is asked."""
        return PatchTask(self.noisy, self.alpha_bar, self.patch_size, top_k=1)


def check_odd(patch_size: int, name: str = "patch_size") -> None:
    """Raise UsageError, calling it ``name``, unless a patch of this side has a pixel in its middle."""
    if patch_size < 1 or patch_size % 2 == 0:
        raise UsageError(f"{name} must be odd here, for a patch to have a pixel in its middle; got {patch_size}.")


@dataclass(frozen=True, eq=False)
class Totals:
    """What all train images together give to each position: Σ w in the first row, then Σ w y, a channel each.

    Kept in two parts, because 1 − a_n cannot be had by subtraction where one image holds nearly all weight.

    Args:
        peak: float64 ``(positions,)``, the logit, in units of ln 2, that the sums are relative to; whole numbers.
        top: float64 ``(1 + C, positions)``, of the image with the largest weight there.
        rest: likewise, of all others.
    """

    peak: NDArray[np.float64]
    top: NDArray[np.float64]
    rest: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int, positions: int) -> Totals:
        """Of no image."""
        nothing = np.zeros((1 + channels, positions))
        return cls(np.full(positions, -np.inf), nothing, nothing)

    @classmethod
    def of(cls, sums: NDArray[np.float32], peak: NDArray[np.float64]) -> Totals:
        """Of images with these sums, ``(num_images, 1 + C, positions)``, relative to ``peak``."""
        first = sums[:, 0].argmax(0)
        top = np.take_along_axis(sums, first[None, None], 0)[0].astype(np.float64)
        others = sums.copy()  # not total − top: what is left may be far below its rounding
        np.put_along_axis(others, np.broadcast_to(first[None, None], (1, *sums.shape[1:])), 0.0, 0)
        return cls(peak, top, others.sum(0, dtype=np.float64))

    def merged(self, other: Totals) -> Totals:
        """Of the images of both, which must be different ones."""
        peak = np.maximum(self.peak, other.peak)
        parts = [(rescaled(t.top, t.peak - peak), rescaled(t.rest, t.peak - peak)) for t in (self, other)]
        (a, a_rest), (b, b_rest) = parts
        first = a[0] >= b[0]
        return Totals(peak, np.where(first, a, b), a_rest + b_rest + np.where(first, b, a))

    @property
    def denoised(self) -> NDArray[np.float64]:
        """D, ``(C, positions)``."""
        total = self.top + self.rest
        return np.asarray(total[1:] / total[0])


def influence(
    clean: NDArray[np.float64],
    sums: NDArray[np.float32],
    peak: NDArray[np.float64],
    totals: Totals,
    order: Order,
    prior: NDArray[np.float64],
) -> NDArray[np.float64]:
    """By how much the machine's squared error, summed over positions and channels, would grow without each image.

    Args:
        clean: x₀, ``(C, positions)``.
        sums: of some train images, ``(num_images, 1 + C, positions)``, relative to ``peak``.
        peak: ``(positions,)``.
        totals: of all train images.
        order: ``first``, or ``leave-one-out`` for the exact difference.
        prior: ``(C, positions)``, what the machine answers where without an image it knows nothing; see :data:`NOTHING`.

    Returns:
        ``(num_images,)``, in squared units of pixels in [-1, 1]; signed: positive = proponent.
    """
    denoised, weight = totals.denoised, totals.top[0] + totals.rest[0]
    missed = clean - denoised
    scale = rescaled(1.0, peak - totals.peak)
    a, b = sums[:, 0] * scale, sums[:, 1:] * scale
    # An image with most of a position's weight, one at most, leaves differences that would be rounding: the others' sums
    # tell them.
    images, positions = (a > 0.5 * weight).nonzero()
    own_a, own_b, own_weight = a[images, positions], b[images, :, positions].T, weight[positions]
    rest_a, rest_b = totals.rest[0, positions], totals.rest[1:, positions]
    b -= denoised * a[:, None]
    if order == "first":
        b /= weight
        b[images, :, positions] = ((own_b * rest_a - own_a * rest_b) / own_weight**2).T
        return np.asarray((b * (2.0 * missed)).sum((1, 2)))
    a[images, positions] = 0.0
    b /= (weight - a)[:, None]
    known = rest_a > 2.0**-NOTHING * own_weight
    without = np.where(known, rest_b / np.where(known, rest_a, 1.0), prior[:, positions])
    b[images, :, positions] = (denoised[:, positions] - without).T
    return np.asarray((b * (2.0 * missed + b)).sum((1, 2)))


def candidate_mean(train: Tensor, patch_size: int) -> NDArray[np.float64]:
    """The mean pixel over all that a position may match: the machine's answer when it knows nothing of the query.

    Args:
        train: uint8, or floating point in [-1, 1], ``(num_train, C, H, W)``.
        patch_size: odd.

    Returns:
        ``(C, H·W)``.
    """
    total = torch.zeros(train.shape[1:], dtype=torch.float64)
    for images in torch.split(train, _CHUNK):
        images = to_unit_range(images) if images.dtype == torch.uint8 else images
        total += images.sum(0, dtype=torch.float64).cpu()
    mean = total / len(train)
    geometry = Geometry(mean.shape[1], mean.shape[2], patch_size)
    for axis, size in ((1, geometry.height), (2, geometry.width)):
        # A patch that hangs over an edge matches only those that hang over it alike; one inside, all that lie inside.
        inside = mean.narrow(axis, min(geometry.padding, size), max(0, size - patch_size + 1))
        if inside.shape[axis]:
            inside.copy_(inside.mean(axis, keepdim=True).expand_as(inside).clone())
    return np.asarray(mean.flatten(1).numpy())
