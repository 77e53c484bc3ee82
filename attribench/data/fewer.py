"""A data set with fewer train images."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.data.image_sets import AttributionDataModule, ImageSet
from attribench.errors import UsageError


class Fewer(AttributionDataModule):
    """The same validation queries, and some of the train images: with more of them, those of fewer are among them.

    Where subsets keep the class proportions, so do these.

    Args:
        data: the whole.
        num_train: how many train images.

    Raises:
        UsageError: there are not so many, or fewer than 2 are asked for.
    """

    def __init__(self, data: AttributionDataModule, num_train: int) -> None:
        super().__init__()
        there = len(data.train)
        if not 2 <= num_train <= there:
            raise UsageError(
                f"{num_train} train images were asked for: {data.label} has {there} here, and 2 are the fewest."
            )
        self._data, self._num_train = data, num_train

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
        train = self._data.train
        order = nested_order(len(train), train.labels if self.stratify else None)
        return train.select(sorted(order[: self._num_train].tolist())), self._data.validation


def nested_order(num_images: int, labels: Tensor | None) -> Tensor:
    """A random order in which every beginning has nearly the class proportions of the whole: int64 ``(num_images,)``.

    Image number k of the n of its class, in random order, stands at (k + u) / n with u evenly drawn from 0…1.
    """
    generator = torch.Generator().manual_seed(derive_seed(0, "fewer train images"))
    place = torch.rand(num_images, generator=generator, dtype=torch.float64)
    if labels is None:
        return place.argsort()
    for label in sorted(set(labels.tolist())):
        of_class = (labels == label).nonzero().flatten()
        shuffled = of_class[torch.randperm(len(of_class), generator=generator)]
        steps = torch.arange(len(of_class), dtype=torch.float64)
        place[shuffled] = (steps + place[shuffled]) / len(of_class)
    return place.argsort()
