"""How images enter a diffusion model: the space they are noised in, and what the network is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from attribench.data import ImageSet
from attribench.errors import DataError


class Images(Protocol):
    """What train images and queries have in common."""

    @property
    def images(self) -> Tensor:
        """uint8 ``(N, C, H, W)``."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One name an image."""

    @property
    def labels(self) -> Tensor | None:
        """int64 ``(N,)``, or None."""


#: Of each image what the network is told beside it, by the name of its argument; the first dimension counts images.
Conditions = Mapping[str, Tensor]


class ModelInputs(Protocol):
    """What is between images and the network."""

    @property
    def spec(self) -> dict[str, Any]:
        """What it adds to a specification, beside the images that :meth:`seen` gives."""

    def seen(self, images: Images) -> ImageSet:
        """The images, with what the model is given of them alone: what results that come from the model depend on.

        Raises:
            DataError: something that the model is given is not known of the images.
        """

    def clean(self, images: ImageSet) -> Tensor:
        """x in the space that noise is added in: float ``(N, C, H, W)``, or uint8 pixels that stand for [-1, 1]."""

    def conditions(self, images: ImageSet) -> dict[str, Tensor]:
        """What the network is told of each image."""


@dataclass(frozen=True)
class PixelInputs:
    """Noise is added to pixels in [-1, 1]; a network with classes is told an image's own.

    Args:
        num_classes: that the network knows; 0 for one that is told nothing.
    """

    num_classes: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        """Nothing: what matters is in the images and their labels."""
        return {}

    def seen(self, images: Images) -> ImageSet:
        """Pixels and names, with labels for a network with classes.

        Raises:
            DataError: there are no labels, or one is no class of the network.
        """
        if not self.num_classes:
            return ImageSet(images.images, images.ids)
        if images.labels is None:
            raise DataError(
                f"The model knows {self.num_classes} classes, and these images have none: put them into one subfolder a "
                "class, or give labels."
            )
        low, high = (int(value) for value in torch.aminmax(images.labels))
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise DataError(f"There is no class {wrong}: the model knows {self.num_classes} classes, numbered from 0.")
        return ImageSet(images.images, images.ids, images.labels)

    def clean(self, images: ImageSet) -> Tensor:
        """The pixels as they are."""
        return images.images

    def conditions(self, images: ImageSet) -> dict[str, Tensor]:
        """The class labels, for a network with classes."""
        return {} if images.labels is None or not self.num_classes else {"class_labels": images.labels}
