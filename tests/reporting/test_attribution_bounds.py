"""The page of ``attribench attribute``: bounded, and open about it."""

from __future__ import annotations

import pytest
import torch

from attribench.data import ImageSet
from attribench.records.answers import Attributed, Ranking
from attribench.reporting.pages import attribution as module
from attribench.reporting.pages.attribution import attribution_page


def pictures(count: int, prefix: str, side: int) -> ImageSet:
    values = torch.arange(count * side * side) % 251
    return ImageSet(
        values.to(torch.uint8).reshape(count, 1, side, side), tuple(f"{prefix}-{n}.png" for n in range(count))
    )


def page(num_queries: int, num_train: int, side: int = 2) -> str:
    ranking = Ranking(list(range(num_train)), [1.0 / (1 + n) for n in range(num_train)])
    train, queries = pictures(num_train, "train", side), pictures(num_queries, "query", side)
    result = Attributed(
        "pixel", {}, train, queries, torch.zeros(0), [ranking] * num_queries, others={"train": ("a.txt", "b.txt")}
    )
    return attribution_page(result)


def counts(html: str) -> tuple[int, int]:
    """Queries and train images that are shown."""
    return html.count("<section"), html.count("<li>")


def test_a_page_of_few_images_shows_them_all_and_says_nothing() -> None:
    html = page(3, 20)
    assert counts(html) == (3, 60)
    assert 'id="shown"' not in html


@pytest.mark.parametrize(
    ("num_queries", "num_train", "shown", "text"),
    [
        (5, 400, (5, 600), "shows the first 120 of 400 ranks, to"),
        (40, 50, (40, 600), "shows the first 15 of 50 ranks, to"),
        (70, 20, (60, 600), "shows the first 10 of 20 ranks of the first 60 of 70 queries, to"),
    ],
)
def test_a_page_of_many_images_is_bounded_and_says_so(
    num_queries: int, num_train: int, shown: tuple[int, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_PICTURES", 600)
    html = page(num_queries, num_train)
    assert counts(html) == shown
    assert text in html
    assert "scores.parquet beside it has them all" in html
    assert f"{num_queries} queries, {num_train} train images" in html


def test_larger_pictures_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PICTURES", 400)
    assert counts(page(4, 40, side=64)) == (4, 4 * 25)
    assert counts(page(2, 12, side=512)) == (1, 10)  # never fewer


def test_files_that_are_no_pictures_are_counted() -> None:
    assert "passed over: 2 in train (a.txt, b.txt)." in page(1, 1)
