"""What the readers of published ground truth return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: Positions or numbers of images, one axis.
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImportedTruth:
    """Which images each retrained model saw, and its losses on the queries.

    A loss is higher the worse the model does: where a publication stores the negated loss, its sign is turned back.

    Attributes:
        masks: ``(num_subsets, num_train)``, true where the subset holds the image.
        train_indices: ``(num_train,)``, the position of each train image in the publication's data set.
        losses: by query set (``"validation"``, ``"generation"``), float32 or float64
            ``(num_subsets, num_seeds, num_draws, num_bands, num_queries)``: the mean over the timesteps of the band.
        query_indices: by query set, ``(num_queries,)``, the position of each query in the publication's query images.
        subsets, seeds, draws: the publication's own numbers of the first three axes of ``losses``.
        bands: the timesteps that each band averages; empty where losses are not of timesteps.
    """

    masks: npt.NDArray[np.bool_]
    train_indices: Indices
    losses: Mapping[str, npt.NDArray[np.floating[Any]]]
    query_indices: Mapping[str, Indices]
    subsets: tuple[int, ...]
    seeds: tuple[int, ...]
    draws: tuple[int, ...]
    bands: tuple[range, ...]
