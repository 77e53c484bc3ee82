"""From a data set's name, a preset and what the caller changed to one typed, complete configuration.

Later sources win: ``defaults`` of the data set's YAML, its preset, a ``--config`` file, dotted options of the command
line. Values are typed and checked by jsonargparse from the signatures of the classes they configure.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from attribench.errors import UsageError, nearest
from attribench.registry import DATAMODULES, METHODS
from attribench.settings import (
    CounterfactualSettings,
    GenerationSettings,
    GroundTruthSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
)

PRESETS = ("paper", "small", "smoke")
SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "training": TrainingSettings,
    "generation": GenerationSettings,
    "ground_truth": GroundTruthSettings,
    "counterfactual": CounterfactualSettings,
}


@dataclass(frozen=True)
class MethodConfig:
    """One row to compute: a method class and its options.

    Attributes:
        name: the row's name before changed options are added.
        changed: options the caller set by hand.
        tuned_on: which data the shipped options were chosen on; empty if nothing was tuned.
    """

    name: str
    cls: type[Any]
    options: dict[str, Any]
    changed: dict[str, Any] = field(default_factory=dict)
    tuned_on: str = ""


@dataclass(frozen=True)
class Config:
    """A resolved configuration.

    Attributes:
        dataset: the name of the data module.
        data: its typed options.
        overrides: what the caller changed in the settings or the data, as dotted names.
    """

    dataset: str
    preset: str
    data_class: type[Any]
    data: dict[str, Any]
    settings: Settings
    methods: list[MethodConfig]
    overrides: dict[str, Any]

    def overrides_without(self, section: str) -> dict[str, Any]:
        """What the caller changed outside a section of the settings."""
        return {name: value for name, value in self.overrides.items() if not name.startswith(f"{section}.")}


def shipped(folder: str) -> dict[str, Path]:
    """The YAML files that ship in ``configs/<folder>``, by name."""
    files = resources.files("attribench.configs").joinpath(folder)
    return {Path(str(file)).stem: Path(str(file)) for file in files.iterdir() if str(file).endswith(".yaml")}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: absent, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a YAML mapping, not a {type(content).__name__}.")
    return content


@dataclass(frozen=True)
class DatasetConfig:
    """A data set's YAML: ``dataset`` (name of the data module), ``defaults``, ``presets``, ``methods``, ``tuned_on``."""

    name: str
    presets: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, dict[str, Any]]]
    tuned_on: dict[str, dict[str, str]]


def dataset_config(name: str) -> DatasetConfig:
    """The configuration of a data set: a shipped one, a YAML file of the user's, or the generic one for a data module.

    Raises:
        UsageError: no such data set or file, or unknown keys in it.
    """
    files = shipped("datasets")
    if name.endswith((".yaml", ".yml")):
        source = Path(name)
    elif name in files and name != "generic":
        source = files[name]
    elif "." in name or name in DATAMODULES.names():
        source = files["generic"]
    else:
        known = sorted({*DATAMODULES.names(), *files} - {"generic"})
        raise UsageError(f"Unknown data set {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    content = read_yaml(source)
    _check_keys(content, ("dataset", "defaults", "presets", "methods", "tuned_on"), str(source))
    defaults = content.get("defaults") or {}
    presets = {}
    for preset, values in (content.get("presets") or {}).items():
        _check_keys(values or {}, ("data", *SECTIONS), f"{source}, preset {preset}")
        presets[preset] = merge(defaults, values or {})
    dataset = content.get("dataset", name)
    return DatasetConfig(dataset, presets, content.get("methods") or {}, content.get("tuned_on") or {})


def resolve(
    dataset: str,
    preset: str | None,
    methods: Iterable[str],
    options: Mapping[str, Mapping[str, Any]],
) -> Config:
    """Resolve and check everything a run needs.

    Args:
        dataset: name, import path of a data module, or path of a YAML file.
        preset: a preset's name, or None for ``small`` (else the first there is).
        methods: names, import paths, or paths of YAML files.
        options: what the caller changed: section → option → value (text or typed). The section ``method`` belongs to
            the single method asked for.

    Raises:
        UsageError: an unknown name, option or value; the nearest valid one is suggested.
    """
    base = dataset_config(dataset)
    if preset is None:
        preset = "small" if "small" in base.presets else next(iter(base.presets))
    if preset not in base.presets:
        raise UsageError(
            f"The data set {dataset!r} has no preset {preset!r}.{nearest(preset, base.presets)} "
            f"It has: {', '.join(base.presets)}."
        )
    _check_keys(options, ("data", "method", *SECTIONS), "options", dashed=True)
    values = merge(base.presets[preset], {key: dict(value) for key, value in options.items() if key != "method"})
    data_class = DATAMODULES.load(base.name)
    sections = {name: cls(**typed(cls, name, values.get(name, {}))) for name, cls in SECTIONS.items()}
    names = list(methods)
    changed = dict(options.get("method", {}))
    if changed and len(names) != 1:
        raise UsageError("--method.OPTION needs exactly one --method to belong to.")
    configs = [method_config(name, base, preset, changed) for name in names]
    data_values = typed(data_class, "data", values.get("data", {}))
    overrides = {
        f"{section}.{key}": value
        for section in ("data", *SECTIONS)
        for key, value in _typed_only(section, options.get(section, {}), data_values, sections).items()
        # A path or a name says where data is, not what it is; the data set's label and hash do that.
        if not (section == "data" and key in ("root", "name", "download"))
        and base.presets[preset].get(section, {}).get(key) != value
    }
    return Config(base.name, preset, data_class, data_values, Settings(**sections), configs, overrides)


def method_config(name: str, base: DatasetConfig, preset: str, changed: Mapping[str, Any]) -> MethodConfig:
    """Resolve one method: its YAML if it has one, then the data set's options for it, then what the caller changed."""
    files = shipped("methods")
    if name.endswith((".yaml", ".yml")) or name in files:
        content = read_yaml(files[name] if name in files else Path(name))
        if not isinstance(content.get("method"), str):
            raise UsageError(f"{files.get(name, name)} must name its method: a line such as 'method: nda'.")
        registered = str(content.pop("method"))
        row = Path(name).stem
    else:
        content, registered, row = {}, name, "" if "." in name else name
    known = sorted({*METHODS.names(), *files})
    if "." not in registered and registered not in known:
        raise UsageError(f"Unknown method {registered!r}.{nearest(registered, known)} Known: {', '.join(known)}.")
    cls = METHODS.load(registered)
    row = row or METHODS.name_of(cls) or cls.__name__
    tuned = (base.methods.get(registered) or {}).get(preset) or {}
    options = typed(cls, "method", merge(tuned, content, dict(changed)))
    touched = {key: options[key] for key in changed if options[key] != {**_defaults(cls), **tuned, **content}.get(key)}
    tuned_on = (base.tuned_on.get(registered) or {}).get(preset, "") if tuned else ""
    return MethodConfig(row, cls, options, touched, tuned_on)


def all_methods() -> tuple[list[str], dict[str, str]]:
    """What ``--method all`` means: every method, by its named configurations where there are some.

    Returns:
        The names, and the error of each method that cannot be loaded.
    """
    configured: dict[str, list[str]] = {}
    for name, path in sorted(shipped("methods").items()):
        configured.setdefault(str(read_yaml(path).get("method")), []).append(name)
    names: list[str] = []
    broken: dict[str, str] = {}
    for entry in METHODS.entries():
        if entry.error is not None:
            broken[entry.name] = entry.error
        else:
            names += configured.get(entry.name, [entry.name])
    return names, broken


def typed(cls: type[Any], section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check ``values`` against the signature of ``cls`` and fill in its defaults.

    Text is read as YAML, ``"[1, 2]"`` as a list, except for options that are text themselves, names and paths: it is theirs
    as it stands, ``"null"`` and ``"Trip: Rome"`` too.

    Raises:
        UsageError: an unknown option, a value of the wrong type, or a required one missing.
    """
    from jsonargparse import ArgumentError

    known = option_names(cls)
    for key in values:
        if key not in known:
            kind = "option" if known else "option (it has none)"
            raise UsageError(f"--{section}.{key}: no such {kind}.{nearest(key, known)}")
    if not known:
        return {}
    missing = [key for key in known if key not in values and key not in _defaults(cls)]
    if missing:
        raise UsageError(" ".join(f"--{section}.{key} is required." for key in missing))
    # jsonargparse would read text as YAML wherever None or a path is possible too: it meets a harmless one in its place.
    kept = {key: value for key, value in values.items() if isinstance(value, str) and key in _text_options(cls)}
    try:
        parsed = section_parser(cls, section).parse_object({section: {**values, **dict.fromkeys(kept, "text")}})
    except ArgumentError as error:
        raise UsageError(plain_type_error(str(error))) from error
    result = parsed.as_dict().get(section) or {}
    result.update({key: type(result[key])(text) for key, text in kept.items()})
    return {key: result[key] for key in known if key in result}


def _text_options(cls: type[Any]) -> set[str]:
    """The options of ``cls`` that are text and nothing else: ``str``, paths, and either of them or None."""
    try:
        hints = get_type_hints(cls.__init__)
    except NameError:  # a type that is imported for type checkers alone
        return set()
    return {name for name in option_names(cls) if _is_text(hints.get(name))}


def _is_text(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {get_origin(part) or part for part in parts} - {NoneType} <= {
        str,
        Path,
        os.PathLike,
    } and hint is not NoneType


def section_parser(cls: type[Any], section: str) -> Any:
    """A jsonargparse parser of ``--<section>.<option>`` for the parameters of ``cls``, with help from its docstring."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(cls, section)
    return parser


def option_names(cls: type[Any]) -> list[str]:
    """The names of the parameters of ``cls.__init__``."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if cls.__init__ is object.__init__:
        return []
    return [name for name, p in list(inspect.signature(cls.__init__).parameters.items())[1:] if p.kind in kinds]


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later ones win, key by key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = deepcopy(value)
    return merged


def _typed_only(
    section: str, given: Mapping[str, Any], data: Mapping[str, Any], sections: Mapping[str, Any]
) -> dict[str, Any]:
    """The caller's options of a section, with the typed values they became."""
    resolved = data if section == "data" else vars(sections[section])
    return {key: resolved[key] for key in given}


def _defaults(cls: type[Any]) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _check_keys(given: Mapping[str, Any], known: Iterable[str], where: str, dashed: bool = False) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            shown = f"--{key}.*" if dashed else f"{key!r}"
            raise UsageError(f"{where}: unknown key {shown}.{nearest(str(key), known)} Known: {', '.join(known)}.")


def plain_type_error(text: str) -> str:
    """Turn jsonargparse's nested report into one plain line."""
    key = re.search(r'key "([^"]+)"', text)
    text = text.strip()
    value = re.search(r"Given value: (.*)$", text, re.DOTALL) or re.search(r"Got value: (.*)$", text, re.DOTALL)
    subtypes = re.search(r"Subtypes: \[(.*)\]", text)
    if subtypes:
        expected = " or ".join(subtypes.group(1).split(", "))
    else:
        expected = ", ".join(re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", text))
    if key is None or not expected:
        return " ".join(text.split())
    expected = re.sub(r"<class '([^']+)'>", r"\1", expected).replace("typing.", "")
    expected = re.sub(r"Literal\[([^\]]+)\]", r"one of \1", expected)
    return f"--{key.group(1)}: expected {expected}" + (f", got {value.group(1).strip()!r}." if value else ".")
