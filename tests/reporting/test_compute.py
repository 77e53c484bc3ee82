from __future__ import annotations

from typing import Any

import pytest
from sample_records import sample_record

from attribench.records.lds import CostRecord, MeasuredLDS
from attribench.records.sweep import Point, SweepRecord
from attribench.reporting.compute import comparisons, compute_table
from attribench.reporting.figures.charts import compute_against_lds


def sweep(method: str, points: list[tuple[Any, float, float | None]], vary: str = "num_timesteps") -> SweepRecord:
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
    return SweepRecord(**base, vary=vary, points=made, num_queries={"validation": 100, "generation": 100})


def cost(seconds: float) -> CostRecord:
    return CostRecord(prepare_seconds=seconds, seconds_per_query=0.1, peak_bytes=0, stored_bytes=0)


def test_the_quickest_setting_within_a_point_of_the_best_has_converged() -> None:
    (found,) = comparisons(
        [sweep("trak", [(100, 0.40, 200.0), (10, 0.20, 20.0), (50, 0.391, 100.0), (200, 0.395, 400.0)])]
    )
    assert [setting.text for setting in found.settings["trak"]] == [f"num_timesteps={n}" for n in (10, 50, 100, 200)]
    assert found.converged("trak").text == "num_timesteps=50"
    table = compute_table(found)
    assert table.rows[1] == ["trak", "num_timesteps=50", "39.1", "19.6", "600 ms"]  # 100 s / 200 queries + 0.1 s
    assert {row for row, _ in table.bold} == {1}


def test_one_point_below_is_within_and_more_is_not() -> None:
    (found,) = comparisons(
        [sweep("a", [(1, 0.3899, 1.0), (2, 0.40, 2.0)]), sweep("b", [(1, 0.3901, 1.0), (2, 0.40, 2.0)])]
    )
    assert (found.converged("a").text, found.converged("b").text) == ("num_timesteps=2", "num_timesteps=1")


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
    points = [(10, 0.2, 20.0), (100, 0.4, 200.0)]
    (found,) = comparisons([sweep("trak", points), sweep("dtrak", points)])  # type: ignore[arg-type]
    figure = compute_against_lds(found)
    axes = figure.axes[0]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["dtrak", "trak"]
    filled = [line for line in axes.lines if line.get_markersize() == 5]
    assert [line.get_xydata().tolist() for line in filled] == [[[1.1, 40.0]], [[1.1, 40.0]]]  # type: ignore[union-attr]
