"""YAML files: those that ship in ``configs/``, and the user's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from attribench.errors import UsageError, nearest
from attribench.registry import DATAMODULES
from attribench.settings import (
    CounterfactualSettings,
    GenerationSettings,
    GroundTruthSettings,
    ModelSettings,
    TrainingSettings,
)

PRESETS = ("paper", "board", "medium", "small", "smoke")
SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "training": TrainingSettings,
    "generation": GenerationSettings,
    "ground_truth": GroundTruthSettings,
    "counterfactual": CounterfactualSettings,
}


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
    """A data set's YAML.

    Attributes:
        name: of the data module (``dataset``).
        preset: the one meant where none is named (``preset``).
        presets: the settings of each (``presets``), with what is common to all (``defaults``).
        methods: options of a method in a preset (``methods``).
        tuned_on: which data these were chosen on (``tuned_on``).
    """

    name: str
    preset: str
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
    check_keys(content, ("dataset", "preset", "defaults", "presets", "methods", "tuned_on"), str(source))
    defaults = content.get("defaults") or {}
    presets = {}
    for preset, values in (content.get("presets") or {}).items():
        check_keys(values or {}, ("data", *SECTIONS), f"{source}, preset {preset}")
        presets[preset] = merge(defaults, values or {})
    if not presets:
        raise UsageError(f"{source} has no presets.")
    preset = content.get("preset") or ("small" if "small" in presets else next(iter(presets)))
    if preset not in presets:
        raise UsageError(f"{source}: there is no preset {preset!r} to be the usual one. It has: {', '.join(presets)}.")
    dataset = content.get("dataset", name)
    return DatasetConfig(dataset, preset, presets, content.get("methods") or {}, content.get("tuned_on") or {})


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


def check_keys(given: Mapping[str, Any], known: Iterable[str], where: str, dashed: bool = False) -> None:
    """Refuse keys that are not known; the nearest is suggested.

    Args:
        where: what the message begins with.
        dashed: show keys as options.

    Raises:
        UsageError: there is such a key.
    """
    known = list(known)
    for key in given:
        if key not in known:
            shown = f"--{key}.*" if dashed else f"{key!r}"
            raise UsageError(f"{where}: unknown key {shown}.{nearest(str(key), known)} Known: {', '.join(known)}.")
