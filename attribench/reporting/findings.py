"""What a board found, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from attribench.records.lds import Record
from attribench.reporting.boards import Board, row_mean


def finding(board: Board) -> str:
    """The best method that looks at data alone, the best that looks at models, the ceiling, and from how many retrainings.

    LDS × 100 with the 95 % interval; the best is the one with the highest mean over the query sets.
    """
    data = _best([record for record in board.records if record.access == "DATA"], board.query_sets)
    model = _best([record for record in board.records if record.access in ("MODEL", "CHECKPOINTS")], board.query_sets)
    said = [
        f"of the methods that look at {what}, {record.method} is best ({_numbers(record)})"
        for record, what in ((data, "data alone"), (model, "the model"))
        if record is not None
    ]
    ceilings = [f"{100 * ceiling.lds:.1f} ({name})" for name in board.query_sets if (ceiling := board.ceiling(name))]
    if ceilings:
        said.append(f"a perfect method would reach {' and '.join(ceilings)}")
    truth = board.first.settings["ground_truth"]
    # Under the strict protocol, options were chosen on the other half of the subsets, the smaller one if they differ.
    subsets = truth["num_subsets"] - (truth["num_subsets"] // 2 if board.first.protocol == "strict" else 0)
    retrained = f"{subsets * truth['num_seeds']} retrained models"
    found = "; ".join(said) or "no method has a result on every query set"
    return (
        f"{found[0].upper()}{found[1:]}. Judged by {retrained} on random parts of {board.first.num_train} train images."
    )


def _best(records: Sequence[Record], query_sets: Sequence[str]) -> Record | None:
    def mean(record: Record) -> float:
        return row_mean(record, query_sets)

    return max((record for record in records if mean(record) > float("-inf")), key=mean, default=None)


def _numbers(record: Record) -> str:
    return " and ".join(f"{result.text} on {name} queries" for name, result in record.results.items())
