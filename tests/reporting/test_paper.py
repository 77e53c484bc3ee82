from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_records import sample_record, sample_result
from sample_results import write_results

from attribench.cli import main
from attribench.records.lds import load_records
from attribench.reporting.boards import boards
from attribench.reporting.formats import render
from attribench.reporting.paper import paper_tables, published

#: What the authors of D-TRAK published of their own evaluation, a table beside the repository.
EVALUATION = Path(__file__).parents[2].parent / "shared" / "published" / "dtrak_table.md"
#: Cells of CIFAR-10's generated queries in which the paper's Table 1 and that evaluation disagree.
DISPUTED = {"gradient-dot", "gradient-cosine", "tracincp", "gas"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


def call(results: Path, *more: str) -> int:
    return main(["table", "--layout", "paper", "--results", str(results), *more])


def test_data_sets_stand_side_by_side_and_presets_apart(results: Path) -> None:
    tables = paper_tables(boards(load_records(results), results))
    assert [table.title for table in tables] == [
        "LDS × 100, preset paper",
        "LDS × 100, preset small",
        "LDS × 100, preset smoke",
    ]
    small = tables[1]
    assert [(column.group, column.name) for column in small.columns[1:]] == [
        ("digits", "validation"),
        ("digits", "generation"),
    ]
    rows = {row[0]: row for row in small.rows}
    assert rows["NDA"][1] == "59.0 ± 2.0"
    assert rows["TracInCP"][2] == "—"  # missing stays missing
    assert [row[0] for row in small.rows] == ["NDA", "TracInCP", "D-TRAK", "random"]


def test_the_best_and_its_ties_are_bold(results: Path) -> None:
    small = paper_tables(boards(load_records(results), results))[1]
    names = [small.rows[row][0] for row, column in sorted(small.bold) if column == 1]
    assert names == ["NDA", "D-TRAK"]


def test_latex_has_booktabs_groups_and_bold(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(results, "--format", "latex", "--dataset", "digits", "--preset", "small") == 0
    printed = capsys.readouterr().out
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\multicolumn{2}{c}{digits}", r"\cmidrule(lr){2-3}",
                 r"\textbf{59.0 $\pm$ 2.0}"):  # fmt: skip
        assert part in printed
    assert "published" not in printed.lower().replace("not comparable with published numbers", "")


def test_published_numbers_never_share_a_column_with_ours(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(results, "--published", "--format", "csv", "--dataset", "cifar2") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["cifar2 validation"] == "49.0 ± 2.0"
    assert row["cifar2, published validation"] == "24.88 ± 0.42"
    assert row["cifar2, published generation"] == "15.91 ± 0.49"


def test_every_published_row_is_complete() -> None:
    source, methods = published()
    assert "2510.14269" in source
    assert len(methods) == 11
    for method in methods:
        assert set(method.results) == {"cifar2", "cifar10", "celeba"}
        for cells in method.results.values():
            for cell in cells:
                assert re.fullmatch(r"-?\d+\.\d\d ± \d\.\d\d", cell), (
                    "a mean and its deviation, the minus as in our own numbers"
                )


def test_raw_pixels_are_anti_correlated_on_generated_faces() -> None:
    rows = {method.row: method.results["celeba"][1] for method in published()[1]}
    assert (rows["pixel-dot"], rows["pixel-cosine"]) == ("-4.94 ± 1.58", "-4.39 ± 1.63")


@pytest.mark.skipif(not EVALUATION.is_file(), reason="needs the table of D-TRAK's evaluation beside the repository")
def test_published_cells_are_those_of_the_evaluation() -> None:
    text = EVALUATION.read_text("utf-8").replace("±", " ± ")
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    rows = {name: [cell.split(" / ") for cell in cells[:3]] for name, *cells in lines if len(cells) == 5}
    rows["NDA"] = re.findall(r"(\S+ ± \S+) / (\d+\.\d+ ± \d+\.\d+)", text.split("NDA's rows")[1].split("|")[0])
    compared = 0
    for method in published()[1]:
        name = method.name.replace("(dot)", "dot").replace("(cosine)", "cos")
        expected = dict(
            zip(("cifar2", "cifar10", "celeba"), rows[name if name in rows else f"{name} K10"], strict=True)
        )
        for dataset, cells in method.results.items():
            for number, cell in enumerate(cells):
                if (dataset, number) == ("cifar10", 1) and method.row in DISPUTED:
                    continue
                assert cell == expected[dataset][number], (method.name, dataset)
                compared += 1
    assert compared == 11 * 6 - len(DISPUTED)


@pytest.mark.parametrize("minus", ["-", "−"])
def test_a_negative_number_is_one_in_every_format(minus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "published.yaml").write_text(
        f"source: a paper\nmethods:\n  - {{name: NDA, row: nda, digits: [{minus}4.94 ± 1.58, 1.00 ± 0.10]}}\n", "utf-8"
    )
    monkeypatch.setattr("attribench.reporting.paper.resources", SimpleNamespace(files=lambda package: tmp_path))
    tables = paper_tables(boards([sample_record(results={"validation": sample_result(-0.5)})]), with_published=True)
    for style, ours, theirs in (
        ("terminal", "-51.0 ± 2.0", "-4.94 ± 1.58"),
        ("markdown", "| -51.0 ± 2.0 |", "| -4.94 ± 1.58 |"),
        ("csv", ",-51.0 ± 2.0,", ",-4.94 ± 1.58,"),
        ("latex", r"& $-$51.0 $\pm$ 2.0 &", r"& $-$4.94 $\pm$ 1.58 &"),
    ):
        text = render(tables, style)  # type: ignore[arg-type]
        assert ours in text
        assert theirs in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layout", "papers"], "Did you mean 'paper'"),
        (["--layout", "full", "--published"], "goes with --layout paper"),
        (["--kind", "counterfactual"], "is of LDS tables"),
    ],
)
def test_wrong_calls(results: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(results, *more) == 2
    assert message in capsys.readouterr().err
