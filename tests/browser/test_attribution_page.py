"""The page of ``attribench attribute`` in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from attribench.cli import main

pytestmark = pytest.mark.slow

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name, count in (("train", 6), ("queries", 2)):
        (folder / name).mkdir()
        for number in range(count):
            values = np.random.default_rng([len(name), number]).integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(values).save(folder / name / f"<b>{number}.png")  # a name that must be escaped
    (folder / "train" / "broken.png").write_bytes(b"")
    arguments = ["attribute", "--train", str(folder / "train"), "--queries", str(folder / "queries"), "--out",
                 str(folder / "out"), "--workdir", str(folder / "runs"), "--image-size", "8", "--accelerator", "cpu",
                 "--method.timesteps", "[100]", "--method.patch_size", "3",
                 "--method.low_resolution_patch_size", "4"]  # fmt: skip
    assert main(arguments) == 0
    return folder / "out" / "report.html"


def test_it_shows_every_query_and_its_ranking(page_file: Path, visit: Visit) -> None:
    page = visit(page_file)
    assert page.locator("section h2").all_inner_texts() == ["<b>0.png", "<b>1.png", "Files left out"]
    assert page.locator("b").count() == 0
    first = page.locator("section").first
    assert first.locator("li").count() == 6
    assert first.locator("img").count() == 1 + 6 * 3
    broken = page.eval_on_selector_all("img", "all => all.filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0
    assert "broken.png" in page.locator("#skipped").inner_text()


def test_heat_maps_can_be_put_away(page_file: Path, visit: Visit) -> None:
    page = visit(page_file)
    assert page.locator("img.heat").first.is_visible()
    page.get_by_label("show heat maps").uncheck()
    assert not page.locator("img.heat").first.is_visible()


def test_it_fits_a_phone(page_file: Path, visit: Visit) -> None:
    page = visit(page_file, viewport={"width": 360, "height": 700}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
