"""Leaderboards: functions of records alone.

Records of different settings or presets never share a table, and a missing query set stays missing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from attribench.records import QuerySetResult, Record
from attribench.settings import QUERY_SETS

Format = Literal["terminal", "markdown", "latex", "csv"]
FORMATS: tuple[Format, ...] = ("terminal", "markdown", "latex", "csv")
_MISSING = "—"
NOT_TUNED = "nothing"


@dataclass(frozen=True)
class Table:
    """One setting's leaderboard.

    Attributes:
        title: data set, preset and what was changed.
        notes: how the numbers were made, in full sentences.
        header: column names.
        rows: cells as text, the best method first.
    """

    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]


def leaderboards(records: Sequence[Record]) -> list[Table]:
    """One table for each group of records that may be compared: same data, same setting, same ground truth."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        key = (record.dataset, record.preset, record.protocol, record.setting_hash)
        groups.setdefault(key, []).append(record)
    return [_table(group) for group in groups.values()]


def _table(records: list[Record]) -> Table:
    first = records[0]
    header = ["method"]
    for name in QUERY_SETS:
        header += [f"{name} LDS×100 [95 %]", f"{name} subsets-only"]
    header += ["looks at", "prepare s", "s/query", "peak MiB", "stored MiB", "tuned on"]
    ordered = sorted(records, key=lambda record: -_sort_key(record))
    return Table(_title(first), _notes(records), header, [_row(record) for record in ordered])


def _sort_key(record: Record) -> float:
    values = [record.results[name].lds for name in QUERY_SETS if name in record.results]
    # A method without one of its cells has no row mean, and goes last.
    return sum(values) / len(values) if len(values) == len(QUERY_SETS) else float("-inf")


def _row(record: Record) -> list[str]:
    cells = [record.method]
    for name in QUERY_SETS:
        result = record.results.get(name)
        cells += [_score_cell(result), _published_cell(result)]
    cost = record.cost
    return [
        *cells,
        {"DATA": "data", "MODEL": "model", "CHECKPOINTS": "checkpoints"}[record.access],
        f"{cost.prepare_seconds:.2f}",
        f"{cost.seconds_per_query:.2g}",
        f"{cost.peak_bytes / 2**20:.0f}",
        f"{cost.stored_bytes / 2**20:.1f}",
        record.tuned_on or NOT_TUNED,
    ]


def _score_cell(result: QuerySetResult | None) -> str:
    if result is None:
        return _MISSING
    interval = result.interval
    return f"{100 * result.lds:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _published_cell(result: QuerySetResult | None) -> str:
    if result is None:
        return _MISSING
    return f"{100 * result.published_bootstrap.mean:.1f} ± {100 * result.published_bootstrap.std:.1f}"


def _title(record: Record) -> str:
    title = f"{record.dataset}, preset {record.preset}"
    if record.protocol == "strict":
        title += ", strict protocol (reported on queries and subsets that no options were chosen on)"
    if record.overrides:
        changes = ", ".join(f"{key}={value}" for key, value in sorted(record.overrides.items()))
        title += f", changed: {changes}"
    return title


def _notes(records: list[Record]) -> list[str]:
    first = records[0]
    truth = first.settings["ground_truth"]
    channels, height, width = first.image_shape
    queries = ", ".join(f"{len(result.per_query)} {name}" for name, result in first.results.items())
    timesteps = len(range(0, 1000, truth["timestep_stride"]))
    notes = [
        f"{first.num_train} train images of {height}×{width}×{channels}; {truth['num_subsets']} subsets × "
        f"{truth['num_seeds']} seed(s), trained {first.settings['training']['epochs']} epochs; queries: {queries}; losses at "
        f"{timesteps} timesteps × {truth['num_noise_draws']} noise draws.",
        "LDS × 100: mean over queries, with the 95 % bootstrap interval over queries and subsets. Subsets-only: the published "
        "statistic, mean ± standard deviation over 64 resamples of the subsets.",
    ]
    if first.preset != "paper":
        notes.append(f"Preset {first.preset} is CPU-sized: not comparable with published numbers.")
    undefined = [
        f"{record.method}: {result.undefined_queries} of {len(result.per_query)} {name} queries"
        for record in records
        for name, result in record.results.items()
        if result.undefined_queries
    ]
    if undefined:
        notes.append(f"No correlation is defined, and 0 counted, for {'; '.join(undefined)}.")
    return notes


def render(tables: Sequence[Table], style: Format) -> str:
    """The tables as text in one of :data:`FORMATS`."""
    renderer = {"terminal": _terminal, "markdown": _markdown, "latex": _latex, "csv": _csv}[style]
    return "\n".join(renderer(table) for table in tables)


def _terminal(table: Table) -> str:
    """Narrow enough for a terminal: what belongs to one query set shares a cell of two lines, headers break at words."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(file=buffer, width=120, highlight=False)
    rich_table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    paired = 2 * len(QUERY_SETS)
    header = [table.header[0]]
    header += [f"{name}\nLDS×100 [95 %]\n(subsets only)" for name in QUERY_SETS]
    header += [name.replace(" ", "\n") for name in table.header[1 + paired : -1]]
    for index, name in enumerate(header):
        rich_table.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        cells = [row[0]]
        cells += [f"{row[1 + 2 * k]}\n({row[2 + 2 * k]})" for k in range(len(QUERY_SETS))]
        rich_table.add_row(*[Text(cell) for cell in cells + row[1 + paired : -1]])
    tuned = "; ".join(f"{row[0]} on {row[-1]}" for row in table.rows if row[-1] != NOT_TUNED)
    for part in (table.title, rich_table, *table.notes, f"Tuned: {tuned or 'nothing'}."):
        console.print(part, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _markdown(table: Table) -> str:
    lines = [f"**{table.title}**", ""]
    lines.append("| " + " | ".join(table.header) + " |")
    lines.append("|" + "---|" * len(table.header))
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *[f"{note}\n" for note in table.notes]])


_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "—": "---",
}


def _latex(table: Table) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX_ESCAPES.get(character, character) for character in text)

    columns = "l" + "r" * (len(table.header) - 2) + "l"
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}. {escape(' '.join(table.notes))}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(escape(cell) for cell in table.header) + r" \\",
        r"\midrule",
        *[" & ".join(escape(cell) for cell in row) + r" \\" for row in table.rows],
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", *table.header])
    writer.writerows([table.title, *row] for row in table.rows)
    return buffer.getvalue()
