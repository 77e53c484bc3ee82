"""Which code made a stored thing: hashes of source, so that what an edited program would make otherwise is made anew.

Comments, docstrings and layout do not count. ``docs/store.md`` says what enters the specification of which stored thing.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

#: What cannot change a score, relative to the package. It comes after the scores (commands, evaluation, records, tables),
#: or what it makes enters their specification by its content: images, options, the weights of models. Modules of
#: ``methods`` enter with the classes that consist of them.
LEFT_OUT = frozenset((
    "commands", "configs", "configuration", "datamodules", "methods", "metrics", "records", "reporting", "truth", "workflows",
    "__main__.py", "api.py", "cli.py", "testing.py",
    "data/captions.py", "data/decoding.py", "data/files.py", "data/folders.py", "data/reading.py", "data/sources.py",
    "data/tiff.py",
    "diffusion/latents.py", "diffusion/losses.py", "diffusion/model.py", "diffusion/peft_parts.py", "diffusion/pretrained",
    "diffusion/recipes.py", "diffusion/sampling.py", "diffusion/training",
))  # fmt: skip


@cache
def method_hash(cls: type[Any]) -> str:
    """Identify by its source what decides a method's scores.

    All of attribench that can change a score; and of the class and its ancestors the modules they are written in, the
    whole package of such a module, and what these import from attribench or from the folder they were imported from.
    Python's own library and torch do not count, nor do other installed packages but those that ancestors lie in. A class
    whose source cannot be read is never the same as in another process.
    """
    apart = {*sys.stdlib_module_names, "torch"}
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in apart]
    files = [getattr(sys.modules.get(base.__module__), "__file__", None) for base in bases]
    own = _digest(_with_imported(Path(file) for file in files if file))
    typed_in = "".join(_text(base) for base, file in zip(bases, files, strict=True) if not file)  # in a notebook, say
    return hashlib.sha256(f"{computing_hash()}{own}{typed_in}".encode()).hexdigest()


@cache
def class_hash(cls: type[Any]) -> str:
    """Identify a class by its own text and its ancestors', where these are not Python's, torch's or diffusers'.

    A class whose source cannot be read is never the same as in another process.
    """
    apart = {*sys.stdlib_module_names, "torch", "diffusers"}
    texts = [_text(base) for base in cls.__mro__ if base.__module__.partition(".")[0] not in apart]
    return hashlib.sha256("\0".join([f"{cls.__module__}.{cls.__qualname__}", *texts]).encode()).hexdigest()


@cache
def computing_hash(root: Path = ROOT) -> str:
    """Identify all source of attribench that can change a score.

    Args:
        root: the package's folder.
    """
    return _digest(computing_files(root))


def computing_files(root: Path = ROOT) -> list[Path]:
    """The files of :func:`computing_hash`."""
    return [file for file in sorted(root.rglob("*.py")) if not _left_out(file.relative_to(root))]


def _left_out(place: Path) -> bool:
    return not LEFT_OUT.isdisjoint(some.as_posix() for some in (place, *place.parents))


@cache
def source_hash(*paths: Path) -> str:
    """Identify some modules, and all modules of some folders, by their source."""
    return _digest(file for path in paths for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _digest(files: Iterable[Path]) -> str:
    # Not in the order of the files: where they lie may differ between installations.
    return hashlib.sha256("".join(sorted(essence(file.read_bytes()) for file in files)).encode()).hexdigest()


@cache
def essence(source: bytes) -> str:
    """SHA-256 of what a Python source does, the same in all versions of Python: its syntax tree without docstrings."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    return hashlib.sha256(_shape(tree).encode()).hexdigest()


def _shape(node: object) -> str:
    if isinstance(node, list):
        return ",".join(map(_shape, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    # Newer versions of Python have more fields that may be empty.
    given = [f"{name}={_shape(value)}" for name, value in fields.items() if value is not None and value != []]
    return f"{type(node).__name__}({';'.join(given)})"


def _with_imported(files: Iterable[Path]) -> list[Path]:
    """Files with the packages they lie in, and with what all these import from attribench or from beside themselves."""
    known = set(computing_files())
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file in known or file in found or not file.is_file():
            continue
        folder, unit = _unit(file)
        found.update(unit)
        waiting += [other for part in unit for name in _imported(part) for other in _locate(name, folder)]
        waiting += [other for part in unit for other in _imported_relatively(part)]
    return sorted(found)


def _unit(file: Path) -> tuple[Path, list[Path]]:
    """All of the outermost package a module lies in, or the module alone; and the folder that it is imported from.

    Of the packages that hold unrelated modules, attribench and its methods, the module alone.
    """
    inner = file.parent
    while (inner / "__init__.py").is_file() and inner not in (ROOT, _methods()):
        inner = inner.parent
    package = next((folder for folder in file.parents if folder.parent == inner), None)
    return inner, [file] if package is None else [file, *_files(package)]


@cache
def _methods() -> Path:
    spec = find_spec("attribench.methods")  # not always below ROOT: elsewhere where attribench is installed editable
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _imported(file: Path) -> Iterator[str]:
    """Absolute names of what may be modules."""
    with suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported_relatively(file: Path) -> Iterator[Path]:
    """Files that a module may import by their place beside it."""
    with suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [file, *file.parents][node.level].joinpath(*(node.module or "").split("."))
                for path in (base, *(base / alias.name for alias in node.names)):
                    yield from (other for other in (path.with_suffix(".py"), path / "__init__.py") if other.is_file())


def _locate(name: str, folder: Path) -> list[Path]:
    top, _, rest = name.partition(".")
    if top in sys.stdlib_module_names or top == "torch" or (top == "attribench" and not rest):
        return []
    beside = [path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.is_file()]
    with suppress(ImportError, AttributeError, ValueError):
        spec = find_spec(top)
        places = [*(spec.submodule_search_locations or []), spec.origin or ""] if spec else []
        if not any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places):
            spec = find_spec(name)
            return [*beside, *([Path(spec.origin)] if spec and spec.origin else [])]
    return [] if {"site-packages", "dist-packages"} & set(folder.parts) else beside


def _text(cls: type[Any]) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return secrets.token_hex()
