"""How far a regenerated image moved from the original one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from attribench.computing.seeding import derive_seed
from attribench.errors import DataError
from attribench.metrics.resampling import Interval

#: SSIM's windows need so many pixels a side, and the usual ones so many.
SMALLEST_SIDE, _USUAL_SIDE = 5, 16


def pixel_distance(originals: Tensor, regenerated: Tensor) -> Tensor:
    """Euclidean distance of all pixels and channels, in [0, 1].

    Args:
        originals: uint8 ``(num_queries, C, H, W)``.
        regenerated: uint8 ``(num_queries, num_seeds, C, H, W)``.

    Returns:
        float64 ``(num_queries, num_seeds)``, 0 for equal images and at most √(C·H·W).

    Raises:
        DataError: shapes that do not fit together.
    """
    _check(originals, regenerated)
    difference = (originals[:, None].double() - regenerated.double()) / 255.0
    return difference.flatten(2).square().sum(dim=2).sqrt()


def structural_similarity(originals: Tensor, regenerated: Tensor) -> Tensor:
    """SSIM (Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 13, 2004), by torchmetrics.

    Windows are Gaussian, of 11×11 pixels and deviation 1.5 as published; in images of fewer than 16 pixels a side, which
    those would hardly fit into, of 5×5 and 0.5.

    Args:
        originals: uint8 ``(num_queries, C, H, W)``.
        regenerated: uint8 ``(num_queries, num_seeds, C, H, W)``.

    Returns:
        float64 ``(num_queries, num_seeds)`` in [-1, 1]; 1 for equal images.

    Raises:
        DataError: shapes that do not fit together, or images of fewer than 5 pixels a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(originals, regenerated)
    side = min(originals.shape[-2:])
    if side < SMALLEST_SIDE:
        raise DataError(f"SSIM needs images of {SMALLEST_SIDE} pixels a side at least; these have {side}.")
    wide = originals[:, None].expand_as(regenerated).flatten(0, 1)
    edge, deviation = (5, 1.5) if side >= _USUAL_SIDE else (2, 0.5)
    _, everywhere = structural_similarity_index_measure(
        regenerated.flatten(0, 1).double() / 255.0,
        wide.double() / 255.0,
        sigma=deviation,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    # As published, of windows within the image; versions of torchmetrics differ in whether they leave out the others.
    return everywhere[..., edge:-edge, edge:-edge].flatten(1).mean(dim=1).reshape(regenerated.shape[:2])


def embedding_cosine(originals: Tensor, regenerated: Tensor) -> Tensor:
    """Cosine of embeddings, such as CLIP's.

    Args:
        originals: ``(num_queries, dimensions)``.
        regenerated: ``(num_queries, num_seeds, dimensions)``.

    Returns:
        float64 ``(num_queries, num_seeds)`` in [-1, 1]; 1 for equal directions.

    Raises:
        DataError: shapes that do not fit together.
    """
    _check(originals, regenerated)
    return F.cosine_similarity(originals[:, None].double(), regenerated.double(), dim=2)


def median_interval(
    values: NDArray[np.float64], *, level: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the median over queries.

    Args:
        values: ``(num_queries,)``, at least one.
        level: nominal coverage, in (0, 1).
        num_resamples: of the queries, with replacement.
        seed: the same seed gives the same interval.
    """
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", "median"))
    drawn = generator.integers(0, len(values), (num_resamples, len(values)))
    low, high = np.quantile(np.median(np.asarray(values)[drawn], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _check(originals: Tensor, regenerated: Tensor) -> None:
    if regenerated.ndim < 2 or (len(originals), *originals.shape[1:]) != (len(regenerated), *regenerated.shape[2:]):
        raise DataError(
            f"originals {tuple(originals.shape)} and regenerated {tuple(regenerated.shape)} must be "
            "(num_queries, ...) and (num_queries, num_seeds, ...)."
        )
