"""The commands that show what there is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attribench.commands.parsing import new_parser, parse
from attribench.commands.writable import writable_file, writable_folder
from attribench.errors import UsageError, nearest

if TYPE_CHECKING:
    from attribench.records.files import MethodRecord

R = TypeVar("R", bound="MethodRecord")

#: What tables can be made of.
KINDS = ("lds", "counterfactual", "removals", "compute", "retrainings")
LAYOUTS = ("full", "paper")


def list_(arguments: list[str]) -> int:
    parser = new_parser("list", "Methods, data sets and presets; a broken plugin is shown with its error.")
    parser.add_argument("kind", nargs="?", choices=["methods", "datasets"], help="Only these.")
    options = parse(parser, arguments)
    if options.help:
        print(parser.format_help())
        return 0

    from attribench.commands.listing import listing

    print(listing(options.kind))
    return 0


def table(arguments: list[str]) -> int:
    from attribench.reporting.formats import FORMATS, render

    parser = new_parser("table", "Print a table from the records of earlier runs.")
    parser.add_argument("--dataset", type=str, help="Data set; all that have records if not given.")
    parser.add_argument("--preset", type=str, help="Preset; all if not given.")
    parser.add_argument("--kind", type=str, default="lds", help=f"One of {', '.join(KINDS)}.")
    parser.add_argument("--layout", type=str, default="full", help="full, or paper: data sets side by side.")
    parser.add_argument("--bands", action="store_true", help="LDS by noise level: a column for each band of timesteps of "
                        "the losses.")  # fmt: skip
    parser.add_argument("--published", action="store_true", help="With --layout paper: published numbers in columns of their "
                        "own.")  # fmt: skip
    parser.add_argument("--format", type=str, default="terminal", help=f"One of {', '.join(FORMATS)}.")
    parser.add_argument("--results", type=str, default="results", help="Folder with the records.")
    options = parse(parser, arguments)
    if options.help:
        print(parser.format_help())
        return 0
    _check_choice("format", options.format, FORMATS)
    _check_choice("kind", options.kind, KINDS)
    _check_choice("layout", options.layout, LAYOUTS)
    if options.published and options.layout != "paper":
        raise UsageError("--published goes with --layout paper.")
    if options.bands and (options.layout, options.kind) != ("full", "lds"):
        raise UsageError("--bands goes with --kind lds, --layout full.")
    if options.layout == "paper" and options.kind != "lds":
        raise UsageError("--layout paper is of LDS tables.")

    from attribench.records.counterfactual import load_counterfactuals
    from attribench.records.lds import load_records
    from attribench.records.removals import load_removals
    from attribench.records.sweep import load_sweeps
    from attribench.reporting.boards import boards
    from attribench.reporting.compute import comparisons, compute_table
    from attribench.reporting.counterfactual_tables import counterfactual_tables
    from attribench.reporting.paper import paper_tables
    from attribench.reporting.removal_tables import removal_tables
    from attribench.reporting.retrainings import OPTION, retrainings_table, yardsticks
    from attribench.reporting.tables import band_tables, leaderboards

    results = Path(options.results)
    if options.kind == "counterfactual":
        tables = counterfactual_tables(_selected(load_counterfactuals(results), options))
    elif options.kind == "removals":
        tables = removal_tables(_selected(load_removals(results), options))
    elif options.kind == "compute":
        tables = [compute_table(found) for found in comparisons(_selected(load_sweeps(results), options))]
        if not tables:
            raise UsageError(
                "These sweeps are not over num_timesteps, timesteps or noise_draws, or their cost is not known."
            )
    elif options.kind == "retrainings":
        found = boards(_selected(load_records(results), options), results)
        tables = [retrainings_table(one) for one in yardsticks(found, _selected(load_sweeps(results), options))]
        if not tables:
            raise UsageError(
                f"No sweep over {OPTION} goes with these records: "
                f"attribench sweep --method datamodel --vary {OPTION}=[8, 16, 32]."
            )
    elif options.layout == "paper":
        tables = paper_tables(boards(_selected(load_records(results), options), results), options.published)
    elif options.bands:
        tables = [
            table
            for board in boards(_selected(load_records(results), options), results)
            for table in band_tables(board)
        ]
        if not tables:
            raise UsageError("These records have no LDS by noise level: run attribench run again.")
    else:
        tables = leaderboards(_selected(load_records(results), options), results)
    print(render(tables, options.format).rstrip())
    return 0


def _check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"Unknown --{option} {value!r}.{nearest(value, known)} Known: {', '.join(known)}.")


def _selected(records: Sequence[R], options: Any) -> list[R]:
    """The records of the data set and preset asked for.

    Raises:
        UsageError: there are none; the message says which there are.
    """
    found = [
        record
        for record in records
        if options.dataset in (None, record.dataset) and options.preset in (None, record.preset)
    ]
    if not found:
        there = sorted({f"{record.dataset} ({record.preset})" for record in records})
        asked = " ".join(part for part in (options.dataset, options.preset) if part) or "anything"
        command = {"counterfactual": "counterfactual", "removals": "removals", "compute": "sweep"}.get(
            options.kind, "run"
        )
        raise UsageError(
            f"No records of {asked} in {options.results}. "
            + (f"There are: {', '.join(there)}." if there else f"Run attribench {command} first.")
        )
    return found


def figures(arguments: list[str]) -> int:
    from attribench.reporting.figures.style import FORMATS

    parser = new_parser("figures", "Draw every figure that the records of earlier runs allow.")
    parser.add_argument("--dataset", type=str, help="Data set; all that have records if not given.")
    parser.add_argument("--preset", type=str, help="Preset; all if not given.")
    parser.add_argument("--results", type=str, default="results", help="Folder with the records.")
    parser.add_argument("--out", type=str, help="Folder for the figures (default: figures in the results folder).")
    parser.add_argument("--formats", type=str, default="svg,png", help=f"Of {', '.join(FORMATS)}, separated by commas.")
    options = parse(parser, arguments)
    if options.help:
        print(parser.format_help())
        return 0
    formats = [name.strip() for name in options.formats.split(",")]
    for name in formats:
        _check_choice("formats", name, FORMATS)

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.collection import Collection, Draughtsman
    from attribench.reporting.figures.style import save

    out = Path(options.out) if options.out else Path(options.results) / "figures"
    drawings = list(Collection(Path(options.results), options.dataset, options.preset).drawings())
    if not drawings:
        raise UsageError(f"There is nothing to draw in {options.results}: run attribench run first.")
    writable_folder("--out", out)
    draughtsman = Draughtsman()
    for drawing in terminal_progress().track(drawings, "drawing"):
        for path in draughtsman.draw(drawing, partial(save, stem=out / drawing.name, formats=formats)) or []:
            print(path)
    draughtsman.check()
    return 0


def report(arguments: list[str]) -> int:
    parser = new_parser("report", "Make one self-contained HTML page of the records of earlier runs.")
    parser.add_argument("--out", type=str, help="The page (default: report.html in the results folder).")
    parser.add_argument("--dataset", type=str, help="Data set; all that have records if not given.")
    parser.add_argument("--preset", type=str, help="Preset; all if not given.")
    parser.add_argument("--results", type=str, default="results", help="Folder with the records.")
    options = parse(parser, arguments)
    if options.help:
        print(parser.format_help())
        return 0

    from attribench.reporting.collection import Collection, Draughtsman
    from attribench.reporting.pages.report import report_page
    from attribench.store.files import atomic_write

    results = Path(options.results)
    out = Path(options.out) if options.out else results / "report.html"
    collection = Collection(results, options.dataset, options.preset)
    if not (collection.boards or collection.counterfactuals or collection.removals or collection.sweeps):
        raise UsageError(f"There are no records in {options.results} to report: run attribench run first.")
    writable_file("--out", out)
    draughtsman = Draughtsman()
    atomic_write(out, report_page(collection, out, draughtsman).encode())
    print(out)
    draughtsman.check()
    return 0
