"""The framework knows the interface, never a particular method or data set."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = ("attribench.methods", "attribench.datamodules")


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return names


def breaches(file: Path) -> list[str]:
    return sorted(name for name in imported(file) if name.startswith(PLUGINS))


@pytest.mark.parametrize("file", sorted((ROOT / "attribench").rglob("*.py")), ids=lambda file: file.stem)
def test_the_framework_reaches_plugins_only_through_the_registry(file: Path) -> None:
    assert breaches(file) == []


def test_the_rule_would_notice(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from attribench.methods.nda import NDA\n    import attribench.datamodules.digits\n")
    assert breaches(file) == [
        "attribench.datamodules.digits",
        "attribench.methods.nda",
        "attribench.methods.nda.NDA",
    ]
