"""What a board found, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from attribench.data.files import some
from attribench.metrics.comparison import distinguishable
from attribench.records.lds import Record
from attribench.reporting.boards import Board, row_mean
from attribench.reporting.tables import rivals
from attribench.settings import QUERY_SETS


def finding(board: Board) -> str:
    """The best method that looks at data alone, the best that looks at models, the ceiling, and from how many retrainings.

    LDS × 100 with the 95 % interval; the best is the one with the highest mean over the query sets. Said with it: which others
    it cannot be told from, and what options were chosen on.
    """
    data = _best([record for record in board.records if record.access == "DATA"], board.query_sets)
    model = _best([record for record in board.records if record.access in ("MODEL", "CHECKPOINTS")], board.query_sets)
    said = [
        f"of the methods that look at {what}, {record.method} is best ({_numbers(record, board)})"
        for record, what in ((data, "data alone"), (model, "the model"))
        if record is not None
    ]
    said += _chosen([record for record in (data, model) if record is not None])
    ceilings = [f"{ceiling.text} ({name})" for name in board.query_sets if (ceiling := board.ceiling(name))]
    if ceilings:
        said.append(f"a perfect method would reach {' and '.join(ceilings)}")
    seeds = board.first.settings["ground_truth"]["num_seeds"]
    retrained = f"{board.num_subsets * seeds} retrained models"
    found = "; ".join(said) or "no method has a result on every query set"
    return (
        f"{found[0].upper()}{found[1:]}. Judged by {retrained} on random parts of {board.first.num_train} train images."
    )


def _best(records: Sequence[Record], query_sets: Sequence[str]) -> Record | None:
    def mean(record: Record) -> float:
        return row_mean(record, query_sets)

    return max((record for record in records if mean(record) > float("-inf")), key=mean, default=None)


def _numbers(record: Record, board: Board) -> str:
    said = [f"{result.text} on {name} queries{_ties(record, board, name)}" for name, result in record.results.items()]
    return (", and " if any("not distinguishable" in part for part in said) else " and ").join(said)


def _ties(record: Record, board: Board, query_set: str) -> str:
    """Which rivals the data do not tell it from, the best three by name: the table marks all."""
    differ = distinguishable(board.comparisons[query_set])
    tied = [
        other.method
        for other in board.records
        if rivals(other, query_set)
        and not differ.get((record.method, other.method), differ.get((other.method, record.method), True))
    ]
    named = some(tied) if len(tied) > 3 else " and ".join(tied)
    return f", not distinguishable from {named}" if tied else ""


def _chosen(records: Sequence[Record]) -> list[str]:
    """What options were chosen on, and whether numbers are of these very queries."""
    names: dict[str, list[str]] = {}
    for record in records:
        if record.tuned_on:
            names.setdefault(record.tuned_on, []).append(record.method)
    if not names:
        return []
    said = "options of " + ", of ".join(
        f"{' and '.join(methods)} were chosen on {what}" for what, methods in names.items()
    )
    standard = [record.tuned_on for record in records if record.protocol == "standard"]
    seen = [name for name in QUERY_SETS if any(f"{name} queries" in tuned_on for tuned_on in standard)]
    return [f"{said}: the numbers on {' and '.join(seen)} queries are those they were chosen on" if seen else said]
