"""A data set whose train images hold copies of some of the validation queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attribench.data.image_sets import AttributionDataModule, ImageSet


class Planted(AttributionDataModule):
    """The same queries; the train images, and after them the first copy of each chosen query, then the second, and so on.

    Args:
        data: the data set.
        chosen: validation queries, by number.
        num_copies: of each.
    """

    def __init__(self, data: AttributionDataModule, chosen: Sequence[int], num_copies: int) -> None:
        super().__init__()
        self._data, self._chosen, self._num_copies = data, list(chosen), num_copies

    @property
    def label(self) -> str:
        return self._data.label

    @property
    def stratify(self) -> bool:
        return self._data.stratify

    @property
    def prompts(self) -> tuple[str, ...]:
        return self._data.prompts

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, validation = self._data.train, self._data.validation
        planted = validation.select(self._chosen)
        names = [f"copy {number + 1} of {name}" for number in range(self._num_copies) for name in planted.ids]
        labels = None
        if train.labels is not None and planted.labels is not None:
            labels = torch.cat([train.labels, planted.labels.repeat(self._num_copies)])
        images = torch.cat([train.images, planted.images.repeat(self._num_copies, 1, 1, 1)])
        captions = None
        if train.captions is not None and planted.captions is not None:
            captions = (*train.captions, *planted.captions * self._num_copies)
        return ImageSet(images, (*train.ids, *names), labels, captions), validation
