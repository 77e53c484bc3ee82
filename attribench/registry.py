"""Names → classes, for methods and data modules.

A name is found in one of four places: classes registered in this process with the decorator, modules of the built-in
package (a file dropped into ``methods/`` is a method of that file's name), entry points of other installed packages,
and, for a name with a dot, the import path itself. Two different classes under one name are an error that names both.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from attribench.errors import PluginError, UsageError, nearest

if TYPE_CHECKING:
    from attribench.data import AttributionDataModule
    from attribench.method import AttributionMethod

C = TypeVar("C", bound=type[Any])


@dataclass(frozen=True)
class Entry:
    """A line of ``attribench list``: a name, where it comes from, and its class or the error that loading it gave."""

    name: str
    source: str
    cls: type[Any] | None
    error: str | None = None

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n", 1)[0] if self.cls else ""


def _class_path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Registry:
    """One kind of plugin.

    Args:
        kind: what an error calls it, e.g. ``"method"``.
        group: entry-point group and import path of the built-in package, e.g. ``"attribench.methods"``.
        base: import path of the class every plugin must extend, ``"module:Class"``.
    """

    def __init__(self, kind: str, group: str, base: str) -> None:
        self.kind, self.group, self._base = kind, group, base
        self._decorated: dict[str, type[Any]] = {}

    def register(self, name: str, cls: type[Any]) -> None:
        """Add a class under ``name``; the same class may be registered again, another one may not."""
        known = self._decorated.get(name)
        # A module that is executed twice (reloaded, or run as a script) defines the same class anew.
        if known is not None and known is not cls and _class_path(known) != _class_path(cls):
            raise PluginError(
                f"Two {self.kind}s are named {name!r}: {_class_path(known)} and {_class_path(cls)}. Rename one of them."
            )
        self._decorated[name] = cls

    def load(self, name: str) -> type[Any]:
        """Return the class called ``name``, or the one at an import path such as ``my_package.MyMethod``.

        Raises:
            UsageError: no such name (the nearest is suggested), or the import path does not lead to such a class.
            PluginError: importing it failed, or two classes share the name.
        """
        if "." in name:
            return self._import_path(name)
        self._import_builtin(name)
        found: dict[str, type[Any]] = {}
        if name in self._decorated:
            found[_class_path(self._decorated[name])] = self._decorated[name]
        for point in self._entry_points():
            if point.name == name:
                cls = self._load_entry_point(point)
                found[_class_path(cls)] = cls
        if not found:
            names = self.names()
            raise UsageError(f"Unknown {self.kind} {name!r}.{nearest(name, names)} Known: {', '.join(names)}.")
        if len(found) > 1:
            raise PluginError(
                f"Two {self.kind}s are named {name!r}: {' and '.join(sorted(found))}. Rename one of them."
            )
        return next(iter(found.values()))

    def names(self) -> list[str]:
        """All known names, sorted, without importing anything."""
        return sorted({*self._decorated, *self._builtin_modules(), *(point.name for point in self._entry_points())})

    def entries(self) -> list[Entry]:
        """Load everything; a plugin that fails is an entry with its error and breaks nothing else."""
        for name in self._builtin_modules():
            try:
                self._import_builtin(name)
            except PluginError:
                continue  # load() below gives the same error to this name's own entry
        listed = []
        for name in self.names():
            try:
                cls = self.load(name)
            except (PluginError, UsageError) as error:
                listed.append(Entry(name, self._source(name), None, str(error)))
            else:
                listed.append(Entry(name, self._source(name), cls))
        return listed

    def name_of(self, cls: type[Any]) -> str | None:
        """The name ``cls`` was registered under with the decorator, if any."""
        return next((name for name, known in self._decorated.items() if known is cls), None)

    def _source(self, name: str) -> str:
        sources = ["built in"] if name in self._builtin_modules() else []
        sources += [
            f"entry point of {point.dist.name if point.dist else '?'} ({point.value})"
            for point in self._entry_points()
            if point.name == name
        ]
        if not sources and name in self._decorated:
            sources.append(f"registered by {self._decorated[name].__module__}")
        return ", ".join(sources)

    def _builtin_modules(self) -> dict[str, str]:
        package = importlib.import_module(self.group)
        return {
            module.name.replace("_", "-"): f"{self.group}.{module.name}"
            for module in pkgutil.iter_modules(package.__path__)
            if not module.name.startswith("_")
        }

    def _import_builtin(self, name: str) -> None:
        module = self._builtin_modules().get(name)
        if module is not None:
            try:
                importlib.import_module(module)
            except Exception as error:
                raise PluginError(
                    f"The {self.kind} {name!r} cannot be imported: {type(error).__name__}: {error}"
                ) from error

    def _entry_points(self) -> list[importlib.metadata.EntryPoint]:
        return list(importlib.metadata.entry_points(group=self.group))

    def _load_entry_point(self, point: importlib.metadata.EntryPoint) -> type[Any]:
        try:
            loaded = point.load()
        except Exception as error:
            owner = point.dist.name if point.dist else "another package"
            raise PluginError(
                f"The {self.kind} {point.name!r} of {owner} cannot be imported ({point.value}): "
                f"{type(error).__name__}: {error}"
            ) from error
        return self._checked(loaded, point.value, PluginError)

    def _import_path(self, path: str) -> type[Any]:
        module_name, _, class_name = path.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                raise UsageError(
                    f"Unknown {self.kind} {path!r}: there is no module {error.name!r} to import."
                ) from error
            raise PluginError(f"The {self.kind} {path!r} cannot be imported: {error}") from error
        except Exception as error:
            raise PluginError(
                f"The {self.kind} {path!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not hasattr(module, class_name):
            classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
            raise UsageError(f"Module {module_name!r} has no {class_name!r}.{nearest(class_name, classes)}")
        return self._checked(getattr(module, class_name), path, UsageError)

    def _checked(self, loaded: object, where: str, error: type[PluginError | UsageError]) -> type[Any]:
        module_name, _, base_name = self._base.partition(":")
        base = getattr(importlib.import_module(module_name), base_name)
        if not (inspect.isclass(loaded) and issubclass(loaded, base)):
            raise error(f"{where} is not a {self.kind}: it must be a class that extends {module_name}.{base_name}.")
        return loaded


METHODS = Registry("method", "attribench.methods", "attribench.method:AttributionMethod")
DATAMODULES = Registry("data set", "attribench.datamodules", "attribench.data:AttributionDataModule")


def register_method(name: str) -> Callable[[C], C]:
    """Class decorator: make an :class:`~attribench.AttributionMethod` known as ``name``."""
    return _registering(METHODS, name)


def register_datamodule(name: str) -> Callable[[C], C]:
    """Class decorator: make an :class:`~attribench.data.AttributionDataModule` known as ``name``."""
    return _registering(DATAMODULES, name)


def _registering(registry: Registry, name: str) -> Callable[[C], C]:
    def decorate(cls: C) -> C:
        registry.register(name, cls)
        return cls

    return decorate


def load_method(name: str) -> type[AttributionMethod]:
    """The method class called ``name`` (or at that import path); see :meth:`Registry.load` for the errors."""
    return METHODS.load(name)


def list_methods() -> list[str]:
    """The names of all known methods, sorted."""
    return METHODS.names()


def load_datamodule(name: str) -> type[AttributionDataModule]:
    """The data module class called ``name`` (or at that import path)."""
    return DATAMODULES.load(name)
