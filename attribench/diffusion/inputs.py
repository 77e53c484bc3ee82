"""How images enter a diffusion model: the space they are noised in, and what the network is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attribench.data import ImageSet
from attribench.errors import DataError


class Images(Protocol):
    """What train images and queries have in common."""

    @property
    def images(self) -> Tensor:
        """uint8 ``(N, C, H, W)``, or float32 latents."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One name an image."""

    @property
    def labels(self) -> Tensor | None:
        """int64 ``(N,)``, or None."""

    @property
    def captions(self) -> tuple[str | None, ...] | None:
        """One an image, None for one without; or None."""

    @property
    def latent(self) -> bool:
        """Whether these are latents."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One row an image, of a table that is shorter where images share rows: what was made of a caption, say.

    Attributes:
        table: ``(num_rows, …)``.
        index: int64 ``(num_images,)``: each image's row.
    """

    table: Tensor
    index: Tensor

    def of(self, images: slice) -> Tensor:
        """The rows of some images, ``(n, …)``."""
        return self.table[self.index[images]]


#: Of each image what the network is told beside it, by the name of its argument; the first dimension counts images.
Conditions = Mapping[str, Tensor | Rows]


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

    def conditions(self, images: ImageSet) -> Conditions:
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
        return ImageSet(images.images, images.ids, known_labels(images.labels, self.num_classes))

    def clean(self, images: ImageSet) -> Tensor:
        """The pixels as they are."""
        return images.images

    def conditions(self, images: ImageSet) -> Conditions:
        """The class labels, for a network with classes."""
        return {} if images.labels is None or not self.num_classes else {"class_labels": images.labels}


@dataclass(frozen=True, eq=False)
class LatentInputs:
    """Noise is added to latents; a network may be told what a text encoder made of an image's caption, and its class.

    Args:
        captions: every caption that there is, with its row in ``embeddings``; none for a network that is told no text.
        embeddings: float32 ``(num_captions, tokens, width)``.
        text: identifies the text encoder and its tokenizer.
        num_classes: that the network knows; 0 for none.
    """

    captions: Mapping[str, int] = field(default_factory=dict)
    embeddings: Tensor | None = None
    text: str = ""
    num_classes: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        """What it is told; latents enter by their content, with the images."""
        return {"text": self.text} if self.embeddings is not None else {}

    def seen(self, images: Images) -> ImageSet:
        """Latents and names, with captions for a network that is told a text, and labels for one with classes.

        Images without captions, all of them, are told the empty text.

        Raises:
            DataError: these are pixels; some have captions and some have none; or labels are missing or no class.
        """
        if not images.latent:
            raise DataError("The model works on latents, and these are pixels: they were not encoded.")
        labels = known_labels(images.labels, self.num_classes)
        captions = None if self.embeddings is None else all_captions(images.captions, images.ids)
        return ImageSet(images.images, images.ids, labels, captions, latent=True)

    def clean(self, images: ImageSet) -> Tensor:
        """The latents as they are."""
        return images.images

    def conditions(self, images: ImageSet) -> Conditions:
        """The embedded captions and class labels, for a network that is told these.

        Raises:
            DataError: a caption was not embedded.
        """
        told: dict[str, Tensor | Rows] = dict(PixelInputs(self.num_classes).conditions(images))
        if self.embeddings is not None:
            captions = all_captions(images.captions, images.ids)
            unknown = next((caption for caption in captions if caption not in self.captions), None)
            if unknown is not None:
                raise DataError(f"The caption {unknown!r} was not embedded.")
            index = torch.tensor([self.captions[caption] for caption in captions])
            told["encoder_hidden_states"] = Rows(self.embeddings, index)
        return told


def known_labels(labels: Tensor | None, num_classes: int) -> Tensor | None:
    """Labels that a network with classes knows; None for one without.

    Raises:
        DataError: there are no labels, or one is no class of the network.
    """
    if not num_classes:
        return None
    if labels is None:
        raise DataError(
            f"The model knows {num_classes} classes, and these images have none: put them into one subfolder a class, or give "
            "labels."
        )
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(f"There is no class {wrong}: the model knows {num_classes} classes, numbered from 0.")
    return labels


def all_captions(captions: Sequence[str | None] | None, ids: Sequence[str], what: str = "images") -> tuple[str, ...]:
    """A caption for every image: the empty one where no image has one.

    Raises:
        DataError: some have captions and some have none.
    """
    if captions is None:
        return ("",) * len(ids)
    missing = [name for name, caption in zip(ids, captions, strict=True) if caption is None]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(ids)} {what} have no caption ({shown}): give every one a caption, or none at all. "
            "An empty text file, or an empty text in JSONL, stands for the empty caption."
        )
    return tuple(caption for caption in captions if caption is not None)
