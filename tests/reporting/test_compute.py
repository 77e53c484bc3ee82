from __future__ import annotations

from typing import Any

import pytest
from sample_records import sample_record

from attribench.records.lds import CostRecord, MeasuredLDS
from attribench.records.sweep import Point, SweepRecord
from attribench.reporting.compute import Comparison, comparisons, compute_table
from attribench.reporting.figures.charts import compute_against_lds


def sweep(
    method: str, points: list[tuple[Any, float, float | None]], vary: str = "num_timesteps", **changes: Any
) -> SweepRecord:
    """Points as (value, LDS, seconds of preparation)."""
    base = sample_record(method=method).model_dump(exclude={"results", "cost", "protocol"})
    made = [
        Point(
            value=value,
            results={"validation": MeasuredLDS(lds=lds), "generation": MeasuredLDS(lds=lds / 2)},
            cost=None if seconds is None else cost(seconds),
        )
        for value, lds, seconds in points
    ]
    base = {**base, "num_queries": {"validation": 100, "generation": 100}, **changes}
    return SweepRecord(**base, vary=vary, points=made)


def converged(comparison: Comparison, method: str) -> str | None:
    found = comparison.converged(method)
    return None if found is None else found.text


def cost(seconds: float) -> CostRecord:
    return CostRecord(prepare_seconds=seconds, seconds_per_query=0.1, peak_bytes=0, stored_bytes=0)


def test_the_quickest_setting_within_a_point_of_the_best_has_converged() -> None:
    (found,) = comparisons(
        [sweep("trak", [(100, 0.40, 200.0), (10, 0.20, 20.0), (50, 0.391, 100.0), (200, 0.395, 400.0)])]
    )
    assert [setting.text for setting in found.settings["trak"]] == [f"num_timesteps={n}" for n in (10, 50, 100, 200)]
    assert converged(found, "trak") == "num_timesteps=50"
    table = compute_table(found)
    assert table.rows[1] == [
        "trak",
        "num_timesteps=50",
        "39.1",
        "19.6",
        "600 ms",
        "nothing",
    ]  # 100 s / 200 queries + 0.1 s
    assert {row for row, _ in table.bold} == {1}
    assert not any(note.startswith("Not converged") for note in table.notes)


def test_one_point_below_is_within_and_more_is_not() -> None:
    (found,) = comparisons(
        [
            sweep("a", [(1, 0.3899, 1.0), (2, 0.40, 2.0), (3, 0.40, 3.0)]),
            sweep("b", [(1, 0.3901, 1.0), (2, 0.40, 2.0)]),
        ]
    )
    assert (converged(found, "a"), converged(found, "b")) == ("num_timesteps=2", "num_timesteps=1")


def test_the_last_setting_that_was_tried_is_not_where_a_method_converges() -> None:
    rising: list[tuple[Any, float, float | None]] = [(1, 0.2, 1.0), (2, 0.3, 2.0), (3, 0.32, 3.0)]
    (found,) = comparisons(
        [sweep("a", rising), sweep("b", rising[:1]), sweep("c", [*rising, (4, 0.321, 4.0)]), sweep("d", rising[1:2])]
    )
    assert [converged(found, name) for name in "abcd"] == [None, None, "num_timesteps=3", None]
    table = compute_table(found)
    assert {table.rows[row][0] for row, _ in table.bold} == {"c"}
    assert "Not converged within what was tried: a, b, d." in table.notes
    assert compute_against_lds(found).get_suptitle().endswith("Not converged within what was tried: a, b, d.")


def test_options_say_what_they_were_chosen_on_and_the_preset_what_it_is() -> None:
    (found,) = comparisons(
        [sweep("trak", [(10, 0.2, 1.0)], tuned_on="validation queries"), sweep("nda", [(1, 0.1, 1.0)])]
    )
    table = compute_table(found)
    assert {row[0]: row[-1] for row in table.rows} == {"trak": "validation queries", "nda": "nothing"}
    assert (table.columns[-1].name, table.columns[-1].place) == ("tuned on", "note")
    assert "Preset small is CPU-sized: not comparable with published numbers." in table.notes


def test_sweeps_of_other_ground_truths_are_apart() -> None:
    points: list[tuple[Any, float, float | None]] = [(10, 0.2, 1.0)]
    here, elsewhere = ({"validation": "v", "generation": name} for name in ("g", "h"))
    one, other = sweep("a", points, ground_truth_hashes=here), sweep("b", points, ground_truth_hashes=elsewhere)
    assert [list(found.settings) for found in comparisons([one, other])] == [["a"], ["b"]]
    # Of an earlier version's record the ground truth is not known: it belongs with those of its setting.
    assert [list(found.settings) for found in comparisons([sweep("old", points), one])] == [["a", "old"]]


def test_other_options_and_unknown_costs_are_left_out() -> None:
    assert comparisons([sweep("nda", [(7, 0.5, 1.0)], vary="patch_size"), sweep("trak", [(10, 0.2, None)])]) == []


def test_settings_that_may_not_be_compared_are_apart() -> None:
    other = sweep("trak", [(10, 0.2, 1.0)]).model_copy(update={"setting_hash": "other"})
    assert len(comparisons([sweep("trak", [(10, 0.2, 1.0)]), other])) == 2


def test_timesteps_are_told_by_number_and_range() -> None:
    (found,) = comparisons([sweep("nda", [([50, 100, 150], 0.5, 1.0)], vary="timesteps")])
    assert found.settings["nda"][0].text == "timesteps=3 of 50…150"


@pytest.mark.filterwarnings("error")
def test_the_figure_has_a_curve_a_method_and_its_converged_setting_filled() -> None:
    points = [(10, 0.2, 20.0), (100, 0.4, 200.0), (200, 0.4, 400.0)]
    (found,) = comparisons([sweep("trak", points), sweep("dtrak", points)])  # type: ignore[arg-type]
    figure = compute_against_lds(found)
    axes = figure.axes[0]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["dtrak", "trak"]
    filled = [line for line in axes.lines if line.get_markersize() == 5]
    assert [line.get_xydata().tolist() for line in filled] == [[[1.1, 40.0]], [[1.1, 40.0]]]  # type: ignore[union-attr]


def test_lists_of_one_length_and_range_are_settings_of_their_own() -> None:
    lists = [[50, 100, 300], [50, 200, 300], [50, 100, 150, 200], [50, 100, 200, 200]]
    points = [
        (steps, lds, 10.0 + number) for number, (steps, lds) in enumerate(zip(lists, (0.1, 0.4, 0.2, 0.3), strict=True))
    ]
    (found,) = comparisons([sweep("nda", points, "timesteps")])
    assert [setting.text for setting in found.settings["nda"]] == [
        "timesteps=[50, 100, 300]", "timesteps=[50, 200, 300]", "timesteps=4 of 50…200", "timesteps=[50, 100, 200, 200]",
    ]  # fmt: skip
    assert converged(found, "nda") == "timesteps=[50, 200, 300]"


def test_settings_of_several_files_that_differ_in_other_options_are_told_apart() -> None:
    first = sweep("trak", [(10, 0.2, 1.0), (100, 0.3, 2.0)], options={"regularization": 0.1, "num_timesteps": 10})
    other = sweep("trak", [(10, 0.4, 1.5)], options={"regularization": 3.0, "num_timesteps": 100})
    again = sweep("trak", [(3, 0.9, 9.0)], "noise_draws", options={"regularization": 3.0, "num_timesteps": 10})
    same = sweep("trak", [(10, 0.2, 7.0)], options={"regularization": 0.1, "num_timesteps": 50})
    (found,) = comparisons([first, other, again, same])
    assert [(setting.text, setting.seconds) for setting in found.settings["trak"]] == [
        ("num_timesteps=10, regularization=0.1", pytest.approx(0.105)),
        ("num_timesteps=10, regularization=3.0", pytest.approx(0.1075)),
        ("num_timesteps=100", pytest.approx(0.11)),
        ("noise_draws=3", pytest.approx(0.145)),
    ]


def test_times_beside_other_work_are_told() -> None:
    quiet, loud = sweep("nda", [(1, 0.1, 1.0)]), sweep("trak", [(10, 0.2, 1.0)])
    assert loud.points[0].cost is not None
    taken = loud.points[0].cost.model_copy(update={"others_share": 0.9})
    loud = loud.model_copy(update={"points": [loud.points[0].model_copy(update={"cost": taken})]})
    (found,) = comparisons([quiet, loud])
    assert any(note.endswith("and are too long: trak num_timesteps=10 90 %.") for note in compute_table(found).notes)
    (found,) = comparisons([quiet])
    assert not any("too long" in note for note in compute_table(found).notes)
