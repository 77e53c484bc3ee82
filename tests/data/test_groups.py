"""Groups of train images: contributors, and near duplicates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attribench.data.groups import by_subfolder, from_csv, near_duplicates
from attribench.errors import DataError


def smooth(count: int, side: int = 32, channels: int = 3) -> torch.Tensor:
    """Pictures of large spots."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 6, 6, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").round().to(torch.uint8)


def test_contributors_by_folder_and_by_file(tmp_path: Path) -> None:
    ids = ("anna/1.png", "anna/holiday/2.png", "ben/1.png", "3.png")
    assert by_subfolder(ids) == ["anna", "anna", "ben", "."]
    path = tmp_path / "who.csv"
    path.write_text(
        'train,contributor\nanna/1.png,Anna\nanna/holiday/2.png,Anna\nben/1.png,"Ben, Jr."\n3.png,?\nmore.png,x\n'
    )
    assert from_csv(path, ids) == ["Anna", "Anna", "Ben, Jr.", "?"]
    path.write_text("train,contributor\nanna/1.png,Anna\n3.png,\n")
    with pytest.raises(DataError, match=r"no contributor of 3 train images: anna/holiday/2\.png"):
        from_csv(path, ids)
    path.write_text("train,contributor\nanna/1.png,Anna\n3.png,?\nanna/1.png,Ben\n")
    with pytest.raises(DataError, match=r"two contributors of anna/1\.png: Anna and Ben \(line 4\)"):
        from_csv(path, ids[:1])
    path.write_text("train,contributor\nanna/1.png,Anna\nanna/1.png,Anna\n")
    assert from_csv(path, ids[:1]) == ["Anna"]
    path.write_text("image,who\n")
    with pytest.raises(DataError, match="columns train and contributor"):
        from_csv(path, ids)
    with pytest.raises(DataError, match="cannot be read"):
        from_csv(tmp_path / "none.csv", ids)


def test_near_duplicates_are_copies_with_noise_and_other_brightness_and_chains_of_them() -> None:
    pictures = smooth(12)
    generator = torch.Generator().manual_seed(2)
    noisy = (
        (pictures[2].float() + 6 * torch.randn(pictures[2].shape, generator=generator)).clamp(0, 255).to(torch.uint8)
    )
    darker = (0.7 * pictures[2].float()).to(torch.uint8)
    images = torch.cat([pictures, noisy[None], darker[None], pictures[5].flip(-1)[None], pictures[9][None]])
    assert near_duplicates(images) == [[2, 12, 13], [9, 15]]


def test_images_of_one_colour_are_equal_if_their_colours_are() -> None:
    plain = torch.stack([torch.full((1, 9, 9), value, dtype=torch.uint8) for value in (0, 7, 0, 255, 7, 9)])
    assert near_duplicates(plain) == [[0, 2], [1, 4]]


def test_a_tint_in_common_makes_no_duplicates() -> None:
    """Unrelated pictures, all much more blue than red: a correlation over all channels together is that of their tint."""
    tint = torch.tensor([0.0, 80.0, 160.0])[:, None, None]
    noise = torch.randint(0, 60, (20, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    images = torch.cat([0.1 * smooth(12, side=8) + tint, 0.1 * noise + tint]).to(torch.uint8)
    assert near_duplicates(images) == []
    assert near_duplicates(torch.cat([images, images[4:5]])) == [[4, 32]]


def test_no_and_one_image() -> None:
    assert near_duplicates(smooth(1)) == []
    assert near_duplicates(smooth(30)) == []


def test_clusters_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.cat([smooth(10), smooth(10)[[3, 7]]])
    whole = near_duplicates(images)
    monkeypatch.setattr("attribench.data.groups._BLOCK", 3)
    assert near_duplicates(images) == whole == [[3, 10], [7, 11]]
