"""Decoys: a tenth set apart; never a train image."""

from __future__ import annotations

import torch

from attribench.data import ImageSet
from attribench.data.copies import Copies
from attribench.data.decoys import set_apart, without_copies


def images(count: int, side: int = 10) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{number}.png" for number in range(count)))


def apart(whole: ImageSet, seed: int) -> tuple[ImageSet, ImageSet, int]:
    return set_apart(whole, Copies.of(whole.images), seed)


def test_a_tenth_is_set_apart_at_random_and_the_rest_is_the_rest() -> None:
    whole = images(600)
    rest, tenth, copies = apart(whole, 1)
    assert (len(tenth), copies) == (60, 0)
    assert set(rest.ids).isdisjoint(tenth.ids)
    assert set(rest.ids) | set(tenth.ids) == set(whole.ids)
    assert tenth.ids != whole.ids[:60]
    assert rest.ids == tuple(name for name in whole.ids if name in set(rest.ids))
    for part in (rest, tenth):
        for name, image in zip(part.ids, part.images, strict=True):
            assert torch.equal(image, whole.images[whole.ids.index(name)])
    assert apart(whole, 1)[1].ids == tenth.ids
    assert apart(whole, 2)[1].ids != tenth.ids


def test_no_fewer_are_set_apart_than_tails_need() -> None:
    assert [len(part) for part in apart(images(220), 0)[:2]] == [170, 50]


def test_copies_are_set_apart_together_and_one_of_them_is_a_decoy() -> None:
    """Every second image is there three times."""
    once = images(300)
    twice = once.images[::2]
    whole = ImageSet(torch.cat([once.images, twice, twice]), tuple(map(str, range(600))))
    rest, decoys, copies = apart(whole, 5)
    assert len(decoys) == 50
    assert len(rest) + len(decoys) + copies == 600
    assert 30 < copies < 70  # two more of about half of them
    contents = [{image.numpy().tobytes() for image in part.images} for part in (rest, decoys)]
    assert contents[0].isdisjoint(contents[1])
    assert len(contents[1]) == 50


def test_a_train_image_is_no_decoy() -> None:
    whole = images(8)
    decoys = ImageSet(torch.cat([images(10, 10).images[8:], whole.images[3:5]]), ("new", "newer", "old", "older"))
    assert without_copies(decoys, whole).ids == ("new", "newer")


def test_copies_of_a_decoy_are_one_decoy() -> None:
    new = images(10, 10).images[8:]
    decoys = ImageSet(torch.cat([new, new.flip(0)]), ("new", "newer", "newer again", "new again"))
    assert without_copies(decoys, images(8)).ids == ("new", "newer")
