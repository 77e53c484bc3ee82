"""The layout of papers: a row a method, two columns a data set, the published statistic; published numbers in columns apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from attribench.records.lds import Record
from attribench.reporting.boards import Board
from attribench.reporting.formats import MISSING, Column, Table
from attribench.reporting.tables import preset_notes, published_cell
from attribench.settings import QUERY_SETS


@dataclass(frozen=True)
class PublishedMethod:
    """A method's published numbers.

    Attributes:
        name: what the paper calls it.
        row: what our tables call it.
        results: by data set: one text a query set, in the order of ``QUERY_SETS``; minus signs are hyphens, as in our numbers.
    """

    name: str
    row: str
    results: dict[str, list[str]]


def published() -> tuple[str, list[PublishedMethod]]:
    """The source of the published numbers, and the methods in its order."""
    text = resources.files("attribench.configs").joinpath("published.yaml").read_text("utf-8")
    content = yaml.safe_load(text)
    methods = []
    for entry in content["methods"]:
        cells = {key: values for key, values in entry.items() if key not in ("name", "row")}
        results = {dataset: [str(value).replace("−", "-") for value in values] for dataset, values in cells.items()}
        methods.append(PublishedMethod(entry["name"], entry["row"], results))
    return content["source"], methods


def paper_tables(boards: Sequence[Board], with_published: bool = False) -> list[Table]:
    """One table for each preset, changes and protocol; data sets side by side.

    Args:
        boards: any.
        with_published: put the published numbers beside ours, in columns of their own.
    """
    groups: dict[tuple[str, ...], list[Board]] = {}
    for board in boards:
        first = board.first
        groups.setdefault((first.preset, str(first.overrides), first.variant, first.protocol), []).append(board)
    return [_table(group, with_published) for group in groups.values()]


def _table(boards: list[Board], with_published: bool) -> Table:
    source, known = published()
    names = {method.row: method for method in known}
    rows_here = {record.method for board in boards for record in board.records}
    order = [method.row for method in known if method.row in rows_here]
    order += sorted(rows_here - set(order), key=lambda name: (_access(name, boards), name))
    columns = [Column("method")]
    for board in boards:
        columns += [Column(name, group=board.first.dataset) for name in QUERY_SETS]
    shown = [board.first.dataset for board in boards if any(board.first.dataset in m.results for m in known)]
    if with_published:
        for dataset in shown:
            columns += [Column(name, group=f"{dataset}, published") for name in QUERY_SETS]
    rows, bold, rules = [], set(), set()
    for number, name in enumerate(order):
        if number and _access(name, boards) > 0 and _access(order[number - 1], boards) == 0:
            rules.add(number)
        cells = [names[name].name if name in names else name]
        for board in boards:
            record = _find(name, board)
            for query_set in QUERY_SETS:
                if record and query_set in record.results and name in board.best[query_set] and len(board.records) > 1:
                    bold.add((number, len(cells)))
                cells.append(published_cell(record.results.get(query_set) if record else None))
        if with_published:
            for dataset in shown:
                cells += names[name].results.get(dataset, [MISSING] * 2) if name in names else [MISSING] * 2
        rows.append(cells)
    return Table(
        _title(boards),
        _notes(boards, source if with_published else ""),
        columns,
        rows,
        frozenset(bold),
        frozenset(rules),
    )


def _find(name: str, board: Board) -> Record | None:
    return next((record for record in board.records if record.method == name), None)


def _access(name: str, boards: Sequence[Board]) -> int:
    """0 for methods that look at data alone, 1 for the others."""
    return int(any(record.method == name and record.access != "DATA" for board in boards for record in board.records))


def _title(boards: Sequence[Board]) -> str:
    setting = boards[0].title.partition(", ")[2]
    return f"LDS × 100, {setting}"


def _notes(boards: Sequence[Board], source: str) -> list[str]:
    notes = [
        "Mean ± standard deviation over 64 resamples of the subsets; methods above the line look at data alone.",
        "Bold: the best of each column and those not distinguishable from it by paired tests.",
    ]
    for board in boards:
        truth = board.first.settings["ground_truth"]
        notes.append(f"{board.first.dataset}: {truth['num_subsets']} subsets × {truth['num_seeds']} seed(s).")
    tuned = [
        f"{record.method} ({board.first.dataset}) on {record.tuned_on}"
        for board in boards
        for record in board.records
        if record.tuned_on
    ]
    notes.append(f"Tuned: {'; '.join(tuned) or 'nothing'}.")
    if source:
        notes.append(f"Published: {source}; their options were chosen on the queries and subsets reported.")
    return notes + preset_notes(boards[0].first)
