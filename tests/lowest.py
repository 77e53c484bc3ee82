"""Print the lowest version of every dependency that ``pyproject.toml`` declares, as pip's constraints.

``make test-lowest`` installs these: a lower bound that no test has seen is a guess.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints(pyproject: Path = PYPROJECT) -> Iterator[str]:
    """``name==version`` for every ``name[extra]>=version``; dependencies without a bound take what pip chooses."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        bound = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        if bound:
            yield f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    print("\n".join(constraints()))
