"""The layout of papers: a row a method, two columns a data set, the published statistic; published numbers in columns apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attribench.records.lds import Record
from attribench.reporting.boards import Board
from attribench.reporting.formats import MISSING, Column, Table
from attribench.reporting.published import Published, load_published
from attribench.reporting.tables import preset_notes, published_cell, undefined_notes
from attribench.settings import QUERY_SETS


def paper_tables(boards: Sequence[Board], with_published: bool = False) -> list[Table]:
    """One table for each preset, changes and protocol; data sets side by side.

    Args:
        boards: any.
        with_published: put the published numbers beside ours, in columns of their own, and those of methods that we have no
            record of in rows of their own.
    """
    groups: dict[tuple[str, ...], list[Board]] = {}
    for board in boards:
        first = board.first
        groups.setdefault((first.preset, str(first.overrides), first.variant, first.protocol), []).append(board)
    return [_table(group, with_published) for group in groups.values()]


def _table(boards: list[Board], with_published: bool) -> Table:
    known = load_published()
    datasets = list(dict.fromkeys(board.first.dataset for board in boards))
    shown = [dataset for dataset in datasets if dataset in known.datasets] if with_published else []
    names = {method.row or method.name: method.name for method in known.methods}
    placed = [_placed(board, known) for board in boards]
    order = _order(placed, known, shown)
    columns = [Column("method")]
    for board in boards:
        columns += [Column(name, group=board.first.dataset) for name in QUERY_SETS]
    for dataset in shown:
        columns += [Column(name, group=f"{dataset}, published") for name in QUERY_SETS]
    rows, bold, rules = [], set(), set()
    data_alone = [_looks_at_data(name, placed, known) for name in order]
    for number, name in enumerate(order):
        if number and data_alone[number - 1] and not data_alone[number]:
            rules.add(number)
        cells = [names.get(name, name)]
        for board, rows_here in zip(boards, placed, strict=True):
            record = rows_here.get(name)
            for query_set in QUERY_SETS:
                result = record.results.get(query_set) if record else None
                if record and result and record.method in board.best[query_set] and len(board.records) > 1:
                    bold.add((number, len(cells)))
                cells.append(published_cell(result))
        for dataset in shown:
            for query_set in QUERY_SETS:
                cell = known.cell(names.get(name, name), dataset, query_set)
                cells.append(cell.text + cell.mark if cell else MISSING)
        rows.append(cells)
    notes = _notes(boards, known.notes(shown) if shown else [])
    return Table(_title(boards), notes, columns, rows, frozenset(bold), frozenset(rules))


#: The records of a board by the name of their row.
_Placed = Mapping[str, Record]


def _placed(board: Board, known: Published) -> _Placed:
    """Each record under its own name, or in the row of a published method that it is under another name."""
    found = {record.method: record for record in board.records}
    for record in board.records:
        for method in known.methods:
            if method.row and method.row not in found and method.is_also(record.method, record.options):
                found[method.row] = found.pop(record.method)
    return found


def _order(placed: Sequence[_Placed], known: Published, shown: Sequence[str]) -> list[str]:
    """Our names of the rows: those that were published, in their order, then the others."""
    here = {name for records in placed for name in records}
    published = [
        method.row or method.name for method in known.methods if method.row in here or known.has(method.name, shown)
    ]
    others = here - set(published)
    return published + sorted(others, key=lambda name: (not _looks_at_data(name, placed, known), name))


def _looks_at_data(name: str, placed: Sequence[_Placed], known: Published) -> bool:
    """Whether a method looks at data alone, by our records, or else as published."""
    access = {records[name].access for records in placed if name in records}
    return (
        access == {"DATA"}
        if access
        else any(method.looks_at == "data" for method in known.methods if name in (method.row, method.name))
    )


def _title(boards: Sequence[Board]) -> str:
    setting = boards[0].title.partition(", ")[2]
    return f"LDS × 100, {setting}"


def _notes(boards: Sequence[Board], published: list[str]) -> list[str]:
    notes = [
        "Mean ± standard deviation over 64 resamples of the subsets; methods above the line look at data alone.",
        "Bold: the best of each column and those not distinguishable from it by paired tests.",
    ]
    for board in boards:
        seeds = board.first.settings["ground_truth"]["num_seeds"]
        notes.append(f"{board.first.dataset}: {board.num_subsets} subsets × {seeds} seed(s).")
    tuned = [
        f"{record.method} ({board.first.dataset}) on {record.tuned_on}"
        for board in boards
        for record in board.records
        if record.tuned_on
    ]
    notes.append(f"Tuned: {'; '.join(tuned) or 'nothing'}.")
    notes += dict.fromkeys(note for board in boards for note in undefined_notes(board.records))
    return notes + published + preset_notes(boards[0].first)
