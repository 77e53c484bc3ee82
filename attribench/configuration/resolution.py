"""From a data set's name, a preset and what the caller changed to one typed, complete configuration.

Later sources win: ``defaults`` of the data set's YAML, its preset, a ``--config`` file, dotted options of the command
line. Values are typed and checked by jsonargparse from the signatures of the classes they configure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attribench.computing.names import readable
from attribench.configuration.files import (
    SECTIONS,
    DatasetConfig,
    check_keys,
    dataset_config,
    merge,
    read_yaml,
    shipped,
)
from attribench.configuration.options import option_defaults, typed
from attribench.errors import UsageError, nearest
from attribench.registry import DATAMODULES, METHODS
from attribench.settings import (
    Settings,
)


@dataclass(frozen=True)
class MethodConfig:
    """One row to compute: a method class and its options.

    Attributes:
        name: the row's name before changed options are added.
        changed: options the caller set by hand, to another value than the configured one.
        tuned_on: which data the shipped options were chosen on, and which of these the caller then changed; empty if nothing
            was tuned, or all that was is set by hand.
        fixed: names of all options the caller set by hand; ``attribench tune`` leaves them as they are.
        configured: the options without what the caller set by hand; None: the same.
        unchosen: these without what the data set's YAML says was chosen on data; None: the same.
    """

    name: str
    cls: type[Any]
    options: dict[str, Any]
    changed: dict[str, Any] = field(default_factory=dict)
    tuned_on: str = ""
    fixed: tuple[str, ...] = ()
    configured: dict[str, Any] | None = None
    unchosen: dict[str, Any] | None = None

    def start(self, *, unchosen: bool) -> dict[str, Any]:
        """Where a search of options begins: what is configured, and what the caller set by hand but for what it chooses among.

        Args:
            unchosen: without what was chosen on data before.
        """
        configured = self.options if self.configured is None else self.configured
        base = configured if self.unchosen is None or not unchosen else self.unchosen
        return typed(self.cls, "method", {**base, **{name: self.options[name] for name in self.held}})

    @property
    def held(self) -> list[str]:
        """Names of the options that a search leaves as the caller set them: not those that say what it chooses among."""
        return [name for name in self.fixed if name not in getattr(self.cls, "search_from", {})]


@dataclass(frozen=True)
class Config:
    """A resolved configuration.

    Attributes:
        dataset: the name of the data module.
        data: its typed options.
        overrides: what the caller changed in the settings or the data, as dotted names.
        ground_truth: path of the ground truth to use; empty to retrain.
        galleries: whether images are filed beside records; None: as the data module says.
    """

    dataset: str
    preset: str
    data_class: type[Any]
    data: dict[str, Any]
    settings: Settings
    methods: list[MethodConfig]
    overrides: dict[str, Any]
    ground_truth: str = ""
    galleries: bool | None = None

    @property
    def files_images(self) -> bool:
        """Whether images are filed beside records."""
        return bool(self.data_class.galleries if self.galleries is None else self.galleries)

    def overrides_without(self, section: str) -> dict[str, Any]:
        """What the caller changed outside a section of the settings."""
        return {name: value for name, value in self.overrides.items() if not name.startswith(f"{section}.")}


def resolve(
    dataset: str,
    preset: str | None,
    methods: Iterable[str],
    options: Mapping[str, Mapping[str, Any]],
) -> Config:
    """Resolve and check everything a run needs.

    Args:
        dataset: name, import path of a data module, or path of a YAML file.
        preset: a preset's name, or None for the data set's usual one.
        methods: names, import paths, or paths of YAML files.
        options: what the caller changed: section → option → value (text or typed). The section ``method`` belongs to
            the single method asked for.

    Raises:
        UsageError: an unknown name, option or value; the nearest valid one is suggested.
    """
    base = dataset_config(dataset)
    if preset is None:
        preset = base.preset
    if preset not in base.presets:
        raise UsageError(
            f"The data set {dataset!r} has no preset {preset!r}.{nearest(preset, base.presets)} "
            f"It has: {', '.join(base.presets)}."
        )
    check_keys(options, ("data", "method", *SECTIONS), "options", dashed=True)
    given = {key: dict(value) for key, value in options.items() if key != "method"}
    values = merge(_without_network(base.presets[preset], given), given)
    data_class = DATAMODULES.load(base.name)
    sections = {name: cls(**typed(cls, name, values.get(name, {}))) for name, cls in SECTIONS.items()}
    names = list(methods)
    changed = dict(options.get("method", {}))
    if changed and len(names) != 1:
        raise UsageError("--method.OPTION needs exactly one --method to belong to.")
    configs = [method_config(name, base, preset, changed) for name in names]
    data_values = typed(data_class, "data", values.get("data", {}))
    # What a preset says by itself, and what it leaves as it is.
    own = {name: vars(cls(**typed(cls, name, base.presets[preset].get(name, {})))) for name, cls in SECTIONS.items()}
    own["data"] = {**option_defaults(data_class), **base.presets[preset].get("data", {})}
    overrides = {
        f"{section}.{key}": value
        for section in ("data", *SECTIONS)
        for key, value in _typed_only(section, options.get(section, {}), data_values, sections).items()
        # A path or a name says where data is, not what it is; the data set's label and hash do that.
        if not (section == "data" and key in ("root", "name", "download"))
        and _said(section, key, own[section].get(key)) != value
    }
    return Config(base.name, preset, data_class, data_values, Settings(**sections), configs, overrides)


def method_config(name: str, base: DatasetConfig, preset: str, changed: Mapping[str, Any]) -> MethodConfig:
    """Resolve one method: the data set's options for it, its YAML, the data set's options for that, the caller's changes."""
    files = shipped("methods")
    if name.endswith((".yaml", ".yml")) or name in files:
        content = read_yaml(files[name] if name in files else Path(name))
        if not isinstance(content.get("method"), str):
            raise UsageError(f"{files.get(name, name)} must name its method: a line such as 'method: nda'.")
        registered = str(content.pop("method"))
        row = readable(Path(name).stem)
    else:
        content, registered, row = {}, name, "" if "." in name else name
    known = sorted({*METHODS.names(), *files})
    if "." not in registered and registered not in known:
        raise UsageError(f"Unknown method {registered!r}.{nearest(registered, known)} Known: {', '.join(known)}.")
    cls = METHODS.load(registered)
    row = row or METHODS.name_of(cls) or cls.__name__
    tuned = (base.methods.get(registered) or {}).get(preset) or {}
    own = (base.methods.get(row) or {}).get(preset) or {} if row != registered else {}
    given = {**option_defaults(cls), **tuned, **content, **own}
    options = typed(cls, "method", merge(tuned, content, own, dict(changed)))
    touched = {key: options[key] for key in changed if options[key] != given.get(key)}
    where = base.tuned_on.get(row if own else registered) or {}
    tuned_on = where.get(preset, "") if tuned or own else ""
    unchosen = {**option_defaults(cls), **content} if tuned_on else given
    if tuned_on:
        tuned_on = after_changes(tuned_on, (tuned.keys() - content.keys()) | own.keys(), touched)
    return MethodConfig(row, cls, options, touched, tuned_on, tuple(sorted(changed)), given, unchosen)


def after_changes(tuned_on: str, chosen: set[str], touched: Mapping[str, Any]) -> str:
    """What is still true of ``tuned_on`` once the caller has changed some options; nothing if all chosen ones are changed."""
    if not chosen:  # a YAML of the caller's says all of it otherwise
        return ""
    overridden = sorted(chosen & touched.keys())
    if not overridden:
        return tuned_on
    return "" if chosen <= touched.keys() else f"{tuned_on}, then changed by hand: {', '.join(overridden)}"


def class_config(cls: type[Any], changed: Mapping[str, Any]) -> MethodConfig:
    """A method that is given as a class, with its defaults but for the caller's changes.

    Raises:
        UsageError: there is no such option, or a value is of the wrong type.
    """
    defaults, options = option_defaults(cls), typed(cls, "method", dict(changed))
    touched = {key: options[key] for key in changed if options[key] != defaults.get(key)}
    return MethodConfig(METHODS.name_of(cls) or cls.__name__, cls, options, touched)


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


def _without_network(preset: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset, but not how its own network is built where the caller names a base: that says so itself."""
    if not given.get("model", {}).get("base"):
        return preset
    kept = {name: value for name, value in preset.get("model", {}).items() if name in ("base", "dropout")}
    return {**preset, "model": kept}


def _said(section: str, key: str, value: Any) -> Any:
    """An option's value as records have it: of a base its name, not where it lies."""
    return Path(value).name if (section, key) == ("model", "base") and value else value


def _typed_only(
    section: str, given: Mapping[str, Any], data: Mapping[str, Any], sections: Mapping[str, Any]
) -> dict[str, Any]:
    """The caller's options of a section, with the typed values they became."""
    resolved = data if section == "data" else vars(sections[section])
    return {key: _said(section, key, resolved[key]) for key in given}
