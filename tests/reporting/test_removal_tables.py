"""Tables, figure and page of grouped removals, from records made up so that their numbers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_results import common, write_results
from scipy import stats

from attribench.cli import main
from attribench.metrics.removals import OverGroups
from attribench.metrics.resampling import Interval
from attribench.records.files import save_file
from attribench.records.removals import CONTROL, KNOWN, RANDOM, Distances, RemovalRecord
from attribench.reporting.collection import Collection
from attribench.reporting.removal_tables import Effect, _better, effects, removal_tables

SIZES, GROUPS, SEEDS = [10, 20, 40], 4, 2
KINDS: dict[str, Any] = {CONTROL: "control", RANDOM: "random", KNOWN: "known"}


def made_up(name: str, slope: float, seed: int, asked: str = "generation", **changes: Any) -> RemovalRecord:
    generator = np.random.default_rng(seed)
    sizes = [0] if name == CONTROL else SIZES
    shape = (GROUPS, len(sizes), SEEDS)
    noise = generator.normal(0, 0.02, shape) if name != CONTROL else np.zeros(shape)
    effect = slope * np.array(sizes)[None, :, None] / SIZES[-1]
    measures = {
        measure: Distances(
            on_group=(scale * (2 + effect + noise)).tolist(), on_controls=np.full(shape, 2.0 * scale).tolist()
        )
        for measure, scale in (("loss", 1.0), ("l2", 3.0))
    }
    return RemovalRecord(
        **{**common(method=name), **changes},
        kind=KINDS.get(name, "method"),
        asked=asked,  # type: ignore[arg-type]
        group_names=[f"group {number}" for number in range(GROUPS)],
        groups=[[f"q{number}-{k}" for k in range(3)] for number in range(GROUPS)],
        queries_hash="q",
        sizes=sizes,
        train_seeds=list(range(SEEDS)),
        measures=measures,
        missing={"clip": "no weights: fetch them"},
    )


@pytest.fixture
def records() -> list[RemovalRecord]:
    return [made_up("nda", 1.0, 1), made_up(RANDOM, 0.0, 2), made_up("weak", 0.001, 3), made_up(CONTROL, 0.0, 0)]


def test_effects_are_the_areas_and_tests_of_scipy(records: list[RemovalRecord]) -> None:
    found = effects([records[3], *records[:3]], "loss")

    def heights(record: RemovalRecord) -> np.ndarray:
        contrast = np.array(record.measures["loss"].on_group).mean(axis=2) - 2.0
        return np.array([np.trapezoid([0, *row], [0, *SIZES]) / SIZES[-1] for row in contrast])

    method, random = heights(records[0]), heights(records[1])
    assert found["nda"].height == pytest.approx(method.mean())
    assert found["nda"].beyond is not None
    expected = stats.ttest_rel(method, random)
    assert found["nda"].beyond.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found["nda"].beyond.interval.low, found["nda"].beyond.interval.high) == pytest.approx(tuple(interval))
    assert found[RANDOM].beyond is None
    last = [np.array(one.measures["loss"].on_group).mean(axis=2)[:, -1] for one in records[:2]]
    assert found["nda"].beyond_at[-1].p_value == pytest.approx(stats.ttest_rel(*last).pvalue)


def test_the_table_has_what_is_better_than_random_in_bold(records: list[RemovalRecord]) -> None:
    (table,) = removal_tables(records)
    assert [row[0] for row in table.rows] == ["nda", "weak", "random, as many"]
    assert {row for row, _ in table.bold} == {0}
    assert table.header[1] == "loss × 1000 mean height"
    assert any("Not measured: 1 − CLIP cosine (no weights)" in note for note in table.notes)
    assert any("10 / 20 / 40 train images" in note for note in table.notes)
    assert removal_tables(records[:3]) == []  # without a control nothing can be said
    assert removal_tables(records[3:]) == []  # nor of a control alone


def test_what_is_right_is_tested_by_itself() -> None:
    """It is no method: that it fails makes a method's test no harder."""
    curve = torch.zeros(GROUPS, len(SIZES))

    def moved(p_value: float, mean: float = 1.0) -> Effect:
        return Effect(curve, mean, OverGroups(mean, Interval(0.1, 2.0, 0.95), p_value, GROUPS), [])

    rows = {RANDOM: Effect(curve, 0.0, None, []), KNOWN: moved(0.5), "nda": moved(0.03)}
    assert _better(rows) == {"nda"}
    assert _better({**rows, KNOWN: moved(0.04)}) == {"nda", KNOWN}
    assert _better({**rows, "weak": moved(0.6)}) == set()  # two methods: Holm asks for 0.025
    assert _better({**rows, "nda": moved(0.03, -1.0)}) == set()


def test_page_figures_and_table_come_from_the_records(
    records: list[RemovalRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results(tmp_path, galleries=False)
    copies = [made_up(name, slope, 4, "copies", train_hash="other", setting_hash="c") for name, slope in
              ((CONTROL, 0.0), (KNOWN, 2.0), (RANDOM, 0.0))]  # fmt: skip
    for record in (*records, *copies):
        save_file(record, tmp_path)
    drawings = [one for one in Collection(tmp_path).drawings() if one.name.endswith("/removals")]
    assert [one.name for one in drawings] == ["digits/small.copies/removals", "digits/small.generation/removals"]
    assert all(one.draw() is not None for one in drawings)
    save_file(made_up(CONTROL, 0.0, 0, "class", setting_hash="stopped"), tmp_path)  # a run that was stopped after it
    assert [one.name for one in Collection(tmp_path).drawings() if one.name.endswith("/removals")] == [
        one.name for one in drawings
    ]
    assert main(["report", "--results", str(tmp_path), "--dataset", "digits", "--preset", "small"]) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("Without what is ranked first for groups of queries") == 2
    assert page.count("<h2 ") == 2  # they are in the section of their setting
    assert main(["table", "--kind", "removals", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "what is right" in printed
    assert "random, as many" in printed
