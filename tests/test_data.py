import pytest
import torch

from attribench.data import AttributionDataModule, ImageSet, to_unit_range
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
