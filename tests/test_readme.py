"""The README tells the truth: its method runs as printed, and its commands exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from attribench import cli
from attribench.records.lds import load_records

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_custom_method_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks("python")
    assert len(source.strip().splitlines()) < 30
    (tmp_path / "my_method.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = re.search(r"^attribench (run --method my_method\.Brightness .*)$", README, re.MULTILINE)
    assert command
    try:
        assert cli.main([*command.group(1).split(), "--preset", "smoke", "--accelerator", "cpu"]) == 0
        (record,) = load_records(tmp_path / "results")
        assert record.method == "brightness[sharpness=2.0]"
        assert record.options == {"sharpness": 2.0}

        import my_method  # type: ignore[import-not-found]

        from attribench.testing import check_method

        assert check_method(my_method.Brightness) is None
    finally:
        sys.modules.pop("my_method", None)
        from attribench.registry import METHODS

        METHODS._decorated.pop("brightness", None)


def test_every_command_shown_exists() -> None:
    shown = re.findall(r"^attribench ([a-z-]+)", "\n".join(blocks("console")), re.MULTILINE)
    assert set(shown) == {command.name for command in cli.COMMANDS}


def test_make_targets_shown_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("console")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
