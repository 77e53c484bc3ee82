"""The pages of docs/ run: their Python blocks, one after the other, are tests; the commands they show exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attribench import cli

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page: Path) -> None:
    shown = re.findall(r"attribench ([a-z-]+) --", page.read_text("utf-8"))
    assert set(shown) <= {command.name for command in cli.COMMANDS}


def test_there_are_pages() -> None:
    assert {"statistics", "own-images"} <= {page.stem for page in PAGES}
