from __future__ import annotations

import tomllib
from pathlib import Path

from lowest import PYPROJECT, constraints


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
