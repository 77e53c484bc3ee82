"""How many retrained models each method is worth: the number that a datamodel must learn from to do as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribench.records.lds import MeasuredLDS, Record
from attribench.records.sweep import SweepRecord
from attribench.reporting.boards import Board
from attribench.reporting.formats import MISSING, NOTHING, Column, Table
from attribench.reporting.tables import preset_notes
from attribench.settings import QUERY_SETS

#: The option that says how many retrained models a method learns from.
OPTION = "num_retrainings"


@dataclass(frozen=True)
class Yardstick:
    """A method at several numbers of retrained models, and the board it measures.

    Attributes:
        board: of the same ground truth.
        sweep: over :data:`OPTION`.
    """

    board: Board
    sweep: SweepRecord

    def curve(self, query_set: str) -> list[tuple[int, MeasuredLDS]]:
        """Numbers of retrained models, ascending, each with its LDS."""
        points = [point for point in self.sweep.points if isinstance(point.value, int) and query_set in point.results]
        return [(point.value, point.results[query_set]) for point in sorted(points, key=lambda point: point.value)]

    def worth(self, record: Record, query_set: str) -> str:
        """The number of retrained models with the LDS of a row, between the measured numbers by a straight line.

        More models are taken to do no worse, so that there is one such number; outside what was measured, its bound.
        """
        curve, result = self.curve(query_set), record.results.get(query_set)
        if not curve or result is None:
            return MISSING
        numbers = np.array([number for number, _ in curve], dtype=np.float64)
        values = np.maximum.accumulate([measured.lds for _, measured in curve])
        if result.lds < values[0]:
            return f"< {numbers[0]:.0f}"
        if result.lds > values[-1]:
            return f"> {numbers[-1]:.0f}"
        kept = np.concatenate([[True], np.diff(values) > 0])
        return f"{np.interp(result.lds, values[kept], numbers[kept]):.0f}"

    @property
    def measured(self) -> list[Record]:
        """The rows of the board that are not given retrained models themselves."""
        return [record for record in self.board.records if record.access != "RETRAINED"]

    @property
    def query_sets(self) -> list[str]:
        """Those that the sweep has results on, in the order tables show them."""
        return [name for name in QUERY_SETS if self.curve(name)]


def yardsticks(boards: Sequence[Board], sweeps: Sequence[SweepRecord]) -> list[Yardstick]:
    """Each sweep over :data:`OPTION` with the board of its setting and ground truth, under the standard protocol."""
    found = []
    for sweep in sweeps:
        if sweep.vary == OPTION and not sweep.series_option:
            board = next((board for board in boards if _measures(sweep, board)), None)
            if board is not None:
                found.append(Yardstick(board, sweep))
    return found


def _measures(sweep: SweepRecord, board: Board) -> bool:
    first = board.first
    return (
        first.protocol == "standard"
        and (first.dataset, first.setting_hash) == (sweep.dataset, sweep.setting_hash)
        and all(sweep.same_truth(record) for record in board.records)
    )


def retrainings_table(yardstick: Yardstick) -> Table:
    """A row a method: its LDS, and how many retrained models it is worth, on each query set; below, the yardstick itself."""
    columns = [Column("method")]
    for name in QUERY_SETS:
        columns += [Column("LDS×100 [95 %]", group=name), Column("retrained models", group=name)]
    columns.append(Column("tuned on", "note"))
    rows = [
        [
            record.method,
            *_cells([(record.results.get(name), yardstick.worth(record, name)) for name in QUERY_SETS]),
            record.tuned_on or NOTHING,
        ]
        for record in yardstick.measured
    ]
    rules = {len(rows)}
    curves = {name: dict(yardstick.curve(name)) for name in QUERY_SETS}
    for number in sorted({number for curve in curves.values() for number in curve}):
        found = [(curve.get(number), str(number)) for curve in curves.values()]
        rows.append([yardstick.sweep.method, *_cells(found), yardstick.sweep.tuned_on or NOTHING])
    said = [
        f"Retrained models: how many {yardstick.sweep.method} must learn from to reach the same LDS, by straight lines between "
        "the rows below; it is judged on other models than those it learns from. Where a method does better than all that were "
        "measured, it is worth more retrainings than that.",
        *preset_notes(yardstick.board.first),
    ]
    title = f"{yardstick.board.title}: how many retrained models a method is worth"
    return Table(title, said, columns, rows, frozenset(), frozenset(rules))


def _cells(found: Sequence[tuple[MeasuredLDS | None, str]]) -> list[str]:
    return [
        text
        for result, number in found
        for text in ((result.text, number) if result is not None else (MISSING, MISSING))
    ]
