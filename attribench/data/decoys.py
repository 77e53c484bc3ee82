"""Images that stand for those that a query has nothing to do with: set apart from the train images, or made from them."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.data.image_sets import ImageSet

#: A tenth of the train images is set apart if it has so many; fewer would see only what is far above all of them.
FEWEST_SET_APART = 100

#: Other crops of each mirrored image, and their side as a share of the image's.
_CROPS, _CROP = 2, 0.85


def set_apart(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """A random tenth, and the rest: ``(rest, tenth)``, either in the order of the whole."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "decoys", "set apart"))
    order = torch.randperm(len(images), generator=generator).tolist()
    number = len(images) // 10
    return images.select(sorted(order[number:])), images.select(sorted(order[:number]))


def variants(images: ImageSet, seed: int) -> ImageSet:
    """Mirror images, and two other crops of each mirror image; those that are equal to an image of the set are left out.

    What is copied from an image has little to do with its mirror image, for methods that do not compare these too.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "decoys", "variants"))
    mirrored = images.images.flip(-1)
    parts, names = [mirrored], [f"mirrored/{name}" for name in images.ids]
    for number in range(_CROPS):
        parts.append(torch.stack([_other_crop(image, generator) for image in mirrored]))
        names += [f"mirrored crop {number + 1}/{name}" for name in images.ids]
    labels = None if images.labels is None else images.labels.repeat(len(parts))
    return without_copies(ImageSet(torch.cat(parts), tuple(names), labels), images)


def without_copies(decoys: ImageSet, train: ImageSet) -> ImageSet:
    """The decoys that are not equal, pixel by pixel, to a train image: such a one may have been trained on."""
    known = {_content(image) for image in train.images}
    return decoys.select([number for number, image in enumerate(decoys.images) if _content(image) not in known])


def _content(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()


def _other_crop(image: Tensor, generator: torch.Generator) -> Tensor:
    """A square of 85 % of the side from a random place, brought to the full size."""
    side = image.shape[-1]
    kept = max(2, round(_CROP * side))
    top, left = torch.randint(0, side - kept + 1, (2,), generator=generator).tolist()
    crop = image[:, top : top + kept, left : left + kept].float()
    resized = torch.nn.functional.interpolate(
        crop[None], size=image.shape[-2:], mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)
