from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_records import sample_record, sample_result
from sample_results import write_results

from attribench.cli import main
from attribench.records.lds import Record, load_records
from attribench.reporting.boards import boards
from attribench.reporting.formats import render
from attribench.reporting.paper import paper_tables


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
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["NDA"]["cifar2 validation"] == "49.0 ± 2.0"
    assert rows["NDA"]["cifar2, published validation"] == "24.88 ± 0.42"
    assert rows["NDA"]["cifar2, published generation"] == "15.91 ± 0.49"
    assert rows["D-TRAK, K = 100"]["cifar2, published validation"] == "33.74 ± 0.37"
    assert rows["D-TRAK, K = 100"]["cifar2 validation"] == "—"
    assert rows["Journey-TRAK"]["cifar2, published validation"] == "—"
    assert len(rows) == 31


def test_our_row_of_100_timesteps_stands_beside_the_published_one() -> None:
    name = "dtrak[num_timesteps=100]"
    records = [sample_record(dataset="cifar10", method=method, access="MODEL") for method in ("dtrak", name)]
    (table,) = paper_tables(boards(records), with_published=True)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["D-TRAK"] == ["49.0 ± 2.0", "39.0 ± 2.0", "14.69 ± 0.46", "11.05 ± 0.43"]
    assert rows["D-TRAK, K = 100"] == ["49.0 ± 2.0", "39.0 ± 2.0", "20.56 ± 0.42", "16.11 ± 0.36"]
    assert name not in rows
    assert [table.rows[number][0] for number in table.rules] == ["Gradient (dot)"]
    (plain,) = paper_tables(boards(records))
    assert [row[0] for row in plain.rows] == ["D-TRAK", "D-TRAK, K = 100"]


def test_a_named_configuration_of_100_timesteps_stands_beside_the_published_one() -> None:
    hundred = {"num_timesteps": 100, "noise_draws": 1, "f": "loss"}

    def rows(*records: Record) -> dict[str, list[str]]:
        (table,) = paper_tables(boards(records), with_published=True)
        return {row[0]: row[1:] for row in table.rows}

    def record(method: str, **options: int | str) -> Record:
        return sample_record(dataset="cifar2", method=method, access="MODEL", options={**hundred, **options})

    same = rows(record("trak-converged"), record("dtrak"))
    assert same["TRAK, K = 100"] == ["49.0 ± 2.0", "39.0 ± 2.0", "23.59 ± 0.46", "15.87 ± 0.39"]
    assert "trak-converged" not in same
    other = rows(record("trak-converged", noise_draws=10), record("dtrak"))
    assert other["trak-converged"] == ["49.0 ± 2.0", "39.0 ± 2.0", "—", "—"]
    assert other["TRAK, K = 100"][:2] == ["—", "—"]
    another = rows(record("trak-converged", f="mean"), record("dtrak"))
    assert another["TRAK, K = 100"][:2] == ["—", "—"], "the published output is another"
    both = rows(record("trak-converged"), record("trak[num_timesteps=100]"))
    assert both["TRAK, K = 100"][0] == both["trak-converged"][0] == "49.0 ± 2.0"


def test_errata_are_marked_and_explained_below() -> None:
    (table,) = paper_tables(
        boards([sample_record(dataset=name) for name in ("celeba", "cifar10")]), with_published=True
    )
    headers = table.header
    rows = {row[0]: dict(zip(headers, row, strict=True)) for row in table.rows}
    assert rows["Raw pixel (dot)"]["celeba, published generation"] == "-4.94 ± 1.58¹"
    assert rows["GAS"]["cifar10, published generation"] == "1.25 ± 0.41²"
    assert sum(cell[-1] in "¹²³" for row in table.rows for cell in row) == 6
    notes = " ".join(table.notes)
    assert "¹ celeba, generation: Table 1 of NDA prints 4.94 ± 1.58 for Raw pixel (dot), 4.38 ± 1.63 for" in notes
    assert "² cifar10, generation: Table 1 of NDA prints 0.74 ± 0.45 for Gradient (dot)" in notes
    assert "cifar10: The ground truth appears to average three training seeds" in notes
    (other,) = paper_tables(boards([sample_record(dataset="cifar2")]), with_published=True)
    assert not {"¹", "²"} & set("".join([*other.notes, *(cell for row in other.rows for cell in row)]))
    assert r"1.25 $\pm$ 0.41$^2$" in render([table], "latex")


def test_a_terminal_shows_wide_tables_whole() -> None:
    records = [sample_record(dataset=name) for name in ("cifar2", "cifar10", "celeba")]
    tables = paper_tables(boards(records), with_published=True)
    text = render(tables, "terminal")
    assert "…" not in text
    assert "Empirical influence, 128 models" in text
    assert text.count("-4.94 ± 1.58¹") == 1


def test_data_sets_without_published_numbers_get_no_column(results: Path) -> None:
    records = [record for record in load_records(results) if record.dataset == "digits"]
    with_them, without = (paper_tables(boards(records, results), published) for published in (True, False))
    assert with_them == without


@pytest.mark.parametrize("minus", ["-", "−"])
def test_a_negative_number_is_one_in_every_format(minus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "published.yaml").write_text(
        "methods: [{name: NDA, row: nda}]\n"
        f"sources: [{{name: a, where: b, cells: {{NDA: {{digits: [{minus}4.94 ± 1.58, 1.00 ± 0.10]}}}}}}]\n",
        "utf-8",
    )
    monkeypatch.setattr("attribench.reporting.published.resources", SimpleNamespace(files=lambda package: tmp_path))
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
