"""The report: one self-contained HTML file made from records alone; the same records give the same page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from humanize import naturalsize

from attribench.records.attributability import AttributabilityRecord
from attribench.records.files import MethodRecord
from attribench.records.gallery import Gallery
from attribench.records.lds import CostRecord, QuerySetResult, Record
from attribench.records.removals import RemovalRecord
from attribench.records.sweep import SweepRecord
from attribench.reporting.boards import Board, row_mean
from attribench.reporting.collection import (
    Collection,
    CounterfactualGroup,
    Draughtsman,
    board_drawings,
    compute_drawing,
    counterfactual_drawings,
    folder,
    gallery_size,
    removal_drawing,
    retrainings_drawing,
    series_drawing,
    sweep_drawing,
)
from attribench.reporting.compute import comparisons
from attribench.reporting.counterfactual_tables import counterfactual_tables, row_label
from attribench.reporting.findings import finding
from attribench.reporting.formats import NOTHING, Table, duration
from attribench.reporting.known_answers import known_answers_table
from attribench.reporting.pages.html import PageParts, image_uri, render_page
from attribench.reporting.removal_tables import removal_tables
from attribench.reporting.retrainings import yardsticks
from attribench.reporting.tables import (
    ACCESS,
    ATTRIBUTABLE,
    CEILING,
    UNKNOWN,
    best_lds,
    leaderboard,
    notes,
    preset_notes,
    rivals,
)
from attribench.settings import QUERY_SETS


@dataclass
class _Setting:
    """All there is of one data set and setting."""

    boards: list[Board] = field(default_factory=list)
    sweeps: list[SweepRecord] = field(default_factory=list)
    series: list[AttributabilityRecord] = field(default_factory=list)
    counterfactuals: list[CounterfactualGroup] = field(default_factory=list)
    removals: list[list[RemovalRecord]] = field(default_factory=list)

    @property
    def first(self) -> MethodRecord:
        """A record, for what all of them share."""
        if self.boards:
            return self.boards[0].first
        others = [
            *self.sweeps,
            *(group.records[0] for group in self.counterfactuals),
            *(group[0] for group in self.removals),
        ]
        return others[0]


def report_page(collection: Collection, out: Path, draughtsman: Draughtsman) -> str:
    """The page.

    Args:
        collection: what to show.
        out: where the page will be; links to records are relative to it.
        draughtsman: draws its figures; the page is without those that cannot be drawn.
    """
    parts = PageParts(collection.results, out, draughtsman)
    # A method that has a record in one setting and none in another is missing there.
    methods = list(dict.fromkeys(record.method for board in collection.boards for record in board.records))
    sections = []
    for setting in _settings(collection):
        # Sweeps and what was retrained rest on all queries and subsets: they never stand below a strict board.
        lead = next((board for board in setting.boards if board.first.protocol == "standard"), None)
        if lead or setting.sweeps or setting.series or setting.counterfactuals or setting.removals:
            sections.append(_section(setting, lead, methods, parts))
        for board in setting.boards:
            if board is not lead:
                sections.append(_section(_Setting([board]), board, methods, parts))
    sections.sort(key=lambda section: (section["dataset"], -section["weight"], section["setting"]))
    datasets = list(dict.fromkeys(section["dataset"] for section in sections))
    known = known_answers_table(collection.known_answers) if collection.known_answers else None
    rows = [_cells(known, number) for number in range(len(known.rows))] if known else []
    return render_page("report.html.j2", datasets=datasets, sections=sections, known=known, known_rows=rows)


def _settings(collection: Collection) -> list[_Setting]:
    found: defaultdict[tuple[str, str], _Setting] = defaultdict(_Setting)
    for board in collection.boards:
        found[_place(board.first)].boards.append(board)
    for sweep in collection.sweeps:
        found[_place(sweep)].sweeps.append(sweep)
    for group in collection.counterfactuals:
        found[_place(group.records[0])].counterfactuals.append(group)
    for rows in collection.removals:  # in a folder of their question, beside what else there is of data set and setting
        found[_beside(rows[0], list(found))].removals.append(rows)
    for record in collection.series:  # sizes are settings of their own: shown with the first one of data set and preset
        same = (s for s in found.values() if (s.first.dataset, s.first.preset) == (record.dataset, record.preset))
        if (setting := next(same, None)) is not None:
            setting.series.append(record)
    return list(found.values())


def _place(record: MethodRecord) -> tuple[str, str]:
    """Equal for what belongs together: data sets may share a folder's name, but not their train images."""
    return folder(record), record.train_hash


def _beside(record: RemovalRecord, places: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The place of the data set and setting; copies in the train set make no other data set of it."""
    name = f"{folder(record).partition('/')[0]}/{record.setting}"
    same = (
        place for place in places if place[0] == name and (record.asked == "copies" or place[1] == record.train_hash)
    )
    return next(same, (name, record.train_hash))


def _section(setting: _Setting, board: Board | None, methods: Sequence[str], parts: PageParts) -> dict[str, Any]:
    first = setting.first
    name = first.title.partition(", ")[2]
    if board and board.first.protocol == "strict":
        name += ", strict protocol"
    identity = parts.identity(f"{first.dataset}-{name}")
    truth = first.settings.get("ground_truth", {})
    section: dict[str, Any] = {
        "id": identity,
        "dataset": first.dataset,
        "setting": name,
        "title": board.title if board else first.title,
        "weight": truth.get("num_subsets", 0) * truth.get("num_seeds", 0),  # the surest numbers are shown first
        "finding": finding(board) if board else "",
        "warning": " ".join(preset_notes(first)),
        "rows": [],
        "scale": ("0", "0"),
        "notes": [],
        "limits": [],
        "figures": [],
        "galleries": [],
        "sweeps": parts.drawn(
            [
                *(compute_drawing(comparison) for comparison in comparisons(setting.sweeps)),
                *(retrainings_drawing(yardstick) for yardstick in yardsticks([board] if board else [], setting.sweeps)),
                *(sweep_drawing(sweep) for sweep in setting.sweeps),
            ]
        ),
        "series": parts.drawn(series_drawing(record) for record in setting.series),
        "counterfactuals": [_counterfactual(group, parts) for group in setting.counterfactuals],
        "removals": [_removal(group, parts) for group in setting.removals],
        "details": _details(first, board),
    }
    if board:
        drawings = [drawing for drawing in board_drawings(board) if "/gallery-" not in drawing.name]
        section.update(_leaderboard(board, methods, parts))
        section["figures"] = parts.drawn(drawings)
        section["galleries"] = [_gallery(board, name, identity) for name in QUERY_SETS if gallery_size(board, name)]
    return section


def _leaderboard(board: Board, methods: Sequence[str], parts: PageParts) -> dict[str, Any]:
    results = [result for record in board.records for result in record.results.values()]
    low = min([0.0, *(100 * result.low for result in results)])
    high = max([1.0, *(100 * result.high for result in results)])
    here = {record.method for record in board.records}
    rows = [_row(record, board, low, high, parts) for record in board.records]
    rows += [
        {"method": name, "missing": True, "validation": None, "generation": None, "undefined": {}, "mean": ""}
        for name in methods
        if name not in here and "[" not in name
    ]
    limits = {row[0]: row for row in leaderboard(board).rows if row[0] in (CEILING, ATTRIBUTABLE)}
    return {
        "rows": rows,
        "scale": (f"{low:.0f}", f"{high:.0f}"),
        "notes": [note for note in notes(board) if note not in preset_notes(board.first)],
        "limits": [
            {"name": name, "cells": [row[1 + 2 * index] for index in range(len(QUERY_SETS))]}
            for name, row in limits.items()
        ],
    }


def _row(record: Record, board: Board, low: float, high: float, parts: PageParts) -> dict[str, Any]:
    mean = row_mean(record)
    return {
        "method": record.method,
        "missing": False,
        "validation": _cell(record, board, "validation", low, high),
        "generation": _cell(record, board, "generation", low, high),
        "undefined": record.undefined,
        "mean": f"{100 * mean:.1f}" if mean > float("-inf") else "",
        "access": record.access,
        "looks_at": ACCESS[record.access],
        "cost": [{"value": repr(float(value)), "text": text} for value, text in _costs(record.cost)],
        "tuned_on": record.tuned_on or NOTHING,
        **parts.link(record),
    }


def _costs(cost: CostRecord | None) -> list[tuple[float, str]]:
    """What to sort by, and the text."""
    if cost is None:
        return [(-1.0, UNKNOWN)] * 4
    seconds, sizes = (cost.prepare_seconds, cost.seconds_per_query), (cost.peak_bytes, cost.stored_bytes)
    return [(value, duration(value)) for value in seconds] + [
        (value, naturalsize(value, binary=True)) for value in sizes
    ]


def _cell(record: Record, board: Board, query_set: str, low: float, high: float) -> dict[str, str] | None:
    result: QuerySetResult | None = record.results.get(query_set)
    if result is None:
        return None
    mark = ""
    if len(board.records) > 1 and rivals(record, query_set):
        mark = "best" if result.lds == best_lds(board, query_set) else ""
        if not mark and board.tested(query_set) and record.method in board.best[query_set]:
            mark = "tied"

    def share(value: float) -> float:
        return 100 * (100 * value - low) / (high - low)

    left, right = share(result.low), share(result.high)
    return {
        "value": f"{100 * result.lds:.4f}",
        "text": result.text,
        "mark": mark,
        "limit": _limit(board, query_set),
        "low": f"{left:.1f}",
        "width": f"{right - left:.1f}",
        "point": f"{share(result.lds):.1f}",
    }


def _limit(board: Board, query_set: str) -> str:
    """What an LDS on this query set is to be read beside: the noise ceiling, and the attributability."""
    ceiling, found = board.ceiling(query_set), board.attributability.get(query_set)
    said = [f"of {100 * ceiling.lds:.1f}"] if ceiling else []
    said += [f"{100 * found.share:.0f} % attributable"] if found else []
    return "; ".join(said)


def _counterfactual(group: CounterfactualGroup, parts: PageParts) -> dict[str, Any]:
    (table,) = counterfactual_tables(group.records)
    names = {row_label(record): record for record in group.records}
    rows = [{"cells": _cells(table, number), **parts.link(names[row[0]])} for number, row in enumerate(table.rows)]
    return {"table": table, "rows": rows, "figures": parts.drawn(counterfactual_drawings(group))}


def _removal(group: Sequence[RemovalRecord], parts: PageParts) -> dict[str, Any]:
    (table,) = removal_tables(group)
    rows = [_cells(table, number) for number in range(len(table.rows))]
    return {"table": table, "rows": rows, "figures": parts.drawn([removal_drawing(group)])}


def _cells(table: Table, number: int) -> list[Any]:
    row = table.rows[number]
    return [row[0], *[{"text": cell, "best": (number, index) in table.bold} for index, cell in enumerate(row) if index]]


def _gallery(board: Board, query_set: str, identity: str) -> dict[str, Any]:
    shown: dict[str, Gallery] = {}
    for record in board.records:
        found = Gallery.from_tensors(board.attachments.get(record.method, {}), f"{query_set}.gallery")
        if found is not None:
            shown[record.method] = found
    first = next(iter(shown.values()))
    ids = board.ids(query_set)
    prefix = f"{identity}-{query_set}"
    queries = [
        {
            "id": f"{prefix}-{number}",
            "name": ids[int(first.queries[number])],
            "image": image_uri(first.images[number]),
            "lines": [{"method": name, "strips": _strips(gallery, number)} for name, gallery in shown.items()],
        }
        for number in range(len(first.queries))
    ]
    return {"name": query_set, "id": f"{prefix}-choice", "queries": queries}


def _strips(gallery: Gallery, number: int) -> list[list[dict[str, str]]]:
    return [
        [
            {
                "image": image_uri(gallery.train_images[number, side, place]),
                "index": str(int(gallery.indices[number, side, place])),
                "score": f"{gallery.scores[number, side, place].item():.2g}",
            }
            for place in range(gallery.indices.shape[2])
        ]
        for side in (0, 1)
    ]


def _details(first: MethodRecord, board: Board | None) -> list[dict[str, Any]]:
    parts = [{"name": name.replace("_", " "), "pairs": _pairs(values)} for name, values in first.settings.items()]
    parts.append({"name": "data", "pairs": _pairs({**first.data, "train images (SHA-256)": first.train_hash})})
    parts.append({"name": "versions", "pairs": _pairs(first.versions)})
    parts.append({"name": "machine", "pairs": _pairs(first.hardware)})
    if board:
        options = {record.method: _short(record.options) for record in board.records}
        parts.append({"name": "options of the methods", "pairs": _pairs(options)})
    return parts


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " "), str(value)) for key, value in values.items()]


def _short(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in options.items()) or "none"
