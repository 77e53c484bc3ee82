"""Decoys: a tenth set apart, or variants; never a train image."""

from __future__ import annotations

import torch

from attribench.data import ImageSet
from attribench.data.decoys import set_apart, variants, without_copies


def images(count: int, side: int = 10) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{number}.png" for number in range(count)))


def test_a_tenth_is_set_apart_at_random_and_the_rest_is_the_rest() -> None:
    whole = images(60)
    rest, tenth = set_apart(whole, 1)
    assert len(tenth) == 6
    assert set(rest.ids).isdisjoint(tenth.ids)
    assert set(rest.ids) | set(tenth.ids) == set(whole.ids)
    assert tenth.ids != whole.ids[:6]
    assert rest.ids == tuple(name for name in whole.ids if name in set(rest.ids))
    for part in (rest, tenth):
        for name, image in zip(part.ids, part.images, strict=True):
            assert torch.equal(image, whole.images[whole.ids.index(name)])
    assert set_apart(whole, 1)[1].ids == tenth.ids
    assert set_apart(whole, 2)[1].ids != tenth.ids


def test_variants_are_mirrored_and_cropped_and_no_train_image() -> None:
    whole = images(5)
    symmetric = torch.cat([whole.images[:1, :, :, :5], whole.images[:1, :, :, :5].flip(-1)], dim=-1)
    train = ImageSet(torch.cat([whole.images, symmetric]), (*whole.ids, "same.png"))
    found = variants(train, 0)
    assert len(found) == 3 * 6 - 1  # the mirror image of a symmetric one is a train image
    assert "mirrored/same.png" not in found.ids
    for number in range(5):
        assert torch.equal(found.images[found.ids.index(f"mirrored/{number}.png")], train.images[number].flip(-1))
    crops = [number for number, name in enumerate(found.ids) if "crop" in name]
    assert len(crops) == 12
    spread = found.images[crops].float().std(dim=(1, 2, 3))
    assert (spread > 20).all()  # pictures still


def test_a_train_image_is_no_decoy() -> None:
    whole = images(8)
    decoys = ImageSet(torch.cat([images(10, 10).images[8:], whole.images[3:5]]), ("new", "newer", "old", "older"))
    assert without_copies(decoys, whole).ids == ("new", "newer")
