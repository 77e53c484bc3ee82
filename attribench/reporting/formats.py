"""A table as text: for a terminal, Markdown, LaTeX, CSV.

Written out because pandas' Styler has no Markdown, and in LaTeX no rules between groups of rows or below groups of columns.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Format = Literal["terminal", "markdown", "latex", "csv"]
FORMATS: tuple[Format, ...] = ("terminal", "markdown", "latex", "csv")
MISSING = "—"
_TERMINAL = 120  # characters a line, if a table needs no more
NOTHING = "nothing"  # a note that need not be told a row at a time


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its header.
        place: where a terminal, which is narrow, shows it: a column of its ``own``, in brackets ``below`` the one before,
            or as a ``note`` under the table.
        group: what a layout of groups writes above it; empty for nothing.
    """

    name: str
    place: Literal["own", "below", "note"] = "own"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        notes: how the numbers were made, in full sentences.
        columns: of every row.
        rows: cells as text.
        bold: cells to emphasise, (row, column).
        rules: rows with a line above them.
        labelled: whether CSV repeats the title in every row.
    """

    title: str
    notes: list[str]
    columns: list[Column]
    rows: list[list[str]]
    bold: frozenset[tuple[int, int]] = frozenset()
    rules: frozenset[int] = field(default_factory=frozenset)

    @property
    def header(self) -> list[str]:
        """The columns' names, with their group before them."""
        return [f"{column.group} {column.name}".strip() for column in self.columns]


def duration(seconds: float) -> str:
    """``"23 µs"``, ``"31 ms"``, ``"13.5 s"``, ``"3 min 10 s"``."""
    from attribench.computing.progress import format_seconds

    if seconds >= 60:
        return format_seconds(seconds)
    for unit, size, digits in (("s", 1.0, 1), ("ms", 1e-3, 0)):
        if seconds >= size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def render(tables: Sequence[Table], style: Format) -> str:
    """The tables as text in one of :data:`FORMATS`."""
    renderer = {"terminal": _terminal, "markdown": _markdown, "latex": _latex, "csv": _csv}[style]
    return "\n".join(renderer(table) for table in tables)


def _terminal(table: Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(
        file=buffer, width=_TERMINAL, highlight=False, markup=False, emoji=False
    )  # names are shown as they are
    rich_table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    shown = [(index, column) for index, column in enumerate(table.columns) if column.place == "own"]
    below = {index - 1: index for index, column in enumerate(table.columns) if column.place == "below"}
    for index, column in shown:
        lines = column.group.replace(", ", ",\n").split("\n") if column.group else []
        lines += [column.name] if column.group else column.name.split(" ")
        if index in below:
            lines.append(f"({table.columns[below[index]].name})")
        rich_table.add_column(Text("\n".join(lines)), justify="right" if index else "left", no_wrap=True)
    for number, row in enumerate(table.rows):
        cells = []
        for index, _ in shown:
            text = row[index] + (f"\n({row[below[index]]})" if index in below else "")
            cells.append(Text(text, style="bold" if (number, index) in table.bold else ""))
        if number in table.rules:
            rich_table.add_section()
        rich_table.add_row(*cells)
    console.print(table.title)
    console.width = sys.maxsize
    console.width = max(_TERMINAL, console.measure(rich_table).maximum)  # a number cut short would be another number
    console.print(rich_table)
    console.width = _TERMINAL
    for note in table.notes:
        console.print(note)
    for index, column in enumerate(table.columns):
        if column.place == "note":
            said = [f"{row[0]}: {row[index]}" for row in table.rows if row[index] not in ("", MISSING, NOTHING)]
            console.print(f"{column.name.capitalize()}: {'; '.join(said) or NOTHING}.")
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


#: What means something in Markdown, on GitHub ``$`` too: an underscore at a word's edge, the middle of ``[text](link)``, and
#: these wherever they stand.
_MARKDOWN_SPECIAL = re.compile(r"[\\`*|<~$&#]|(?<![^\W_])_|_(?![^\W_])|\](?=\()")


def markdown_escape(text: str) -> str:
    """Plain text as Markdown, on one line."""
    return _MARKDOWN_SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def _markdown(table: Table) -> str:
    lines = [f"**{markdown_escape(table.title)}**", ""]
    lines.append("| " + " | ".join(markdown_escape(name) for name in table.header) + " |")
    lines.append("|" + "---|" * len(table.header))
    for number, row in enumerate(table.rows):
        cells = [markdown_escape(cell) for cell in row]
        cells = [f"**{cell}**" if (number, index) in table.bold else cell for index, cell in enumerate(cells)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *[f"{markdown_escape(note)}\n" for note in table.notes]])


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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "−": "$-$",
    "—": "---",
    **{mark: f"$^{digit}$" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
_NEGATIVE = re.compile(r"(?<![\w.])-(?=\d)")


def latex_escape(text: str) -> str:
    """Plain text as LaTeX, on one line; the hyphen of a negative number becomes a minus."""
    text = _NEGATIVE.sub("−", " ".join(text.split()))
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)


def _latex(table: Table) -> str:
    """A booktabs table. Needs ``\\usepackage{booktabs}``."""

    def cell(number: int, index: int) -> str:
        text = latex_escape(table.rows[number][index])
        return rf"\textbf{{{text}}}" if (number, index) in table.bold else text

    alignment = "".join(
        "l" if index == 0 or column.place == "note" else "r" for index, column in enumerate(table.columns)
    )
    notes = " ".join(latex_escape(note) for note in table.notes)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escape(table.title)}. {notes}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        *_latex_header(table.columns),
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in table.rules:
            lines.append(r"\midrule")
        line = " & ".join(cell(number, index) for index in range(len(row))) + r" \\"
        # After the end of a row, or a rule, LaTeX takes a bracket or a star for an argument.
        lines.append("{}" + line if line.startswith(("[", "*")) else line)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_header(columns: Sequence[Column]) -> list[str]:
    names = " & ".join(latex_escape(column.name) for column in columns) + r" \\"
    if not any(column.group for column in columns):
        return [names]
    groups, spans, start = [], [], 0
    while start < len(columns):
        end = start + 1
        while end < len(columns) and columns[start].group and columns[end].group == columns[start].group:
            end += 1
        groups.append(
            rf"\multicolumn{{{end - start}}}{{c}}{{{latex_escape(columns[start].group)}}}"
            if columns[start].group
            else ""
        )
        if columns[start].group:
            spans.append(rf"\cmidrule(lr){{{start + 1}-{end}}}")
        start = end
    return [" & ".join(groups) + r" \\", " ".join(spans), names]


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", *table.header])
    writer.writerows([table.title, *row] for row in table.rows)
    return buffer.getvalue()
