"""Options as JSON has them: in specifications, records, rows' names and configuration files.

:func:`attribench.configuration.options.typed` reads them back into what they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from attribench.errors import UsageError


def json_value(value: Any, name: str = "") -> Any:
    """One form for equal values: paths as text, members of an enum by name, sets sorted, torch's dtypes by name.

    Infinity and NaN, which JSON lacks, are texts as in YAML: ``.inf``, ``-.inf``, ``.nan``.

    Args:
        value: of an option, or a mapping of options.
        name: what an error calls it: ``data`` or ``method``, or ``section.option``; empty for a mapping of sections.

    Raises:
        UsageError: there is no such form of it.
    """
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath) or _is_dtype(value):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(json_value(key, name)): json_value(item, f"{name}.{key}".strip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, name) for item in value]
    if isinstance(value, Set):
        return sorted((json_value(item, name) for item in value), key=repr)
    raise UsageError(
        f"--{name} is a {type(value).__name__}, which no record can hold: use numbers, texts, paths, members of an enum, "
        "torch's dtypes, or lists, sets and mappings of these."
    )


def _is_dtype(value: object) -> bool:
    return (type(value).__module__, type(value).__name__) == ("torch", "dtype")  # torch need not be loaded
