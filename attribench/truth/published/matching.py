"""Which of a data set's images the indices of published ground truth mean, and the ground truth in the data set's order."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch

from attribench.data import ImageSet
from attribench.errors import DataError
from attribench.truth.ground_truth import Band, GroundTruth
from attribench.truth.published.imported import ImportedTruth, Indices


def numbers_in_ids(images: ImageSet) -> Indices:
    """The numbers that ids end with: ``cifar10-train-907`` is row 907 of CIFAR-10's train part.

    Raises:
        DataError: an id ends with no number, or two with the same: such a data set has no rows to be told apart.
    """
    found = [re.search(r"[0-9]{1,18}$", name) for name in images.ids]
    if None in found:
        raise DataError(f"The image {images.ids[found.index(None)]!r} is no numbered row of a published data set.")
    numbers = np.array([int(match[0]) for match in found if match], np.int64)
    if len(np.unique(numbers)) < len(numbers):
        raise DataError(
            "Two images have the same number at the end of their ids: they are no rows of a published data set."
        )
    return numbers


def order_of(published: Indices, ours: Indices, what: str) -> Indices:
    """Where each of our images is in the published order: ``published[order]`` equals ``ours``.

    Args:
        published: the images' numbers as published, each once.
        ours: the numbers of the data set at hand, each once.
        what: which images: ``"train"``, or a query set.

    Raises:
        DataError: they are not the same images.
    """
    absent, extra = np.setdiff1d(published, ours), np.setdiff1d(ours, published)
    if len(absent) or len(extra):
        first = (
            f"number {absent[0]} is published alone" if len(absent) else f"number {extra[0]} is in the data set alone"
        )
        raise DataError(
            f"The published {what} images are not the data set's: {len(published)} are published and {len(ours)} in the data "
            f"set, {len(published) - len(absent)} of them the same; {first}. Options --data.* choose others."
        )
    sorter = np.argsort(published).astype(np.int64)
    return sorter[np.searchsorted(published, ours, sorter=sorter)]


def ground_truths(truth: ImportedTruth, numbers: Mapping[str, Indices]) -> dict[str, GroundTruth]:
    """Published ground truth by query set, in the order of the data set at hand.

    Noise draws are averaged where several training seeds say how noisy the ground truth is.

    Args:
        truth: as published.
        numbers: the numbers of our images, of ``"train"`` and of each query set.

    Raises:
        DataError: they are not the published ones.
    """
    train = order_of(truth.train_indices, numbers["train"], "train")
    masks = torch.from_numpy(truth.masks[:, train])
    # Losses that are of no timesteps count as one measurement over all noise.
    bands = [Band(band.start, band.stop, len(band)) if len(band) else Band(0, 1000, 1) for band in truth.bands]
    found = {}
    for name, losses in truth.losses.items():
        order = order_of(truth.query_indices[name], numbers[name], name)
        if len(truth.seeds) > 1:
            losses = losses.mean(axis=2, keepdims=True, dtype=np.float64).astype(losses.dtype)
        found[name] = GroundTruth(masks, torch.from_numpy(np.ascontiguousarray(losses[..., order])), bands)
    return found
