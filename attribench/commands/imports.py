"""``attribench ground-truth import-dtrak`` and ``import-dattri``: ground truth that others have published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribench.commands.bundle_lines import described
from attribench.commands.parsing import configured, new_parser, runtime_of
from attribench.commands.writable import writable_file
from attribench.errors import UsageError
from attribench.settings import QUERY_SETS

if TYPE_CHECKING:
    from attribench.data import AttributionDataModule


def import_dtrak(arguments: list[str]) -> int:
    parser = _parser(
        "import-dtrak",
        "Turn the ground truth that D-TRAK's authors published into a file that run --ground-truth takes. Preset: paper, "
        "unless another is given.",
        "The folder of one data set, as CIFAR2, with saved/ and data/ in it.",
    )
    parser.add_argument("--setting", type=str, help="Which one below saved/, as 5000-0.5, where there are several.")
    parser.add_argument("--bands", type=int, default=1, help="Keep losses apart by so many bands of timesteps.")
    parser.add_argument("--complete_only", action="store_true", help="Leave out subsets of which a file is missing.")
    named = any(argument.split("=")[0] in ("--preset", "--config") for argument in arguments)
    given = configured(parser, arguments if named else ["--preset", "paper", *arguments], methods=False, truth=False)
    if given is None:
        return 0
    options, config, _ = given
    folder, out = _places(options)

    from attribench.computing.progress import terminal_progress
    from attribench.reporting.published import load_published
    from attribench.workflows.imports import import_dtrak as read

    data = read(
        folder,
        config,
        out,
        terminal_progress(),
        name=options.name,
        setting=options.setting,
        num_bands=options.bands,
        complete_only=options.complete_only,
    )
    known = load_published()
    expected = {
        (method.row, query_set): cell.text
        for method in known.methods
        for query_set in QUERY_SETS
        if method.row and (cell := known.cell(method.name, data.label, query_set))
    }
    return _report(data, options, out, expected)


def import_dattri(arguments: list[str]) -> int:
    parser = _parser(
        "import-dattri",
        "Turn the ground truth of a dattri benchmark into a file that run --ground-truth takes. The train images and "
        "validation queries of the data set must be its samples, in its order.",
        "The folder with indices_lds.pt and target_values_lds.pt.",
    )
    given = configured(parser, arguments, methods=False, truth=False)
    if given is None:
        return 0
    options, config, _ = given
    folder, out = _places(options)

    from attribench.computing.progress import terminal_progress
    from attribench.workflows.imports import import_dattri as read

    data = read(folder, config, out, terminal_progress(), name=options.name)
    return _report(data, options, out, {})


def _parser(verb: str, description: str, folder: str) -> Any:
    parser = new_parser(f"ground-truth {verb}", description)
    parser.add_argument("folder", type=str, nargs="?", help=folder)
    parser.add_argument("--out", type=str, help="The file to write, as cifar2.truth.")
    parser.add_argument("--name", type=str, help="What it is called (default: the file's name).")
    return parser


def _places(options: Any) -> tuple[Path, Path]:
    """The folder to read and the file to write."""
    if not options.folder or not options.out:
        raise UsageError("A folder to read and --out FILE are needed, as in CIFAR2 --out cifar2.truth.")
    return Path(options.folder), writable_file("--out", options.out)


def _report(data: AttributionDataModule, options: Any, out: Path, expected: dict[tuple[str, str], str]) -> int:
    """Say what was written, and how raw pixels do on it."""
    from attribench.computing.progress import terminal_progress
    from attribench.reporting.tables import published_cell
    from attribench.truth.bundle import Bundle
    from attribench.workflows.imports import self_test

    header = Bundle(out).header
    print(f"{out}: {header.name}, {out.stat().st_size / 2**20:.1f} MiB")
    for line in described(header):
        print(f"  {line}")
    print("Self-test, LDS × 100 of raw pixels (near 0 if images or queries were in a wrong order):")
    for method, query_set, result in self_test(data, out, runtime_of(options), terminal_progress()):
        known = expected.get((method, query_set))
        beside = f"; subsets only {published_cell(result)}, published {known}" if known else ""
        print(f"  {method}, {query_set}: {result.text}{beside}")
    return 0
