"""Handwritten digits that scikit-learn brings along: nothing to download, small enough for a CPU."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from attribench import ImageSet, register_datamodule
from attribench.data import AttributionDataModule
from attribench.datamodules._splits import Indices, check_range, choose


@register_datamodule("digits")
class Digits(AttributionDataModule):
    """scikit-learn's 1,797 handwritten digits, 8×8 grey; train images and queries are disjoint, in class proportions.

    Args:
        num_train: how many train images to choose.
        num_queries: how many validation queries to choose from the rest.
    """

    #: The digits in use; None: all.
    classes: ClassVar[tuple[int, ...] | None] = None

    licence = "CC BY 4.0, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository"

    def __init__(self, num_train: int = 500, num_queries: int = 100) -> None:
        super().__init__()
        check_range("num_train", num_train, 1)
        check_range("num_queries", num_queries, 1)
        self.num_train, self.num_queries = num_train, num_queries

    @property
    def label(self) -> str:
        return "digits"

    def load(self) -> tuple[ImageSet, ImageSet]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # The files hold 17 levels of grey, 0 to 16.
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        labels = bunch.target.astype(np.int64)

        def select(indices: Indices) -> ImageSet:
            return ImageSet(
                images=torch.from_numpy(pixels[indices, None]),
                ids=tuple(f"digits-{index}" for index in indices),
                labels=torch.from_numpy(labels[indices]),
            )

        everything = np.arange(len(labels))
        if self.classes is not None:
            everything = everything[np.isin(labels, self.classes)]
        train = choose(everything, self.num_train, labels[everything], option="num_train")
        rest = np.setdiff1d(everything, train)
        return select(train), select(choose(rest, self.num_queries, labels[rest], option="num_queries"))
