"""Options of a class, from the signature of its ``__init__``: typed and checked by jsonargparse."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from attribench.errors import UsageError, nearest


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
    missing = [key for key in known if key not in values and key not in option_defaults(cls)]
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
    return {name for name in option_names(cls) if _is_text(_hint(cls, name))}


def _hint(cls: type[Any], name: str) -> Any:
    """The type of one option, each by itself: another's may be imported for type checkers alone."""
    one = SimpleNamespace(__annotations__={name: cls.__init__.__annotations__.get(name)})
    try:
        return get_type_hints(one, sys.modules[cls.__init__.__module__].__dict__)[name]
    except (NameError, AttributeError, TypeError, KeyError):
        return None


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


def option_defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of those parameters that have one."""
    parameters = inspect.signature(cls).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}
