import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import train_test_split

from attribench.errors import DataError
from attribench.settings import GroundTruthSettings
from attribench.truth.subsets import subset_masks


@pytest.mark.parametrize("stratified", [True, False])
def test_masks_are_the_protocol_s_splits(stratified: bool) -> None:
    labels = torch.arange(50) % 3
    masks = subset_masks(50, labels if stratified else None, GroundTruthSettings(num_subsets=5))
    frame = pd.DataFrame({"label": labels.numpy()})
    for k in range(5):
        half, _ = train_test_split(
            frame, train_size=0.5, random_state=42 + k, stratify=frame["label"] if stratified else None
        )
        assert set(masks[k].nonzero().flatten().tolist()) == set(half.index)
    assert masks.sum(dim=1).tolist() == [25] * 5


def test_too_few_images_are_a_clear_error() -> None:
    with pytest.raises(DataError, match="cannot be split"):
        subset_masks(3, torch.tensor([0, 0, 1]), GroundTruthSettings(num_subsets=2))


def test_subsets_differ() -> None:
    masks = subset_masks(40, None, GroundTruthSettings(num_subsets=20))
    assert len(np.unique(masks.numpy(), axis=0)) == 20
