from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from lowest import PYPROJECT, constraints
from packaging.version import Version

#: What is known to be needed, and why.
FLOORS = {
    "lightning": ("2.6", "Trainer.fit(weights_only=): no checkpoint is unpickled"),
    "pandas": ("2.2.2", "the first for numpy 2"),
    "scipy": ("1.13", "the first for numpy 2"),
    "jsonargparse": ("4.43", "the messages that attribench turns into one line"),
    "huggingface_hub": ("0.34", "diffusers 0.35 needs it"),
    "matplotlib": ("3.10", "boxplot(orientation=)"),
    "setuptools": ("77.0.3", "licences as SPDX names; 77.0.0 was withdrawn"),
}


def test_lower_bounds_become_constraints(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\ndependencies = ["torch>=2.6", "jsonargparse[signatures]>=4.43", "scikit-learn>=1.5.1"]\n'
        '[project.optional-dependencies]\ndev = ["pytest>=8.3", "pandas-stubs"]\n'
    )
    assert list(constraints(file)) == ["torch==2.6", "jsonargparse==4.43", "scikit-learn==1.5.1", "pytest==8.3"]


def test_every_dependency_has_a_lower_bound() -> None:
    declared = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["dependencies"]
    named = {constraint.split("==")[0] for constraint in constraints()}
    assert {requirement.split(">=")[0].split("[")[0] for requirement in declared} <= named


@pytest.mark.parametrize("name", FLOORS)
def test_no_bound_is_lowered_below_what_is_needed(name: str) -> None:
    floor, reason = FLOORS[name]
    declared = dict(constraint.split("==") for constraint in constraints())
    assert Version(declared[name]) >= Version(floor), f"{name} {floor}: {reason}"


def test_the_build_needs_what_development_needs() -> None:
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))
    assert set(project["build-system"]["requires"]) <= set(project["project"]["optional-dependencies"]["dev"])
