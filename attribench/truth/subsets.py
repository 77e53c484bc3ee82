"""The random halves of the training set that models are retrained on."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.errors import DataError
from attribench.settings import GroundTruthSettings


def subset_masks(num_train: int, labels: Tensor | None, settings: GroundTruthSettings) -> Tensor:
    """Which train images each subset holds.

    Subset k is scikit-learn's ``train_test_split(train, train_size=fraction, random_state=seed + k, stratify=labels)``.

    Args:
        num_train: number of train images.
        labels: int64 ``(num_train,)`` to keep the class proportions, or None not to.

    Returns:
        bool ``(num_subsets, num_train)``.

    Raises:
        DataError: there are too few images to split that way.
    """
    from sklearn.model_selection import train_test_split

    masks = torch.zeros(settings.num_subsets, num_train, dtype=torch.bool)
    for k in range(settings.num_subsets):
        try:
            inside, _ = train_test_split(
                range(num_train),
                train_size=settings.subset_fraction,
                random_state=settings.seed + k,
                stratify=None if labels is None else labels.numpy(),
            )
        except ValueError as error:
            raise DataError(f"The {num_train} train images cannot be split into subsets: {error}") from error
        masks[k, torch.as_tensor(inside)] = True
    return masks
