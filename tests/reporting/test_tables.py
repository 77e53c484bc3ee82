from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from sample_records import sample_record, sample_result
from sample_results import write_results

from attribench.metrics.comparison import distinguishable
from attribench.records.lds import BandResult, CeilingRecord, CostRecord, QuerySetResult, load_records
from attribench.reporting import findings
from attribench.reporting.boards import boards
from attribench.reporting.findings import finding
from attribench.reporting.formats import FORMATS, Column, Table, duration, render
from attribench.reporting.paper import paper_tables
from attribench.reporting.tables import band_tables, leaderboard, leaderboards


def test_every_number_stands_with_its_preset_its_interval_and_what_it_was_tuned_on() -> None:
    (table,) = leaderboards([sample_record(tuned_on="validation queries")])
    assert table.title == "digits, preset small"
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["validation LDS×100 [95 %]"] == "50.0 [40.0, 60.0]"
    assert row["generation subsets only"] == "39.0 ± 2.0"
    assert row["tuned on"] == "validation queries"
    assert (row["looks at"], row["prepare s"], row["s/query"]) == ("data", "1.50", "0.25")
    assert (row["peak MiB"], row["stored MiB"]) == ("32", "1.0")
    assert any("not comparable" in note for note in table.notes)


def test_different_settings_never_share_a_table() -> None:
    tables = leaderboards(
        [
            sample_record(),
            sample_record(method="pixel"),
            sample_record(setting_hash="other", overrides={"training.epochs": 3}),
            sample_record(preset="paper", setting_hash="p"),
        ]
    )
    assert [len(table.rows) for table in tables] == [2, 1, 1]
    assert "changed: training.epochs=3" in tables[1].title
    assert not any("not comparable" in note for note in tables[2].notes)


def test_the_best_comes_first_and_a_missing_cell_stays_missing() -> None:
    (table,) = leaderboards(
        [
            sample_record(method="half", results={"validation": sample_result(0.9)}),
            sample_record(method="weak", results={"validation": sample_result(0.1), "generation": sample_result(0.1)}),
            sample_record(method="strong"),
        ]
    )
    assert [row[0] for row in table.rows] == ["strong", "weak", "half"]
    assert table.rows[2][3] == "—"


def test_what_is_given_retrained_models_is_no_rival() -> None:
    reference = sample_record(
        method="datamodel",
        access="RETRAINED",
        results={name: sample_result(0.9) for name in ("validation", "generation")},
    )
    (board,) = boards([sample_record(), sample_record(method="pixel", results=reference.results), reference])
    assert "datamodel" not in board.best["validation"] | board.best["generation"]
    (board,) = boards([sample_record(), reference])
    table = leaderboard(board)
    assert [(row[0], row[5]) for row in table.rows] == [("datamodel", "retrained models"), ("nda", "data")]
    assert table.bold == {(1, 1), (1, 3)}
    assert any("no rivals but a reference" in note for note in table.notes)
    assert board.best == {"validation": {"nda"}, "generation": {"nda"}}


def test_times_that_were_taken_beside_other_work_are_told() -> None:
    def taken(share: float | None) -> CostRecord:
        return CostRecord(prepare_seconds=1, seconds_per_query=1, peak_bytes=0, stored_bytes=0, others_share=share)

    records = [
        sample_record(method=name, cost=taken(share))
        for name, share in (("a", 0.456), ("b", 0.05), ("c", None), ("d", 0.9))
    ]
    (table,) = leaderboards(records)
    (said,) = [note for note in table.notes if "others used" in note]
    assert said.endswith("and are too long: a 46 %, d 90 %.")
    assert not any("others used" in note for note in leaderboards([sample_record(cost=taken(0.05))])[0].notes)


def test_undefined_queries_are_told() -> None:
    (table,) = leaderboards([sample_record(results={"validation": sample_result(undefined=1)})])
    assert any("nda: 1 of 2 validation queries" in note for note in table.notes)


@pytest.mark.parametrize("style", FORMATS)
def test_every_format_shows_every_cell(style: str) -> None:
    text = render(leaderboards([sample_record(), sample_record(method="pixel_x&y")]), style)  # type: ignore[arg-type]
    for part in ("50.0", "40.0", "60.0", "small", "nda"):
        assert part in text
    if style == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["method"] for row in rows] == ["nda", "pixel_x&y"]
        assert rows[0]["table"] == "digits, preset small"
    if style == "latex":
        assert r"pixel\_x\&y" in text
        assert r"\toprule" in text


#: Names that mean something else somewhere: to TeX, Markdown, HTML, or rich's markup and its emoji.
NAMES = ["price $5 & $6", "100%_#1{~^\\}", "[bold]x[/bold]", "[/x]", ":smile: *a* _b_", "`code` __init__ a|b", "<b>&amp;</b>",
         "[text](link)", "*", "\\", "two  lines\nof it"]  # fmt: skip


def named(name: str) -> list[Table]:
    return [Table(name, [f"Note of {name}"], [Column(name)], [[name], [name]], bold=frozenset({(1, 0)}))]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_through_markdown_as_they_are(name: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(render(named(name), "markdown"))
    texts = ["".join(part.content for part in token.children or []) for token in tokens if token.type == "inline"]
    plain = " ".join(name.split())
    assert texts == [plain, plain, plain, plain, f"Note of {plain}"]


@pytest.mark.parametrize("name", NAMES)
def test_names_come_through_a_terminal_and_csv_as_they_are(name: str) -> None:
    assert [row[name] for row in csv.DictReader(io.StringIO(render(named(name), "csv")))] == [name, name]
    shown = render(named(name), "terminal").splitlines()
    for line in name.splitlines():
        assert sum(line in other for other in shown) >= 4  # in the title, two rows, and the note


def test_names_come_through_latex() -> None:
    rows = [["50% & $5_#"], ["{~^\\}"], ["<a|b>"], ["[x] -1.5"], ["* 2026-01-01"], ["two\n\nlines"]]
    text = render([Table("t", [], [Column("c")], rows)], "latex")
    assert text.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines() == [
        r"50\% \& \$5\_\# \\",
        r"\{\textasciitilde{}\textasciicircum{}\textbackslash{}\} \\",
        r"\textless{}a\textbar{}b\textgreater{} \\",
        r"{}[x] $-$1.5 \\",
        r"{}* 2026-01-01 \\",
        r"two lines \\",
    ]


def banded(lds: float) -> QuerySetResult:
    ceiling = CeilingRecord(lds=0.9, interval=None, replicates="training seeds", num_replicates=2, agreement=0.5)
    bands = [
        BandResult(first=first, last=first + 100, lds=value, interval=None, ceiling=ceiling)
        for first, value in ((0, lds), (900, 0.4))
    ]
    return sample_result(lds).model_copy(update={"bands": bands})


def test_by_noise_level_every_band_has_a_column_and_its_ceiling() -> None:
    records = [
        sample_record(results={"validation": banded(0.5)}),
        sample_record(method="pixel", results={"validation": banded(0.2), "generation": sample_result()}),
    ]
    (board,) = boards(records)
    (table,) = band_tables(board)  # of generated queries there is nothing by band
    assert table.header == ["method", "t 0–99", "t 900–999", "tuned on"]
    assert sorted(table.rows[:2]) == [["nda", "50.0", "40.0", "nothing"], ["pixel", "20.0", "40.0", "nothing"]]
    assert table.rows[2] == ["noise ceiling", "90.0", "90.0", "—"]
    assert {column for _, column in table.bold} == {1, 2}
    assert (table.rows.index(["nda", "50.0", "40.0", "nothing"]), 1) in table.bold


def test_by_noise_level_too_retrained_models_are_no_rivals() -> None:
    records = [
        sample_record(results={"validation": banded(0.2)}, tuned_on="validation queries"),
        sample_record(method="pixel", results={"validation": banded(0.1)}),
        sample_record(method="datamodel", access="RETRAINED", results={"validation": banded(0.5)}),
    ]
    (table,) = band_tables(boards(records)[0])
    assert {table.rows[row][0] for row, column in table.bold if column == 1} == {"nda"}
    assert {row[0]: row[-1] for row in table.rows}["nda"] == "validation queries"
    assert any("no rivals" in note for note in table.notes)
    (alone,) = band_tables(boards(records[2:])[0])
    assert not alone.bold


def test_what_is_found_says_what_is_best_of_each_kind() -> None:
    records = [
        sample_record(),
        sample_record(method="random", results={name: sample_result(0.0) for name in ("validation", "generation")}),
        sample_record(method="outside", access="UNKNOWN", cost=None),
    ]
    (board,) = boards(records)
    assert finding(board) == (
        "Of the methods that look at data alone, nda is best (50.0 [40.0, 60.0] on validation queries and 40.0 [30.0, 50.0] "
        "on generation queries). Judged by 24 retrained models on random parts of 500 train images."
    )
    (strict,) = boards([record.model_copy(update={"protocol": "strict"}) for record in board.records])
    assert finding(strict).endswith("Judged by 12 retrained models on random parts of 500 train images.")
    assert "500 train images of 8×8×1; 24 subsets × 1 seed(s)" in leaderboard(board).notes[0]
    assert "500 train images of 8×8×1; 12 subsets × 1 seed(s)" in leaderboard(strict).notes[0]
    assert [note for note in paper_tables([board])[0].notes if " subsets × " in note] == [
        "digits: 24 subsets × 1 seed(s)."
    ]
    assert [note for note in paper_tables([strict])[0].notes if " subsets × " in note] == [
        "digits: 12 subsets × 1 seed(s)."
    ]


def test_what_is_found_says_what_options_were_chosen_on() -> None:
    tuned = sample_record(tuned_on="all validation queries")
    model = sample_record(method="trak", access="MODEL", tuned_on="a pilot run")
    (board,) = boards([tuned, model])
    said = (
        "; options of nda were chosen on all validation queries, of trak were chosen on a pilot run: "
        "the numbers on validation queries are those they were chosen on"
    )
    assert said in finding(board)
    (strict,) = boards([tuned.model_copy(update={"protocol": "strict"})])
    assert "options of nda were chosen on all validation queries." in finding(strict)
    (generated,) = boards([sample_record(tuned_on="generation queries (all: 100)")])
    assert "the numbers on generation queries are those they were chosen on" in finding(generated)
    (untuned,) = boards([sample_record()])
    assert "chosen" not in finding(untuned)


def test_what_is_found_names_three_of_many_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alike(dict[tuple[str, str], bool]):
        def get(self, pair: tuple[str, str], _: object = None) -> bool:  # type: ignore[override]
            return pair[0] == pair[1]

    monkeypatch.setattr(findings, "distinguishable", lambda _: Alike())
    (board,) = boards([sample_record(method=name) for name in ("nda", "one", "two", "three")])
    assert "not distinguishable from one and two and three)" in finding(board)
    (board,) = boards([sample_record(method=name) for name in ("nda", "one", "two", "three", "four", "five")])
    assert "not distinguishable from one, two, three, and 2 more)" in finding(board)


def test_what_is_found_gives_the_ceiling_s_interval_and_no_lead_that_is_none(tmp_path: Path) -> None:
    results = write_results(tmp_path)
    board = next(board for board in boards(load_records(results), results) if board.first.preset == "small")
    said = finding(board)
    assert "a perfect method would reach 75.0 [70.0, 80.0] (validation) and 75.0 [70.0, 80.0] (generation)" in said
    for name in ("validation", "generation"):
        differ = distinguishable(board.comparisons[name])
        assert not differ["nda", "dtrak"]
        assert f"on {name} queries, not distinguishable from dtrak" in said
        assert f"on {name} queries, not distinguishable from nda" in said
    assert "from random" not in said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 µs"), (2.34e-5, "23 µs"), (0.0312, "31 ms"), (1.0, "1.0 s"), (13.53, "13.5 s"), (190.0, "3 min 10 s")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
