"""What the commands share: options, configuration, help."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribench.errors import AttribenchError, UsageError, nearest

if TYPE_CHECKING:
    from attribench.configuration.resolution import Config
    from attribench.settings import Runtime


#: Options that are no section of the configuration, though they have a dot.
_RAY = "--ray."


def new_parser(command: str, description: str) -> Any:
    """A parser with ``--help`` as a plain flag."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"attribench {command}", description=description, exit_on_error=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="Show this help and exit.")
    return parser


def _add_setting_options(parser: Any, *, methods: bool, truth: bool) -> None:
    """What names data set, preset, methods and configuration file."""
    from attribench.configuration.files import PRESETS

    if methods:
        parser.add_argument("--method", type=str, default="nda", help="Method, or several separated by commas: names, "
                            "import paths (my_package.MyMethod), YAML files; all = every one that can run.")  # fmt: skip
    parser.add_argument("--dataset", type=str, help="Data set: a name, an import path, a YAML file (default: digits"
                        f"{', or that of --ground-truth' if truth else ''}).")  # fmt: skip
    parser.add_argument("--preset", type=str, help=f"Sizes: {', '.join(PRESETS)} (default: the data set's).")
    if truth:
        parser.add_argument("--ground-truth", "--ground_truth", type=str, help="A ground truth to use: the name of an "
                            "shipped or imported one, or a file. Nothing is retrained; preset and settings are its own. "
                            "Default: the one that ships for these settings, if one does.")  # fmt: skip
        parser.add_argument("--retrain", action="store_true", help="Retrain, though a ground truth ships for these "
                            "settings.")  # fmt: skip
    parser.add_argument("--config", type=str, help="YAML file with the options below, as --print_config prints them.")
    parser.add_argument("--print_config", action="store_true", help="Print the resolved configuration and exit.")


def add_protocol_option(parser: Any) -> None:
    """Standard or strict."""
    from attribench.configuration.protocol import ProtocolName

    parser.add_argument("--protocol", type=ProtocolName, default="standard", help="standard, or strict: options "
                        "are chosen on half of the validation queries and subsets, numbers are of the others.")  # fmt: skip


def add_galleries_option(parser: Any) -> None:
    """Whether images go into the results."""
    parser.add_argument("--galleries", type=bool, help="false: file numbers alone, no images for galleries and figures "
                        "(default: as the data set says, mostly true).")  # fmt: skip


def add_runtime_options(parser: Any) -> None:
    """Those fields of :class:`Runtime` that are options, and those of :class:`RayOptions`, with help from their docstrings."""
    from attribench.settings import RayOptions, Runtime

    _add_fields(parser, Runtime, runtime_fields(), "--")
    _add_fields(parser, RayOptions, fields(RayOptions), _RAY)


def _add_fields(parser: Any, cls: type[Any], added: Sequence[Field[Any]], prefix: str) -> None:
    from docstring_parser import parse

    described = {item.arg_name: item.description for item in parse(cls.__doc__ or "").params}
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    for item in added:
        text = " ".join((described[item.name] or "").split())
        kind = kinds[str(item.type)]
        parser.add_argument(f"{prefix}{item.name}", type=kind, default=item.default, help=text[:1].upper() + text[1:])


def runtime_fields() -> list[Field[Any]]:
    """The fields of :class:`Runtime` that are options."""
    from attribench.settings import Runtime

    return [item for item in fields(Runtime) if item.metadata.get("option", True)]


def parse(parser: Any, arguments: Sequence[str]) -> Any:
    """Parse a command's own options.

    Raises:
        UsageError: an unknown option, or a value of the wrong type.
    """
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
        from attribench.configuration.options import plain_type_error

        raise UsageError(plain_type_error(str(error))) from error
    if len(plain) < len(arguments):
        options.print_config = True
    return options


def split_dotted(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
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
        if not (name.startswith("--") and "." in name) or name.startswith(_RAY):
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
    from attribench.configuration.files import merge, read_yaml
    from attribench.configuration.resolution import resolve

    _look_beside([*methods, options.dataset or ""])
    dataset, preset = options.dataset, options.preset
    if options.config:
        content = read_yaml(Path(options.config))
        dataset = content.pop("dataset", dataset)
        preset = preset or content.pop("preset", None)
        content.pop("preset", None)
        methods = [str(name) for name in content.pop("methods", methods)]
        dotted = merge(content, dotted)
    if getattr(options, "ground_truth", None):
        return _with_ground_truth(options, dataset, preset, list(methods), dotted)
    return resolve(dataset or "digits", preset, methods, dotted)


def _with_ground_truth(
    options: Any, dataset: str | None, preset: str | None, methods: list[str], dotted: dict[str, dict[str, Any]]
) -> Config:
    from attribench.truth.bundle import Bundle
    from attribench.truth.catalog import find
    from attribench.workflows.truths import config_of

    if options.retrain:
        raise UsageError("--retrain and --ground-truth contradict each other.")
    bundle = Bundle(find(options.ground_truth, Path(options.workdir)))
    if preset not in (None, bundle.header.preset):
        raise UsageError(
            f"--preset {preset}: the ground truth {bundle.header.name} is of preset {bundle.header.preset}."
        )
    return replace(config_of(bundle, dataset or bundle.header.dataset, methods, dotted), ground_truth=str(bundle.path))


def _with_shipped(config: Config) -> Config:
    from attribench.computing.progress import terminal_progress
    from attribench.workflows.truths import with_shipped

    return with_shipped(config, terminal_progress())


def options_of_method(names: Sequence[str], dotted: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What was set by hand for the one method of a command that knows no data set; its class may lie in the current folder.

    Raises:
        UsageError: options of something else, or of one of several methods.
    """
    unknown = sorted(set(dotted) - {"method"})
    if unknown:
        raise UsageError(
            f"Unknown option --{unknown[0]}.*: only options of the method, --method.NAME, have a dot here."
        )
    changed = dotted.get("method", {})
    if changed and len(names) != 1:
        raise UsageError("--method.OPTION needs exactly one --method to belong to.")
    _look_beside(names)
    return changed


def _look_beside(names: Sequence[str]) -> None:
    """Let a class in the current folder be named."""
    if any("." in name for name in names) and "" not in sys.path:
        sys.path.insert(0, "")


def method_names(text: str) -> tuple[list[str], dict[str, str]]:
    """The methods asked for, and of ``all`` those that cannot be loaded, with their errors."""
    from attribench.configuration.resolution import all_methods

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("--method is empty. See attribench list.")
    if "all" in names:
        return all_methods()
    return list(dict.fromkeys(names)), {}


def configured(
    parser: Any, arguments: Sequence[str], *, methods: bool, truth: bool = True
) -> tuple[Any, Config, dict[str, str]] | None:
    """What the commands that work on a data set begin with: those options beside their own, and the configuration.

    Args:
        methods: whether the command takes methods.
        truth: whether it can use a ground truth that was made elsewhere.

    Returns:
        The command's own options, the configuration, and the methods that cannot be loaded with their errors; None when
        help or the configuration was asked for, and has been printed.
    """
    _add_setting_options(parser, methods=methods, truth=truth)
    add_runtime_options(parser)
    own, dotted = split_dotted(arguments)
    if "-h" in own or "--help" in own:
        _print_help(parser, arguments, methods=methods)
        return None
    options = parse(parser, own)
    names, broken = method_names(options.method) if methods else ([], {})
    config = replace(_resolve(options, dotted, names), galleries=getattr(options, "galleries", None))
    if options.print_config:
        print(_show_config(config))
        return None
    if truth and not config.ground_truth and not options.retrain:
        config = _with_shipped(config)
    return options, config, broken


def runtime_of(options: Any) -> Runtime:
    """Where and how to compute."""
    from attribench.settings import RayOptions, Runtime

    cluster = RayOptions(**{item.name: getattr(options.ray, item.name) for item in fields(RayOptions)})
    return Runtime(**{item.name: getattr(options, item.name) for item in runtime_fields()}, ray=cluster)


def _print_help(parser: Any, options_given: Sequence[str], *, methods: bool) -> None:
    """The command's own help, then the options of every section for the data set and method at hand."""
    from attribench.configuration.files import SECTIONS, dataset_config
    from attribench.configuration.resolution import method_config
    from attribench.registry import DATAMODULES

    print(parser.format_help().rstrip())
    try:
        own, _ = split_dotted([argument for argument in options_given if argument not in ("-h", "--help")])
        options = parse(parser, own)
        base = dataset_config(options.dataset or "digits")
        classes = {"data": DATAMODULES.load(base.name), **SECTIONS}
        if methods and "," not in options.method:
            classes = {"method": method_config(options.method, base, "", {}).cls, **classes}
    except AttribenchError as error:
        print(f"\n(options of data set and method: {error})")
        return
    print_options(classes)


def print_options(classes: Mapping[str, type[Any]]) -> None:
    """Help for the options of every section: ``--section.name``, from the signature of its class."""
    from attribench.configuration.options import section_parser

    for section, cls in classes.items():
        text = section_parser(cls, section).format_help()
        body = [line for line in text.split("\n\n", 1)[-1].splitlines() if f"--{section} CONFIG" not in line]
        print("\n" + "\n".join(line for line in body if "Path to a configuration file." not in line).strip())


def _show_config(config: Config) -> str:
    import yaml

    from attribench.store.json_values import json_value

    content: dict[str, Any] = {"dataset": config.dataset, "preset": config.preset}
    if config.methods:
        content["methods"] = [method.name for method in config.methods]
    if len(config.methods) == 1:
        content["method"] = config.methods[0].options
    content["data"] = config.data
    content.update({section: vars(value) for section, value in vars(config.settings).items()})
    return yaml.safe_dump(json_value(content), sort_keys=False, allow_unicode=True).rstrip()


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """An option's list of whole numbers.

    Raises:
        UsageError: it is none.
    """
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in found):
        raise UsageError(f"{option} {text!r}: expected whole numbers, as {option} '{example}'.")
    return found
