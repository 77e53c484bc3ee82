from __future__ import annotations

import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from attribench.data import AttributionDataModule, ImageSet, image_sets, to_unit_range
from attribench.errors import DataError


def images(n: int = 3, size: int = 4) -> torch.Tensor:
    return torch.arange(n * size * size, dtype=torch.uint8).reshape(n, 1, size, size)


def test_unit_range_maps_0_to_minus_1_and_255_to_1() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_the_content_hash_changes_with_pixels_ids_labels_and_shape() -> None:
    base = ImageSet(images(), ("a", "b", "c"), torch.tensor([0, 1, 0]))
    changed = images()
    changed[2, 0, 3, 3] += 1
    others = [
        ImageSet(changed, ("a", "b", "c"), torch.tensor([0, 1, 0])),
        ImageSet(images(), ("a", "b", "d"), torch.tensor([0, 1, 0])),
        ImageSet(images(), ("a", "b", "c"), torch.tensor([0, 1, 1])),
        ImageSet(images(), ("a", "b", "c")),
        ImageSet(images().reshape(3, 1, 2, 8), ("a", "b", "c"), torch.tensor([0, 1, 0])),
    ]
    hashes = {base.content_hash, *(other.content_hash for other in others)}
    assert len(hashes) == 6
    assert base.content_hash == ImageSet(images(), ("a", "b", "c"), torch.tensor([0, 1, 0])).content_hash


def reference_hash(images: ImageSet) -> str:
    """Everything at once, as the first version of the hash was made."""
    digest = hashlib.sha256(repr(tuple(images.images.shape)).encode())
    digest.update(bytes(images.images.flatten().tolist()))
    digest.update("\x1f".join(images.ids).encode())
    if images.labels is not None:
        digest.update(struct.pack(f"<{len(images)}q", *images.labels.tolist()))
    return digest.hexdigest()


@pytest.mark.parametrize("slice_size", [1, 16, 100, 2**24])
@pytest.mark.parametrize("labels", [None, torch.tensor([3, 1, 2, 0, 5])])
def test_hashing_in_slices_gives_the_same_hash(
    slice_size: int, labels: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sets, "_HASHED_BYTES", slice_size)
    plain = torch.randint(0, 256, (5, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for pixels in (plain, plain.expand(-1, 3, -1, -1), plain.flip(3), plain.transpose(2, 3)):
        made = ImageSet(pixels, tuple("abcde"), labels)
        assert made.content_hash == reference_hash(made)
    assert ImageSet(plain[:0], ()).content_hash == reference_hash(ImageSet(plain[:0], ()))


@pytest.mark.parametrize("channels", [1, 3])
def test_hashing_a_mapped_set_takes_a_slice_of_memory(tmp_path: Path, channels: int) -> None:
    np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(64, 1, 1024, 1024)).flush()
    mapped = torch.from_numpy(np.load(tmp_path / "a.npy", mmap_mode="c")).expand(-1, channels, -1, -1)
    made = ImageSet(mapped, tuple(str(number) for number in range(64)))
    tracemalloc.start()
    _ = made.content_hash
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25  # of 64 MiB, or 192 where the grey channel is repeated


def test_select_keeps_images_ids_and_labels_together() -> None:
    chosen = ImageSet(images(), ("a", "b", "c"), torch.tensor([5, 6, 7])).select([2, 0])
    assert chosen.ids == ("c", "a")
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [7, 5]
    assert torch.equal(chosen.images, images()[[2, 0]])


@pytest.mark.parametrize(
    ("pixels", "ids", "labels"),
    [
        (images().float(), ("a", "b", "c"), None),
        (images()[0], ("a",), None),
        (images(), ("a", "b"), None),
        (images(), ("a", "b", "b"), None),
        (images(), ("a", "b", "c"), torch.tensor([1, 2])),
    ],
)
def test_what_is_not_a_set_of_images_is_refused(
    pixels: torch.Tensor, ids: tuple[str, ...], labels: torch.Tensor | None
) -> None:
    with pytest.raises(DataError):
        ImageSet(pixels, ids, labels)


class Mixed(AttributionDataModule):
    """Queries of another size than the train images."""

    @property
    def label(self) -> str:
        return "mixed"

    def load(self) -> tuple[ImageSet, ImageSet]:
        return ImageSet(images(3, 4), ("a", "b", "c")), ImageSet(images(2, 6), ("d", "e"))


def test_queries_of_another_shape_are_refused_with_both_shapes() -> None:
    with pytest.raises(DataError, match=r"\(1, 6, 6\).*\(1, 4, 4\)"):
        _ = Mixed().train
