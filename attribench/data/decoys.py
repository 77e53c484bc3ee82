"""Images that stand for those that a query has nothing to do with, set apart from the train images."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.data.copies import Copies
from attribench.data.image_sets import ImageSet

#: A random tenth of the train images is set apart, but never fewer than so many: of fewer, tails are not known, and nothing
#: could ever stand out.
FEWEST_SET_APART = 50

#: So many different train images there must be to set some apart.
FEWEST_TRAIN = 4 * FEWEST_SET_APART


def set_apart(images: ImageSet, copies: Copies, seed: int) -> tuple[ImageSet, ImageSet, int]:
    """A random tenth of the different images, or :data:`FEWEST_SET_APART`, and the rest.

    Images that are equal, pixel by pixel, are set apart together, or stay together: a decoy that is in the train set as well
    would hide what was made of it. One of them is a decoy, for copies are one draw.

    Args:
        images: all of them.
        copies: which of them are equal.
        seed: the same seed sets the same images apart.

    Returns:
        The rest, the decoys, either in the order of the whole, and how many copies of decoys are in neither.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "decoys", "set apart"))
    order = torch.randperm(len(copies.first), generator=generator)
    drawn = order[: max(-(-len(order) // 10), FEWEST_SET_APART)]
    apart = torch.isin(copies.which, drawn)
    decoys = copies.first[drawn].sort().values
    rest = (~apart).nonzero().flatten()
    return images.select(rest.tolist()), images.select(decoys.tolist()), int(apart.sum()) - len(decoys)


def without_copies(decoys: ImageSet, train: ImageSet) -> ImageSet:
    """The decoys that are not equal, pixel by pixel, to a train image or to a decoy before them.

    The one may have been trained on; copies of a decoy are not as many draws from what an unrelated image scores.
    """
    known = {_content(image) for image in train.images}
    kept: list[int] = []
    for number, image in enumerate(decoys.images):
        content = _content(image)
        if content not in known:
            kept.append(number)
            known.add(content)
    return decoys.select(kept)


def _content(image: Tensor) -> bytes:
    return image.contiguous().numpy().tobytes()
