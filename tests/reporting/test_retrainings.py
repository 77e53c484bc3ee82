from __future__ import annotations

from typing import Any

import pytest
from sample_records import sample_record, sample_result

from attribench.records.lds import MeasuredLDS, Record
from attribench.records.sweep import Point, SweepRecord
from attribench.reporting.boards import boards
from attribench.reporting.figures.charts import retrainings
from attribench.reporting.retrainings import retrainings_table, yardsticks


def sweep(points: list[tuple[Any, float]], vary: str = "num_retrainings", **changes: Any) -> SweepRecord:
    base = sample_record(method="datamodel").model_dump(exclude={"results", "cost", "protocol"})
    made = [Point(value=value, results={"validation": MeasuredLDS(lds=lds)}) for value, lds in points]
    return SweepRecord(**{**base, "access": "RETRAINED", **changes}, vary=vary, points=made)


def record(method: str, lds: float) -> Record:
    return sample_record(method=method, results={"validation": sample_result(lds)})


def test_a_method_is_worth_the_retrainings_with_its_lds() -> None:
    records = [record(name, lds) for name, lds in (("a", 0.5), ("b", 0.15), ("c", 0.0), ("d", 0.2), ("e", 0.25))]
    (found,) = yardsticks(boards(records), [sweep([(48, 0.3), (8, 0.1), (16, 0.2), (32, 0.15), (40, 0.18)])])
    table = retrainings_table(found)
    assert [row[:3:2] for row in table.rows[:5]] == [["a", "> 48"], ["e", "32"], ["d", "16"], ["b", "12"], ["c", "< 8"]]
    assert [(row[0], row[2]) for row in table.rows[5:]] == [("datamodel", n) for n in ("8", "16", "32", "40", "48")]
    assert table.rules == {5}
    assert table.rows[0][3:] == ["—", "—", "nothing"]
    assert table.columns[-1].name == "tuned on"
    assert "Preset small is CPU-sized: not comparable with published numbers." in table.notes


def test_what_options_were_chosen_on_is_said() -> None:
    ours = record("trak", 0.2).model_copy(update={"tuned_on": "validation queries"})
    (found,) = yardsticks(boards([ours]), [sweep([(8, 0.1)])])
    assert [row[-1] for row in retrainings_table(found).rows] == ["validation queries", "nothing"]


def test_a_yardstick_is_of_the_ground_truth_that_it_measures() -> None:
    other = record("trak", 0.3)
    result = other.results["validation"].model_copy(update={"ground_truth_hash": "h"})
    other = other.model_copy(update={"results": {"validation": result}})
    both = boards([record("trak", 0.2), other])
    assert len(both) == 2
    for truth, expected in (("g", 0.2), ("h", 0.3)):
        (found,) = yardsticks(both, [sweep([(8, 0.1)], ground_truth_hashes={"validation": truth})])
        assert found.board.first.results["validation"].lds == expected
    assert yardsticks(both, [sweep([(8, 0.1)], ground_truth_hashes={"validation": "elsewhere"})]) == []
    assert len(yardsticks(both, [sweep([(8, 0.1)])])) == 1, "an earlier version's record"


def test_it_measures_neither_itself_nor_other_settings() -> None:
    ours = record("trak", 0.2)
    own = record("datamodel", 0.3).model_copy(update={"access": "RETRAINED"})
    (found,) = yardsticks(boards([ours, own]), [sweep([(8, 0.1), (16, 0.3)])])
    assert [record.method for record in found.measured] == ["trak"]
    assert (
        yardsticks(boards([ours]), [sweep([(8, 0.1)], setting_hash="other"), sweep([(0.1, 0.1)], vary="alpha")]) == []
    )


@pytest.mark.parametrize("count", [1, 40])
def test_the_figure_names_every_method_once_without_two_names_at_one_place(count: int) -> None:
    records = [record(f"m{number}", 0.2 + 0.0001 * number) for number in range(count)]
    (found,) = yardsticks(boards(records), [sweep([(8, 0.1), (16, 0.3)])])
    (axes,) = retrainings(found).axes
    texts = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert set(texts) == {one.method for one in records}
    assert len(set(texts.values())) == count
