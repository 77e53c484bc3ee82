"""The pictures are what their names say: checked pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attribench.data.known_cases import SIDE, Case, KnownCases, known_cases


@pytest.fixture(scope="module")
def known() -> KnownCases:
    return known_cases()


def case(known: KnownCases, name: str) -> Case:
    (found,) = [case for case in known.cases if case.name == name]
    return found


def pairs(known: KnownCases, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each query with its only right train image, as grey ``(SIDE, SIDE)``."""
    asked = case(known, name)
    assert asked.right is not None
    assert asked.right.sum(dim=1).eq(1).all()
    return [
        (query[0], known.train.images[int(row.nonzero())][0])
        for query, row in zip(asked.queries.images, asked.right, strict=True)
    ]


def test_copies_are_equal_and_nothing_else_is(known: KnownCases) -> None:
    for name in ("copy", "duplicates"):
        asked = case(known, name)
        same = (asked.queries.images[:, None] == known.train.images[None]).flatten(2).all(dim=2)
        assert asked.right is not None
        assert torch.equal(same, asked.right)
    assert case(known, "duplicates").right.sum(dim=1).tolist() == [3] * 8  # type: ignore[union-attr]


def test_changed_copies_are_changed_as_they_say(known: KnownCases) -> None:
    for query, train in pairs(known, "mirrored"):
        assert torch.equal(query, train.flip(1))
        assert not torch.equal(query, train)
    for query, train in pairs(known, "shifted"):
        assert torch.equal(query[2:, 3:], train[:-2, :-3])
    for query, train in pairs(known, "darker"):
        assert (query.double() - 0.6 * train.double()).abs().max() <= 1


def test_what_is_pasted_is_there_once_and_covers_no_more(known: KnownCases) -> None:
    for query, train in pairs(known, "pasted"):
        piece = train[3:13, 3:13]
        windows = query.unfold(0, 10, 1).unfold(1, 10, 1)
        assert int((windows == piece).flatten(2).all(dim=2).sum()) == 1
        assert not torch.equal(query, train)


def test_the_held_out_shape_is_in_no_train_image(known: KnownCases) -> None:
    asked = case(known, "held out")
    assert asked.right is None
    assert asked.answerable is not None
    assert asked.answerable.tolist() == [True] * 16 + [False] * 16
    # New pictures of known shapes are those of the case "class"; none of them is a train image.
    assert torch.equal(asked.queries.images[:16], case(known, "class").queries.images)
    same = (asked.queries.images[:, None] == known.train.images[None]).flatten(2).all(dim=2)
    assert not same.any()
    assert known.train.labels is not None
    assert sorted(set(known.train.labels.tolist())) == list(range(8))


def test_each_class_has_its_shape(known: KnownCases) -> None:
    """Nearest means over positions are enough to tell disc from frame: the labels are no mere numbers."""
    spectra = np.abs(np.fft.fft2(known.train.images[:, 0].double().numpy()))[:, :6, :6].reshape(len(known.train), -1)
    assert known.train.labels is not None
    labels = known.train.labels.numpy()
    spectra[:, 0] = 0.0
    hits = []
    for number in range(96):
        kept = (np.arange(len(labels)) != number) & (np.arange(len(labels)) < 96)
        means = np.stack([spectra[kept & (labels == label)].mean(axis=0) for label in range(8)])
        hits.append(((means - spectra[number]) ** 2).sum(axis=1).argmin() == labels[number])
    assert np.mean(hits) > 0.4  # 0.125 by guessing


def test_the_same_seed_draws_the_same_pictures_and_another_one_others() -> None:
    first, again, other = known_cases(1), known_cases(1), known_cases(2)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.queries().images, again.queries().images)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.train.image_shape == (1, SIDE, SIDE)
