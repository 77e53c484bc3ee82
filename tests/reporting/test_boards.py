from __future__ import annotations

from pathlib import Path

import pytest
from sample_records import sample_record, sample_result
from sample_results import write_results

from attribench.errors import RecordError
from attribench.records.files import load_attachment
from attribench.records.lds import load_records, save_record
from attribench.reporting.boards import Board, boards
from attribench.reporting.collection import Collection
from attribench.reporting.tables import leaderboards


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


def small(results: Path) -> Board:
    return next(board for board in boards(load_records(results), results) if board.first.preset == "small")


def test_the_best_and_what_is_not_distinguishable_from_it(results: Path) -> None:
    board = small(results)
    assert board.best["validation"] == {"nda", "dtrak"}  # nearly the same predictions; the others are far below
    assert board.tested("validation")
    (table,) = [table for table in leaderboards(load_records(results), results) if "preset small" in table.title]
    rows = {row[0]: row for row in table.rows}
    assert rows["dtrak"][1].endswith(" ≈")
    assert not rows["nda"][1].endswith(" ≈")
    assert not rows["random"][1].endswith(" ≈")
    assert (0, 1) in table.bold
    assert any("≈" in note for note in table.notes)


def test_the_noise_ceiling_is_a_row(results: Path) -> None:
    (table,) = [table for table in leaderboards(load_records(results), results) if "preset small" in table.title]
    assert table.rows[-1][:2] == ["noise ceiling", "75.0 [70.0, 80.0]"]
    assert len(table.rows) - 1 in table.rules
    assert any("agreement of 3 training seeds" in note for note in table.notes)


def test_without_attachments_nothing_is_tested(results: Path) -> None:
    board = boards(load_records(results))[0]
    assert not board.tested("validation")
    smoke = next(board for board in boards(load_records(results), results) if board.first.preset == "smoke")
    assert not smoke.tested("validation")
    assert smoke.ceiling("validation") is None


def test_a_query_set_that_no_record_has_keeps_none_from_its_place() -> None:
    lds = {"weak": 0.1, "strong": 0.9, "fair": 0.5}
    (board,) = boards([sample_record(method=name, results={"validation": sample_result(lds[name])}) for name in lds])
    assert [record.method for record in board.records] == ["strong", "fair", "weak"]
    assert board.query_sets == ("validation",)
    (table,) = leaderboards(board.records)
    assert {row[3] for row in table.rows} == {"—"}


def test_query_names_are_those_of_a_record_that_has_them() -> None:
    (board,) = boards(
        [sample_record(method=name, results={name: sample_result()}) for name in ("validation", "generation")]
    )
    assert board.ids("validation") == board.ids("generation") == ["a", "b"]
    assert board.ids("other") == []


def test_a_damaged_attachment_is_an_error_that_names_it(results: Path) -> None:
    (file,) = (results / "records" / "digits" / "small").glob("nda.*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RecordError, match=file.name.replace(".", r"\.")):
        boards(load_records(results), results)


def test_records_of_another_ground_truth_are_not_paired(results: Path) -> None:
    records = load_records(results)
    other = next(record for record in records if record.method == "dtrak")
    tensors = load_attachment(other, results) or {}
    tensors["validation.outputs"] = tensors["validation.outputs"].flip(0)
    save_record(other, results, tensors)
    board = small(results)
    assert not any("dtrak" in pair for pair in board.comparisons["validation"])
    assert board.tested("validation")


def test_rows_of_different_ground_truths_share_no_board() -> None:
    other = sample_result().model_copy(update={"ground_truth_hash": "h"})
    records = [
        sample_record(),
        sample_record(method="dtrak", results={"validation": other, "generation": other}),
        sample_record(method="trak", results={"validation": sample_result()}),  # no cell to tell it apart by
        sample_record(method="random", results={"validation": sample_result(), "generation": other}),
    ]
    found = [sorted(record.method for record in board.records) for board in boards(records)]
    assert found == [["nda", "trak"], ["dtrak"], ["random"]]


def test_figures_of_boards_on_different_ground_truths_have_different_names(tmp_path: Path) -> None:
    other = sample_result().model_copy(update={"ground_truth_hash": "h"})
    save_record(sample_record(), tmp_path)
    save_record(sample_record(method="dtrak", results={"validation": other, "generation": other}), tmp_path)
    names = [drawing.name for drawing in Collection(tmp_path).drawings()]
    assert len(names) == len(set(names))
    assert {"digits/small/lds", "digits/small/lds-2"} <= set(names)
