"""The one form images have inside attribench, and the base class of data modules."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import lightning as L
import torch
from torch import Tensor

from attribench.errors import DataError

#: Bytes of pixels that are looked at together when a set is hashed: sets may be larger than memory.
_HASHED_BYTES = 2**24


def to_unit_range(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [-1, 1], the range every diffusion model and method here works in."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_rgb(image: Tensor) -> Tensor:
    """uint8 ``(C, H, W)`` as ``(H, W, 3)``, grey repeated."""
    return (image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]).permute(1, 2, 0).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with the names they keep for ever.

    Args:
        images: uint8 ``(num_images, channels, height, width)``, or float32 latents.
        ids: one stable, unique name an image (``"train/cat/001.png"``, ``"cifar10-train-17"``). Noise is a function of it.
        labels: int64 ``(num_images,)``, or None when the data has no classes.
        captions: one an image, None for an image without; or None when the data has no captions.
        latent: whether ``images`` are latents, which a model works on, in place of pixels.
    """

    images: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None
    captions: tuple[str | None, ...] | None = None
    latent: bool = False

    def __post_init__(self) -> None:
        kind = torch.float32 if self.latent else torch.uint8
        if self.images.dtype != kind or self.images.ndim != 4:
            what, name = ("Latents", "float32") if self.latent else ("Images", "uint8")
            raise DataError(f"{what} must be {name} (N, C, H, W); got {self.images.dtype} {tuple(self.images.shape)}.")
        if len(self.ids) != len(self.images):
            raise DataError(f"{len(self.images)} images but {len(self.ids)} ids.")
        if len(set(self.ids)) != len(self.ids):
            raise DataError("Sample ids must be unique.")
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(f"{len(self.images)} images but labels of shape {tuple(self.labels.shape)}.")
        if self.captions is not None and len(self.captions) != len(self.images):
            raise DataError(f"{len(self.images)} images but {len(self.captions)} captions.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> ImageSet:
        """Some images that lie side by side; pixels are not copied."""
        labels = None if self.labels is None else self.labels[index]
        captions = self.captions and self.captions[index]
        return ImageSet(self.images[index], self.ids[index], labels, captions, self.latent)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def unit_range(self) -> Tensor:
        """Pixels as float32 in [-1, 1], ``(N, C, H, W)``; latents as they are."""
        return self.images if self.latent else to_unit_range(self.images)

    def select(self, indices: Sequence[int]) -> ImageSet:
        """The images at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(
            images=self.images[index],
            ids=tuple(self.ids[i] for i in index.tolist()),
            labels=None if self.labels is None else self.labels[index],
            captions=self.captions and tuple(self.captions[i] for i in index.tolist()),
            latent=self.latent,
        )

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape, pixels, ids, labels and captions: what enters artifact specifications."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        step = max(1, _HASHED_BYTES // max(1, self.images[:1].numel()))
        for begin in range(0, len(self), step):
            part = self.images[begin : begin + step].numpy()
            digest.update(part.ravel().data)  # no copy, except where channels are repeated
        digest.update("\x1f".join(self.ids).encode())
        if self.labels is not None:
            digest.update(self.labels.to(torch.int64).contiguous().numpy().tobytes())
        if self.captions is not None:
            digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()


class AttributionDataModule(L.LightningDataModule, ABC):
    """A data set: train images and held-out validation queries, loaded once by :meth:`load`.

    A subclass's ``__init__`` parameters are the data set's options (``--data.NAME`` on the command line). Register it
    with :func:`attribench.register_datamodule`, as an entry point in ``attribench.datamodules``, or name its import path.
    """

    #: The licence under which the images may be passed on; None if they may not, or nobody has said so.
    licence: ClassVar[str | None] = None
    #: Whether records hold some of the images, for galleries and figures; ``--galleries`` decides otherwise.
    galleries: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._sets: tuple[ImageSet, ImageSet] | None = None

    @property
    @abstractmethod
    def label(self) -> str:
        """The name results are filed under, e.g. ``"cifar2"``."""

    @property
    def stratify(self) -> bool:
        """Whether random subsets keep the class proportions (needs labels)."""
        return True

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return (train images, validation queries), all of one image shape.

        Raises:
            DataError: files are missing or unreadable; the message says what to fetch and where to put it.
        """

    @property
    def prompts(self) -> tuple[str, ...]:
        """The captions that images are generated with by models that are told a text; none: the train images' own, sorted."""
        return ()

    def setup(self, stage: str | None = None) -> None:
        if self._sets is not None:
            return
        train, validation = self.load()
        if not len(train):
            raise DataError(f"{self.label}: no train images.")
        if not len(validation):
            raise DataError(f"{self.label}: no validation queries.")
        if train.image_shape != validation.image_shape:
            raise DataError(
                f"{self.label}: queries of shape {validation.image_shape} cannot be compared with train images of shape "
                f"{train.image_shape} (channels, height, width)."
            )
        self._sets = (train, validation)

    @property
    def train(self) -> ImageSet:
        """The train images, ``(num_train, C, H, W)``."""
        self.setup()
        assert self._sets is not None
        return self._sets[0]

    @property
    def validation(self) -> ImageSet:
        """The held-out validation queries, ``(num_queries, C, H, W)``."""
        self.setup()
        assert self._sets is not None
        return self._sets[1]
