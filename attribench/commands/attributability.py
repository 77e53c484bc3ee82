"""``attribench attributability``: how much of the losses is due to which images a model was trained on."""

from __future__ import annotations

from dataclasses import replace

from attribench.commands.parsing import configured, new_parser, runtime_of, whole_numbers
from attribench.commands.writable import writable_folder
from attribench.errors import UsageError


def attributability(arguments: list[str]) -> int:
    parser = new_parser(
        "attributability",
        "Say how much of what retrained models lose on the queries is due to which images they were trained on, and how "
        "much to the seed: from the ground truth alone, for all methods. Boards show it beside the noise ceiling.",
    )
    parser.add_argument("--sizes", type=str, help="Numbers of train images, as '[125, 250, 500]': how it changes with them. "
                        "Every size retrains all models.")  # fmt: skip
    parser.add_argument("--results", type=str, default="results", help="Folder the record is filed in.")
    parser.add_argument("--format", type=str, default="terminal", help="terminal, markdown, latex or csv.")
    given = configured(parser, arguments, methods=False)
    if given is None:
        return 0
    options, config, _ = given

    from attribench.computing.progress import terminal_progress
    from attribench.data.files import some
    from attribench.records.attributability import save_attributability
    from attribench.reporting.formats import FORMATS, render
    from attribench.reporting.tables import attributability_table
    from attribench.workflows.attributability import measure, series

    if options.format not in FORMATS:
        raise UsageError(f"Unknown --format {options.format!r}. Known: {', '.join(FORMATS)}.")
    if options.sizes and options.ground_truth:
        raise UsageError("--sizes retrains all models: it takes no --ground-truth.")
    sizes = whole_numbers("--sizes", options.sizes, "[125, 250, 500]") if options.sizes else []
    results = writable_folder("--results", options.results)
    runtime, progress = runtime_of(options), terminal_progress()
    if sizes:
        config = replace(config, ground_truth="")  # a shipped one is of the whole train set
    record = series(config, sizes, runtime, progress) if sizes else measure(config, runtime, progress)
    path = save_attributability(record, results)
    print(render([attributability_table(record)], options.format).rstrip())
    for point in record.points:
        for result in point.results:
            silent = result.silent
            if silent and result.protocol == "standard":
                print(f"{point.num_train} train images, {result.query_set}: not found to respond: {some(silent)}")
    print(f"filed in {path}")
    return 0
