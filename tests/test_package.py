"""What is installed: the wheel holds every file of the package, and the version is the one that it was built with."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import attribench
from attribench.cli import main

ROOT = Path(__file__).parents[1]
#: Folder of the repository → where it is installed.
PACKAGES = {
    "attribench": "attribench",
    "methods": "attribench/methods",
    "datamodules": "attribench/datamodules",
    "configs": "attribench/configs",
}


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy without git."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path) -> None:
    expected = {f"{target}/{name}" for folder, target in PACKAGES.items() for name in files(ROOT / folder)}
    assert {"attribench/py.typed", "attribench/configs/datasets/digits.yaml"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.slow
def test_a_wheel_built_without_git_has_the_fallback_version(wheel: Path) -> None:
    assert wheel.name == "attribench-0.1.0.dev0-py3-none-any.whl"


def test_the_version_is_that_of_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert attribench.__version__ == importlib.metadata.version("attribench")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"attribench {attribench.__version__}\n"
