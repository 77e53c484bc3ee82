"""What ``attribench list`` shows."""

from __future__ import annotations

from attribench.configuration.files import dataset_config, read_yaml, shipped
from attribench.errors import AttribenchError
from attribench.registry import DATAMODULES, METHODS, Entry


def listing(kind: str | None = None) -> str:
    """Methods and data sets with presets; ``kind`` ``"methods"`` or ``"datasets"`` shows only one of them."""
    parts = []
    if kind in (None, "methods"):
        parts += ["Methods (--method)", *[_method_line(entry) for entry in METHODS.entries()]]
        configured = {name: read_yaml(path) for name, path in shipped("methods").items()}
        for name, content in sorted(configured.items()):
            options = ", ".join(f"{key}={value}" for key, value in content.items() if key != "method")
            parts.append(f"  {name:<22} {content['method']} with {options}")
    if kind in (None, "datasets"):
        parts += (
            ["", "Data sets (--dataset) and their presets (--preset)"] if parts else ["Data sets and their presets"]
        )
        parts += [_dataset_line(entry) for entry in DATAMODULES.entries()]
    return "\n".join(parts)


def _method_line(entry: Entry) -> str:
    if entry.cls is None:
        return f"  {entry.name:<22} BROKEN: {entry.error}"
    access = getattr(entry.cls, "access", None)
    looks_at = access.name.lower() if access is not None else "?"
    return f"  {entry.name:<22} looks at {looks_at:<12} {entry.summary}{_origin(entry)}"


def _dataset_line(entry: Entry) -> str:
    if entry.cls is None:
        return f"  {entry.name:<22} BROKEN: {entry.error}"
    try:
        presets = ", ".join(dataset_config(entry.name).presets)
    except AttribenchError as error:
        presets = f"BROKEN: {error}"
    return f"  {entry.name:<22} {presets:<20} {entry.summary}{_origin(entry)}"


def _origin(entry: Entry) -> str:
    return "" if entry.source == "built in" else f" ({entry.source})"
