"""The commands. Each parses, calls one function of the package and prints; nothing is computed here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribench.errors import AttribenchError, UsageError, nearest

if TYPE_CHECKING:
    from attribench.configuration import Config
    from attribench.settings import Runtime

Handler = Callable[[list[str]], int]


@dataclass(frozen=True)
class Command:
    """A command's name, its line in the overview, and what runs it with the rest of the arguments."""

    name: str
    summary: str
    handler: Handler


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failure, 2 for a wrong call, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        return _dispatch(given)
    except AttribenchError as error:
        if debug:
            raise
        print(f"attribench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("attribench: interrupted; run the same command again to go on where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or "no message"
        print(f"attribench: {type(error).__name__}: {text[:500]} (run with --debug for the traceback)", file=sys.stderr)
        return 1


def _dispatch(given: list[str]) -> int:
    commands = {command.name: command for command in COMMANDS}
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0 if given else 2
    if given[0] == "--version":
        from attribench import __version__

        print(f"attribench {__version__}")
        return 0
    command = commands.get(given[0])
    if command is None:
        raise UsageError(f"Unknown command {given[0]!r}.{nearest(given[0], commands)} See attribench --help.")
    return command.handler(given[1:])


def _overview() -> str:
    lines = [
        "attribench: which training images shaped a diffusion model's output, and which method to trust for the answer.",
        "",
        "usage: attribench COMMAND [options]      (attribench COMMAND --help explains one)",
        "",
        *[f"  {command.name:<14} {command.summary}" for command in COMMANDS],
        "",
        "  --debug        with any command: show the traceback of an error",
        "  --version      show the version",
        "",
        "Start with: attribench run --method nda --dataset digits",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- parsing


def _parser(command: str, description: str) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"attribench {command}", description=description, exit_on_error=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    return parser


def _add_setting_options(parser: Any, *, methods: bool) -> None:
    from attribench.configuration import PRESETS

    if methods:
        parser.add_argument("--method", type=str, default="nda", help="Method, or several separated by commas: names, "
                            "import paths (my_package.MyMethod), YAML files; all = every one that can run.")  # fmt: skip
    parser.add_argument("--dataset", type=str, default="digits", help="Data set: a name, an import path, a YAML file.")
    parser.add_argument("--preset", type=str, help=f"Sizes: {', '.join(PRESETS)} (default: small).")
    parser.add_argument("--config", type=str, help="YAML file with the options below, as --print_config prints them.")
    parser.add_argument("--print_config", action="store_true", help="Print the resolved configuration and exit.")


def _add_protocol_option(parser: Any) -> None:
    from attribench.protocol import PROTOCOLS

    parser.add_argument("--protocol", type=str, choices=PROTOCOLS, default="standard", help="standard, or strict: options "
                        "are chosen on half of the validation queries and subsets, numbers are of the others.")  # fmt: skip


def _add_runtime_options(parser: Any) -> None:
    """The fields of :class:`Runtime` with the help of its docstring."""
    from docstring_parser import parse

    from attribench.settings import Runtime

    described = {item.arg_name: item.description for item in parse(Runtime.__doc__ or "").params}
    kinds = {"str": str, "int": int, "float": float}
    for item in fields(Runtime):
        kind = kinds[str(item.type)]
        text = " ".join((described[item.name] or "").split())
        parser.add_argument(f"--{item.name}", type=kind, default=item.default, help=text[:1].upper() + text[1:])


def _parse(parser: Any, arguments: Sequence[str]) -> Any:
    from jsonargparse import ArgumentError

    known = sorted(option for option in parser._option_string_actions if option.startswith("--"))
    for argument in arguments:
        option = argument.split("=", 1)[0]
        if option.startswith("--") and option not in known:
            raise UsageError(f"Unknown option {option}.{nearest(option, known)}")
    # jsonargparse gives --print_config a meaning of its own; here it is a plain flag of the whole resolved configuration.
    plain = [argument for argument in arguments if argument != "--print_config"]
    try:
        options = parser.parse_args(plain)
    except ArgumentError as error:
        from attribench.configuration import plain_type_error

        raise UsageError(plain_type_error(str(error))) from error
    if len(plain) < len(arguments):
        options.print_config = True
    return options


def _split_dotted(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Separate ``--section.option value`` from the command's own options.

    Raises:
        UsageError: a dotted option without a value.
    """
    own: list[str] = []
    dotted: dict[str, dict[str, Any]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            own.append(argument)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"{name} needs a value.")
            value = rest.pop(0)
        section, _, option = name[2:].partition(".")
        dotted.setdefault(section, {})[option] = value
    return own, dotted


def _resolve(options: Any, dotted: dict[str, dict[str, Any]], methods: Sequence[str]) -> Config:
    from attribench.configuration import merge, read_yaml, resolve

    if any("." in name for name in (*methods, options.dataset)) and "" not in sys.path:
        sys.path.insert(0, "")  # so that a class in the current folder can be named
    dataset, preset = options.dataset, options.preset
    if options.config:
        content = read_yaml(Path(options.config))
        dataset = content.pop("dataset", dataset)
        preset = preset or content.pop("preset", None)
        content.pop("preset", None)
        methods = [str(name) for name in content.pop("methods", methods)]
        dotted = merge(content, dotted)
    return resolve(dataset, preset, methods, dotted)


def _method_names(text: str) -> tuple[list[str], dict[str, str]]:
    """The methods asked for, and of ``all`` those that cannot be loaded, with their errors."""
    from attribench.configuration import all_methods

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--method is empty. See attribench list.")
    if "all" in names:
        return all_methods()
    return list(dict.fromkeys(names)), {}


def _configured(parser: Any, arguments: Sequence[str], *, methods: bool) -> tuple[Any, Config, dict[str, str]] | None:
    """What the commands that work on a data set begin with.

    Returns:
        The command's own options, the configuration, and the methods that cannot be loaded with their errors; None when
        help or the configuration was asked for, and has been printed.
    """
    own, dotted = _split_dotted(arguments)
    if "-h" in own or "--help" in own:
        _print_help(parser, arguments, methods=methods)
        return None
    options = _parse(parser, own)
    names, broken = _method_names(options.method) if methods else ([], {})
    config = _resolve(options, dotted, names)
    if options.print_config:
        print(_show_config(config))
        return None
    return options, config, broken


def _runtime(options: Any) -> Runtime:
    from attribench.settings import Runtime

    return Runtime(**{item.name: getattr(options, item.name) for item in fields(Runtime)})


def _print_help(parser: Any, options_given: Sequence[str], *, methods: bool) -> None:
    """The command's own help, then the options of every section for the data set and method at hand."""
    from attribench.configuration import SECTIONS, dataset_config, method_config, section_parser
    from attribench.registry import DATAMODULES

    print(parser.format_help().rstrip())
    try:
        own, _ = _split_dotted([argument for argument in options_given if argument not in ("-h", "--help")])
        options = _parse(parser, own)
        base = dataset_config(options.dataset)
        classes = {"data": DATAMODULES.load(base.name), **SECTIONS}
        if methods and "," not in options.method:
            classes = {"method": method_config(options.method, base, "", {}).cls, **classes}
    except AttribenchError as error:
        print(f"\n(options of data set and method: {error})")
        return
    for section, cls in classes.items():
        text = section_parser(cls, section).format_help()
        body = [line for line in text.split("\n\n", 1)[-1].splitlines() if f"--{section} CONFIG" not in line]
        print("\n" + "\n".join(line for line in body if "Path to a configuration file." not in line).strip())


def _show_config(config: Config) -> str:
    import yaml

    from attribench.artifacts import plain

    content: dict[str, Any] = {"dataset": config.dataset, "preset": config.preset}
    if config.methods:
        content["methods"] = [method.name for method in config.methods]
    if len(config.methods) == 1:
        content["method"] = config.methods[0].options
    content["data"] = config.data
    content.update({section: vars(value) for section, value in vars(config.settings).items()})
    return yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True).rstrip()


# --------------------------------------------------------------------------------------------------------------- commands


def _run(arguments: list[str]) -> int:
    parser = _parser("run", "Retrain, attribute, and score methods by LDS on both query sets; prints the table.")
    _add_setting_options(parser, methods=True)
    parser.add_argument("--results", type=str, default="results", help="Folder the records are filed in.")
    parser.add_argument("--tuned", action="store_true", help="Apply the options that attribench tune chose.")
    _add_protocol_option(parser)
    _add_runtime_options(parser)
    configured = _configured(parser, arguments, methods=True)
    if configured is None:
        return 0
    options, config, broken = configured

    from attribench.benchmark import run
    from attribench.progress import terminal_progress
    from attribench.reporting.tables import leaderboards, render

    outcome = run(
        config,
        _runtime(options),
        Path(options.results),
        terminal_progress(),
        protocol=options.protocol,
        tuned=options.tuned,
    )
    if outcome.records:
        print(render(leaderboards(outcome.records), "terminal").rstrip())
    for name, reason in {**outcome.skipped, **broken}.items():
        print(f"{name} was skipped: {reason}")
    return 0 if outcome.records else 1


def _tune(arguments: list[str]) -> int:
    parser = _parser("tune", "Choose a method's options on validation queries; attribench run --tuned applies them.")
    _add_setting_options(parser, methods=True)
    parser.add_argument("--results", type=str, default="results", help="Folder the choice is filed in.")
    _add_protocol_option(parser)
    _add_runtime_options(parser)
    configured = _configured(parser, arguments, methods=True)
    if configured is None:
        return 0
    options, config, _ = configured

    from attribench.progress import terminal_progress
    from attribench.tuning import tune

    for method in config.methods:
        choice, path = tune(
            config, method, _runtime(options), Path(options.results), options.protocol, terminal_progress()
        )
        tried = f"best of {len(choice.trials)} tried, LDS×100 {100 * choice.lds:.1f} on the choosing data"
        print(f"{method.name}: {tried}: {choice.tuned_on}\n  {choice.options}\n  filed in {path}")
    return 0


def _ground_truth(arguments: list[str]) -> int:
    parser = _parser(
        "ground-truth", "Train the target and subset models, generate queries, measure losses; nothing else."
    )
    _add_setting_options(parser, methods=False)
    _add_runtime_options(parser)
    configured = _configured(parser, arguments, methods=False)
    if configured is None:
        return 0
    options, config, _ = configured

    from attribench.benchmark import open_experiment
    from attribench.progress import terminal_progress
    from attribench.settings import QUERY_SETS

    experiment = open_experiment(config, _runtime(options), terminal_progress())
    experiment.prepare()
    for name in QUERY_SETS:
        truth = experiment.ground_truth(name)
        subsets, seeds, queries = truth.losses.shape
        print(f"{name}: {subsets} subsets × {seeds} seed(s) × {queries} queries, ground truth {truth.hash}")
    return 0


def _status(arguments: list[str]) -> int:
    parser = _parser(
        "status", "What is done and what is missing for a data set and preset, and how much disk it takes."
    )
    _add_setting_options(parser, methods=False)
    _add_runtime_options(parser)
    configured = _configured(parser, arguments, methods=False)
    if configured is None:
        return 0
    options, config, _ = configured

    from attribench.benchmark import open_experiment
    from attribench.progress import silent_progress
    from attribench.reporting.status import status_lines

    for line in status_lines(open_experiment(config, _runtime(options), silent_progress)):
        print(line)
    return 0


def _list(arguments: list[str]) -> int:
    parser = _parser("list", "Methods, data sets and presets; a broken plugin is shown with its error.")
    parser.add_argument("kind", nargs="?", choices=["methods", "datasets"], help="Only these.")
    options = _parse(parser, arguments)
    if options.help:
        print(parser.format_help())
        return 0

    from attribench.reporting.listing import listing

    print(listing(options.kind))
    return 0


def _table(arguments: list[str]) -> int:
    from attribench.reporting.tables import FORMATS, leaderboards, render

    parser = _parser("table", "Print the leaderboard from the records of earlier runs.")
    parser.add_argument("--dataset", type=str, help="Data set; all that have records if not given.")
    parser.add_argument("--preset", type=str, help="Preset; all if not given.")
    parser.add_argument("--format", type=str, default="terminal", help=f"One of {', '.join(FORMATS)}.")
    parser.add_argument("--results", type=str, default="results", help="Folder with the records.")
    options = _parse(parser, arguments)
    if options.help:
        print(parser.format_help())
        return 0
    if options.format not in FORMATS:
        raise UsageError(
            f"Unknown --format {options.format!r}.{nearest(options.format, FORMATS)} Known: {', '.join(FORMATS)}."
        )

    from attribench.records import load_records

    everything = load_records(Path(options.results))
    records = [
        record
        for record in everything
        if options.dataset in (None, record.dataset) and options.preset in (None, record.preset)
    ]
    if not records:
        there = sorted({f"{record.dataset} ({record.preset})" for record in everything})
        asked = " ".join(part for part in (options.dataset, options.preset) if part) or "anything"
        raise UsageError(
            f"No records of {asked} in {options.results}. "
            + (f"There are: {', '.join(there)}." if there else "Run attribench run first.")
        )
    print(render(leaderboards(records), options.format).rstrip())
    return 0


COMMANDS = (
    Command("run", "retrain, attribute and score methods by LDS; prints and records the table", _run),
    Command("tune", "choose a method's options on validation queries", _tune),
    Command("ground-truth", "only train the models and measure their losses", _ground_truth),
    Command("status", "what is done, what is missing, sizes on disk", _status),
    Command("list", "methods, data sets and presets", _list),
    Command("table", "print the table from records: terminal, markdown, latex, csv", _table),
)

if __name__ == "__main__":
    sys.exit(main())
