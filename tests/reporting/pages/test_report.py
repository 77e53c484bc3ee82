"""The report as a file; ``tests/browser`` meets it as a page."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from sample_records import sample_record
from sample_results import write_results

from attribench.cli import main
from attribench.records.lds import save_record
from attribench.reporting.collection import Collection

pytestmark = pytest.mark.slow


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results")


def report(results: Path, out: Path) -> str:
    assert main(["report", "--results", str(results), "--out", str(out)]) == 0
    return out.read_text("utf-8")


def test_the_same_records_give_the_same_page_and_it_needs_no_other_file(results: Path, tmp_path: Path) -> None:
    page = report(results, results / "report.html")
    assert report(results, results / "again.html") == page
    for forbidden in ("http://", "https://", '<link rel="stylesheet', 'src="/', "url("):
        assert forbidden not in page.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in page


def test_what_it_says(results: Path) -> None:
    page = report(results, results / "report.html")
    for part in (
        "Which attribution method to trust",
        "CPU-sized: not comparable with published numbers",
        "linear datamodeling score",
        "60.0 [50.0, 70.0]",
        "missing",
        "noise ceiling",
        "Counterfactual: without the strongest proponents",
        "How options move the LDS",
    ):
        assert part in page


def test_a_query_set_that_no_record_has_is_missing(tmp_path: Path) -> None:
    save_record(sample_record(results={"validation": sample_record().results["validation"]}), tmp_path / "results")
    page = report(tmp_path / "results", tmp_path / "page.html")
    assert "missing</td>" in page
    assert "on validation queries" in page
    assert "on generation queries" not in page


def test_what_rests_on_all_queries_does_not_stand_below_a_strict_board(results: Path, tmp_path: Path) -> None:
    """Though the strict record is the first in the folder."""
    alone = tmp_path / "strict"
    for folder, records in ((results, ["aaa"]), (alone, ["aaa"])):
        for method in records:
            save_record(sample_record(method=method, protocol="strict"), folder)
    page = report(results, results / "report.html")
    titles = re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page, re.DOTALL)
    strict = next(number for number, title in enumerate(titles) if "strict protocol" in title)
    sweeps = next(number for number, title in enumerate(titles) if "How options move" in title)
    assert sweeps < strict
    assert report(alone, tmp_path / "alone.html").count("strict protocol") >= 1


def test_links_lead_to_records_wherever_the_page_is(results: Path, tmp_path: Path) -> None:
    page = report(results, tmp_path / "elsewhere" / "page.html")
    assert 'href="../results/records/digits/small/nda.json"' in page


def test_links_lead_to_records_in_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "results #1, 50%25?"
    save_record(sample_record(), folder)
    page = report(folder, tmp_path / "page.html")
    (link,) = re.findall(r'href="([^"#]+\.json)"', page)
    assert (tmp_path / unquote(link)).is_file()
    assert "#" not in link
    assert "?" not in link


def test_sections_whose_names_differ_in_other_letters_have_identities_of_their_own(tmp_path: Path) -> None:
    for number, label in enumerate(("猫", "犬", "my data", "my_data")):
        save_record(sample_record(dataset=label, preset=f"p{number // 2}", setting_hash=label), tmp_path / str(number))
        (file,) = (tmp_path / str(number)).rglob("*.json")
        target = tmp_path / "all" / "records" / str(number) / "p" / "nda.json"
        target.parent.mkdir(parents=True)
        file.rename(target)
    page = report(tmp_path / "all", tmp_path / "page.html")
    found = re.findall(r'<section id="([^"]+)" data-dataset', page)
    assert len(found) == len(set(found)) == 4


def test_one_data_set_or_preset_alone(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert (
        main(["report", "--results", str(results), "--out", str(out), "--dataset", "digits", "--preset", "smoke"]) == 0
    )
    page = out.read_text()
    assert 'id="digits-preset-smoke"' in page
    assert "digits-preset-small" not in page
    assert "cifar2" not in page


def test_records_without_images_make_a_page_and_figures_without(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", galleries=False)
    page = report(results, tmp_path / "page.html")
    assert "Strongest proponents and opponents" not in page
    assert "Counterfactual: without the strongest proponents" in page
    drawings = {drawing.name: drawing for drawing in Collection(results, "digits", "small").drawings()}
    assert not [name for name in drawings if "gallery" in name]
    assert drawings["digits/small/counterfactual-images"].draw() is None
    assert drawings["digits/small/counterfactual"].draw() is not None


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(tmp_path)]) == 2
    assert "There are no records" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
