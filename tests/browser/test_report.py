"""The report as a person meets it: it opens, sorts, switches, shows its images, on a phone, in the dark, by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page
from sample_results import write_results

from attribench.cli import main

pytestmark = pytest.mark.slow

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_results(tmp_path_factory.mktemp("results"))
    assert main(["report", "--results", str(folder), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


def visible_section(page: Page) -> str:
    shown = page.eval_on_selector_all("[data-dataset]", "all => all.filter(s => !s.hidden).map(s => s.id)")
    assert len(shown) == 1
    return str(shown[0])


def column(page: Page, number: int) -> list[str]:
    found: list[str] = page.eval_on_selector_all(
        "[data-dataset]:not([hidden]) table.leaderboard tbody tr",
        f"rows => rows.map(row => row.children[{number}].textContent.trim().split('\\n')[0].trim())",
    )
    return found


def test_it_opens_and_shows_every_image(report: Path, visit: Visit) -> None:
    page = visit(report)
    assert page.title() == "attribench: results"
    assert page.locator("h1").inner_text() == "Which attribution method to trust"
    broken = page.eval_on_selector_all("img", "all => all.filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)")
    assert broken == []
    assert page.locator("img").count() > 30
    without_text = page.eval_on_selector_all("img", "all => all.filter(i => !i.alt).length")
    assert without_text == 0


def test_it_sorts_by_any_column_with_missing_values_last(report: Path, visit: Visit) -> None:
    page = visit(report, "#digits-preset-small")
    assert visible_section(page) == "digits-preset-small"
    table = page.locator("[data-dataset]:not([hidden]) table.leaderboard")
    assert column(page, 0) == ["nda", "dtrak", "random", "tracincp"]
    generation = table.get_by_role("button", name="Generation")
    generation.click()
    assert column(page, 0) == ["nda", "dtrak", "random", "tracincp"]
    assert table.locator("th[aria-sort]").count() == 1
    generation.click()
    assert column(page, 0) == ["random", "dtrak", "nda", "tracincp"]  # rising; what is missing stays last
    table.get_by_role("button", name="Method").click()
    assert column(page, 0) == ["dtrak", "nda", "random", "tracincp"]
    assert table.locator("th[aria-sort='ascending']").inner_text().startswith("Method")


def test_missing_cells_are_shown_as_missing(report: Path, visit: Visit) -> None:
    page = visit(report, "#digits-preset-small")
    row = page.locator("[data-dataset]:not([hidden]) table.leaderboard tbody tr", has_text="tracincp")
    assert "missing" in row.locator("td").nth(1).inner_text()
    assert row.locator("td").nth(2).inner_text() == "missing"  # and takes the mean with it
    page.select_option("#setting", label="preset smoke")
    absent = page.locator("[data-dataset]:not([hidden]) tr.missing")
    assert sorted(absent.locator("th").all_inner_texts()) == ["dtrak", "tracincp"]


def test_it_switches_data_set_and_preset(report: Path, visit: Visit) -> None:
    page = visit(report)
    page.select_option("#dataset", "cifar2")
    assert visible_section(page) == "cifar2-preset-paper"
    page.select_option("#dataset", "digits")
    assert visible_section(page) == "digits-preset-small"
    page.select_option("#setting", label="preset smoke")
    assert visible_section(page) == "digits-preset-smoke"
    assert page.url.endswith("#digits-preset-smoke")
    again = visit(report, "#digits-preset-smoke")
    assert visible_section(again) == "digits-preset-smoke"


def test_intervals_cost_access_and_links(report: Path, visit: Visit) -> None:
    page = visit(report, "#digits-preset-small")
    row = page.locator("[data-dataset]:not([hidden]) table.leaderboard tbody tr").first
    text = row.inner_text()
    for part in ("60.0 [50.0, 70.0]", "data", "1.5 s", "250 ms", "32.0 MiB"):
        assert part in text
    link = row.locator("a")
    href = link.get_attribute("href") or ""
    assert href.endswith("nda.json")
    assert (report.parent / href).is_file()
    assert page.locator("[data-dataset]:not([hidden]) tfoot").inner_text().startswith("noise ceiling")
    assert "75.0 [70.0, 80.0]" in page.locator("[data-dataset]:not([hidden]) tfoot").inner_text()
    tied = page.locator("[data-dataset]:not([hidden]) td.tied").first.inner_text()
    assert "≈" in tied


@pytest.mark.parametrize("committed", [False, True])
def test_the_leaderboard_is_whole_at_1280_pixels(report: Path, visit: Visit, committed: bool) -> None:
    page_file = Path(__file__).parents[2] / "results" / "report.html" if committed else report
    page = visit(page_file, viewport={"width": 1280, "height": 800})
    cut = page.eval_on_selector_all(
        ".scroll:has(table.leaderboard)",
        "all => all.map(card => card.scrollWidth - card.clientWidth).filter(over => over > 0)",
    )
    assert cut == []


def test_it_opens_with_what_was_found(report: Path, visit: Visit) -> None:
    said = visit(report, "#digits-preset-small").locator("[data-dataset]:not([hidden]) p.finding").inner_text()
    assert said.startswith(
        "Of the methods that look at data alone, nda is best (60.0 [50.0, 70.0] on validation queries"
    )
    assert "of the methods that look at the model, dtrak is best" in said
    assert "a perfect method would reach 75.0 [70.0, 80.0] (validation)" in said


def test_a_gallery_shows_one_query_at_a_time(report: Path, visit: Visit) -> None:
    page = visit(report, "#digits-preset-small")
    gallery = page.locator("[data-dataset]:not([hidden]) .gallery").first
    shown = gallery.locator("div.query:not([hidden])")
    assert shown.count() == 1
    first = shown.get_attribute("id")
    gallery.get_by_role("button", name="Next").click()
    assert shown.count() == 1
    assert shown.get_attribute("id") != first
    gallery.get_by_role("button", name="Next").click()  # round to the beginning
    assert shown.get_attribute("id") == first
    assert shown.locator("img").count() == 1 + 4 * 16


def test_it_works_by_keyboard(report: Path, visit: Visit) -> None:
    page = visit(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if reached[-1] == "Validation":
            break
    assert "dataset" in reached
    assert "setting" in reached
    assert reached[-1] == "Validation"
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    assert (
        page.locator("[data-dataset]:not([hidden]) table.leaderboard th[aria-sort='ascending']")
        .inner_text()
        .startswith("Validation")
    )
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("width", [360, 768])
def test_it_fits_a_phone(report: Path, visit: Visit, width: int) -> None:
    page = visit(report, "#digits-preset-small", viewport={"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.eval_on_selector_all(
        "p, td, th, select, button",
        "all => all.filter(e => e.offsetParent).map(e => parseFloat(getComputedStyle(e).fontSize))",
    )
    assert min(sizes) >= 11


def luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(report: Path, visit: Visit, scheme: str) -> None:
    page = visit(report, "#digits-preset-small", color_scheme=scheme)
    background = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (background < 0.1) == (scheme == "dark")
    for selector in ("h1", "p.lead", "p.note", "a", ".tag.DATA", ".tag.MODEL", "td.best", "tfoot th"):
        colours = page.eval_on_selector(
            f"[data-dataset]:not([hidden]) {selector}, header {selector}",
            """element => {
                let at = element, paper = '';
                while (at && (!paper || paper === 'rgba(0, 0, 0, 0)')) {
                    paper = getComputedStyle(at).backgroundColor;
                    at = at.parentElement;
                }
                return [getComputedStyle(element).color, paper];
            }""",
        )
        light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, colours)


COMMITTED = Path(__file__).parents[2] / "results" / "report.html"


@pytest.mark.skipif(not COMMITTED.is_file(), reason="results/ has no page")
def test_the_committed_page_fits_a_phone_and_shows_all_its_settings(visit: Visit) -> None:
    """Its names are long, and its sweeps and its counterfactual belong to settings without a leaderboard."""
    page = visit(COMMITTED, viewport={"width": 360, "height": 700})
    seen = dict[str, int]()
    for dataset in page.locator("#dataset option").all_inner_texts():
        page.select_option("#dataset", label=dataset)
        settings = page.locator("#setting option").all_inner_texts()
        seen[dataset] = len(settings)
        for setting in settings:
            page.select_option("#setting", label=setting)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert page.locator("[data-dataset]:not([hidden]) img").count() > 0
    assert seen["digits"] == 3
    assert len(seen) >= 2
    page.select_option("#dataset", label="digits")
    page.select_option("#setting", label=page.locator("#setting option").all_inner_texts()[-1])
    assert page.locator("[data-dataset]:not([hidden])").inner_text().count("Counterfactual") >= 1
