from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from sample_results import write_results

from attribench.cli import main
from attribench.records import load_records
from attribench.reporting.boards import boards
from attribench.reporting.paper import paper_tables, published


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
            assert [len(cell.split(" ± ")) for cell in cells] == [2, 2]


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
