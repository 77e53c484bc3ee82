from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_records import sample_record

from attribench.computing.progress import Progress
from attribench.errors import RecordError
from attribench.records.choices import Choice, choice_path, load_choice, save_choice
from attribench.records.counterfactual import CounterfactualRecord, load_counterfactuals
from attribench.records.files import MethodRecord, load_attachment, safe, save_file
from attribench.records.lds import Record, load_record, load_records, row_name, save_record
from attribench.records.sweep import Point, SweepRecord, load_sweeps
from attribench.reporting.collection import Collection, folder
from attribench.store.files import digest_text


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


@pytest.mark.parametrize(
    ("first", "second"),
    [("猫", "犬"), ("my data", "my_data"), ("A/images", "B/images"), (".a", "a"), ("x" * 200, "x" * 201), ("", "_")],
)
def test_names_that_need_cleaning_share_no_file(tmp_path: Path, first: str, second: str) -> None:
    assert safe(first) != safe(second)
    for kind in ("dataset", "method", "preset"):
        paths = {save_record(sample_record(**{kind: name}), tmp_path / kind)[1] for name in (first, second)}
        assert len(paths) == 2
        assert {getattr(record, kind) for record in load_records(tmp_path / kind)} == {first, second}
    assert sample_record(overrides={"data.name": first}).path != sample_record(overrides={"data.name": second}).path
    for position in range(3):
        names = [["d", "p", "m"], ["d", "p", "m"]]
        names[0][position], names[1][position] = first, second
        assert choice_path(*names[0], "standard") != choice_path(*names[1], "standard")
        assert len(choice_path(*names[0], "standard").parts) == 4


def test_names_that_need_no_cleaning_are_kept() -> None:
    for name in ("digits", "pixel-cosine", "ground_truth.num_seeds=2,ground_truth.num_subsets=64", "v1.2+a"):
        assert safe(name) == name
    assert safe("my data") == f"my_data-{digest_text('my data')[:8]}"


def other_kinds(record: Record) -> list[tuple[MethodRecord, Any]]:
    """The same row as a sweep and as a counterfactual evaluation, each with what loads it."""
    shared = record.model_dump(include=set(MethodRecord.model_fields))
    sweep = SweepRecord(**shared, vary="top_k", points=[Point(value=1, results={})])
    moved = CounterfactualRecord(
        **shared, query_ids=["a"], queries_hash="q", num_removed=1, train_seeds=[1], l2=[[1.0]]
    )
    return [(record, load_records), (sweep, load_sweeps), (moved, load_counterfactuals)]


def test_records_of_other_data_or_settings_are_never_replaced(tmp_path: Path) -> None:
    ours, theirs = sample_record(setting_hash="1" * 32), sample_record(setting_hash="2" * 32, train_hash="u")
    for (first, load), (second, _) in zip(other_kinds(ours), other_kinds(theirs), strict=True):
        tensors = {"a": torch.ones(1)}
        first, before = save_file(first, tmp_path, tensors)
        second, after = save_file(second, tmp_path, {"a": torch.zeros(1)})
        assert before.parent.name == "small"
        assert after.parent.name == "small-22222222"
        assert load(tmp_path) == [first, second]
        assert load_attachment(first, tmp_path) == tensors
        assert second.title == "digits, preset small, setting 22222222"
        # Again, in any order: each is where it was. Another method of either joins it there.
        for record in (second.model_copy(update={"variant": ""}), first):
            assert save_file(record, tmp_path, {"a": torch.ones(1)})[1] in (before, after)
        _, path = save_file(second.model_copy(update={"variant": "", "method": "dtrak"}), tmp_path)
        assert path.parent == after.parent
        assert len(load(tmp_path)) == 3
        path.unlink()
    names = [drawing.name for drawing in Collection(tmp_path, None, None).drawings()]
    assert len(names) == len(set(names))
    assert folder(second) == "digits/small-22222222"


def test_a_record_of_another_method_or_other_options_is_set_aside(tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(Progress):
        def message(self, text: str) -> None:
            said.append(text)

    first, path = save_record(sample_record(method_class="a.Brightness"), tmp_path, {"a": torch.ones(1)}, Listening())
    content = path.read_bytes()
    assert not said
    second, again = save_record(sample_record(method_class="b.Brightness"), tmp_path, None, Listening())
    assert again == path
    assert load_records(tmp_path) == [second]
    (kept,) = (path.parent / "superseded").glob("*.json")
    assert kept.read_bytes() == content
    assert (path.parent / "superseded" / f"nda.{first.attachment[:8]}.safetensors").is_file()
    assert str(path) in said[0]
    assert str(kept) in said[0]
    path.write_text("{ damaged")
    save_record(second, tmp_path)
    assert len(list((path.parent / "superseded").glob("*.json"))) == 2
    save_record(sample_record(method_class="b.Brightness", versions={"attribench": "0.2.0"}), tmp_path)
    assert len(list((path.parent / "superseded").glob("*.json"))) == 2, "measured again, it takes its own place"


def test_a_sweep_of_other_values_is_set_aside(tmp_path: Path) -> None:
    shared = sample_record().model_dump(include=set(MethodRecord.model_fields))
    for values in ([1, 2], [3, 4], [3, 4]):
        points = [Point(value=value, results={}) for value in values]
        _, path = save_file(SweepRecord(**shared, vary="top_k", points=points), tmp_path)
    assert len(list((path.parent / "superseded").glob("*.json"))) == 1


def test_choices_of_other_settings_are_never_replaced(tmp_path: Path) -> None:
    def choice(setting: str, lds: float) -> Choice:
        return Choice(
            dataset="digits", preset="small", method="nda", protocol="standard", setting_hash=setting, options={},
            lds=lds, query_ids=[], subsets=[], trials=[], created="",
        )  # fmt: skip

    ours, theirs = "1" * 32, "2" * 32
    assert save_choice(choice(ours, 0.1), tmp_path).name == "nda.standard.json"
    save_choice(choice(theirs, 0.2), tmp_path)
    save_choice(choice(ours, 0.3), tmp_path)
    save_choice(choice(theirs, 0.4), tmp_path)
    found = [load_choice(tmp_path, "digits", "small", "nda", "standard", setting).lds for setting in (ours, theirs)]
    assert found == [0.3, 0.4]


def test_a_sweep_of_another_ground_truth_is_another_one(tmp_path: Path) -> None:
    base = sample_record().model_dump(exclude={"results", "cost", "protocol"})
    said: list[str] = []

    class Notes(Progress):
        def message(self, text: str) -> None:
            said.append(text)

    def save(**truths: str) -> None:
        save_file(SweepRecord(**base, vary="top_k", points=[], ground_truth_hashes=truths), tmp_path, progress=Notes())

    save()  # as an earlier version filed it
    save(validation="v", generation="g")
    assert said == [], "it takes the earlier version's place"
    save(validation="v")
    assert said == []
    save(validation="other")
    assert len(said) == 1
    assert "superseded" in said[0]
    assert [sweep.ground_truth_hashes for sweep in load_sweeps(tmp_path)] == [{"validation": "other"}]
