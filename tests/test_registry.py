from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from attribench import AttributionMethod, load_method, register_method
from attribench.errors import PluginError, UsageError
from attribench.registry import METHODS, Registry

PLUGIN = """
from attribench import Access, AttributionMethod
class Mine(AttributionMethod):
    '''My method.'''
    access = Access.DATA
    def attribute(self, queries):
        raise NotImplementedError
"""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The methods' registry, whose table of decorated classes is put back afterwards."""
    METHODS.entries()  # what a test imports for the first time would be missing from the table for the tests after it
    monkeypatch.setattr(METHODS, "_decorated", dict(METHODS._decorated))
    return METHODS


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a package with entry points on the path, as pip would lay it out."""

    def install(package: str, source: str, entry_points: str) -> None:
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[attribench.methods]\n{entry_points}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def test_a_file_of_the_built_in_package_is_a_method_of_its_name() -> None:
    assert load_method("nda").__module__.startswith("attribench.methods.nda")
    assert {"nda", "pixel", "random"} <= set(METHODS.names())


def test_the_decorator_registers_and_two_of_one_name_raise_naming_both(registry: Registry) -> None:
    @register_method("twice")
    class First(AttributionMethod):
        pass

    assert load_method("twice") is First
    with pytest.raises(PluginError, match=r"First.*Second"):

        @register_method("twice")
        class Second(AttributionMethod):
            pass


def test_an_entry_point_of_another_package_is_found(registry: Registry, installed: Any) -> None:
    installed("other_package", PLUGIN, "theirs = other_package:Mine")
    assert "theirs" in registry.names()
    assert "other_package" not in sys.modules, "listing names must not import plugins"
    assert load_method("theirs").__name__ == "Mine"


def test_an_import_path_needs_no_registration(registry: Registry, installed: Any) -> None:
    installed("path_package", PLUGIN, "")
    assert load_method("path_package.Mine").__name__ == "Mine"
    with pytest.raises(UsageError, match="Did you mean 'Mine'"):
        load_method("path_package.Mime")
    with pytest.raises(UsageError, match="no module 'absent_package'"):
        load_method("absent_package.Mine")
    with pytest.raises(UsageError, match="must be a class that extends attribench"):
        load_method("pathlib.Path")


def test_an_entry_point_that_takes_a_built_in_name_is_an_error_naming_both(registry: Registry, installed: Any) -> None:
    installed("rival_package", PLUGIN, "pixel = rival_package:Mine")
    with pytest.raises(PluginError, match=r"attribench\.methods\.pixel.*rival_package\.Mine"):
        load_method("pixel")
    broken = {entry.name: entry.error for entry in registry.entries() if entry.error}
    assert set(broken) == {"pixel"}


def test_a_broken_plugin_is_listed_with_its_error_and_breaks_nothing(registry: Registry, installed: Any) -> None:
    installed("broken_package", "import not_installed_anywhere", "broken = broken_package:Mine")
    entries = {entry.name: entry for entry in registry.entries()}
    assert entries["broken"].cls is None
    assert "not_installed_anywhere" in str(entries["broken"].error)
    assert entries["nda"].cls is not None
    with pytest.raises(PluginError, match=r"broken_package.*not_installed_anywhere"):
        load_method("broken")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'pixel'"):
        load_method("pixl")
