from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_records import sample_record

from attribench.errors import RecordError
from attribench.records import load_record, load_records, row_name, save_record


def test_a_record_survives_the_disk_unchanged(tmp_path: Path) -> None:
    record = sample_record()
    _, path = save_record(record, tmp_path)
    assert path == tmp_path / "records" / "digits" / "small" / "nda.json"
    assert load_record(path) == record
    assert load_records(tmp_path) == [record]
    assert load_records(tmp_path, ["cifar2"]) == []


def test_a_record_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    _, path = save_record(sample_record(created="2026-01-01T00:00:00Z"), tmp_path)
    before = path.read_bytes()
    save_record(sample_record(created="2026-02-02T00:00:00Z"), tmp_path)
    assert path.read_bytes() == before
    save_record(sample_record(tuned_on="something"), tmp_path)
    assert path.read_bytes() != before


def test_changed_settings_are_filed_apart(tmp_path: Path) -> None:
    _, first = save_record(sample_record(), tmp_path)
    _, second = save_record(sample_record(overrides={"training.epochs": 3}), tmp_path)
    assert second.parent.name == "small+training.epochs=3"
    assert first != second
    long = sample_record(overrides={f"model.option_{i}": i for i in range(40)})
    assert len(long.path.parent.name) < 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"unknown": 1}, "unknown"),
        ({"cost": {}}, "cost"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    _, path = save_record(sample_record(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordError, match=rf"nda\.json.*{message}"):
        load_record(path)
    path.write_text("{ not json")
    with pytest.raises(RecordError, match=r"nda\.json"):
        load_records(tmp_path)


def test_a_row_s_name_shows_what_was_changed_by_hand() -> None:
    assert row_name("nda", {}) == "nda"
    assert row_name("nda", {"top_k": 5}) == "nda[top_k=5]"
