"""Outputs are looked at before any work."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from attribench.cli import main
from attribench.commands.writable import writable_file, writable_folder
from attribench.errors import AttribenchError, UsageError


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary file can be made: what a read-only folder does to anyone but the superuser, who runs many tests."""

    def forbidden(*_: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", forbidden)


def test_missing_folders_are_no_obstacle_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert writable_folder("--out", str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert writable_file("--out", tmp_path / "c" / "report.html") == tmp_path / "c" / "report.html"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match=r"--out .*file must be a folder, and .*file is not one"):
        writable_folder("--out", tmp_path / "file")
    for check in (writable_folder, writable_file):
        with pytest.raises(UsageError, match=r"--out .* must be a folder, and .*file is not one"):
            check("--out", tmp_path / "file" / "below" / "it")
    with pytest.raises(UsageError, match=r"--out .* is a folder: name a file"):
        writable_file("--out", tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"and .*broken is not one"):
        writable_folder("--out", tmp_path / "broken")
    assert (tmp_path / "file").read_text() == "kept"


def test_folders_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch)
    with pytest.raises(AttribenchError, match=r"--results .* cannot be written to \(Permission denied\)") as caught:
        writable_folder("--results", tmp_path)
    assert caught.value.exit_code == 1


def test_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(AttribenchError, match=r"--out /proc/attribench cannot be written to"):
        writable_folder("--out", "/proc/attribench")


COMMANDS = [
    ["run", "--method", "random", "--preset", "smoke", "--results"],
    ["tune", "--method", "random", "--preset", "smoke", "--results"],
    ["sweep", "--method", "nda", "--preset", "smoke", "--vary", "top_k=[1, 2]", "--results"],
    ["counterfactual", "--method", "random", "--preset", "smoke", "--results"],
    ["explain", "--method", "nda", "--preset", "smoke", "--out"],
    ["attribute", "--train", "absent", "--queries", "absent", "--out"],
    ["figures", "--results", "RESULTS", "--out"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("read_only", [False, True])
def test_every_command_says_so_in_one_line_before_any_work(
    command: list[str],
    read_only: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(written_results(tmp_path)) if argument == "RESULTS" else argument for argument in command]
    monkeypatch.setattr("attribench.workflows.opening.Experiment", lambda *_: pytest.fail("work was begun"))
    monkeypatch.setattr("attribench.workflows.attribution.attribute", lambda *_: pytest.fail("work was begun"))
    monkeypatch.setattr("attribench.reporting.figures.style.save", lambda *_: pytest.fail("work was begun"))
    target = tmp_path / "target"
    if read_only:
        target.mkdir()
        refuse(monkeypatch)
    else:
        target.write_text("kept")
    assert main([*given, str(target)]) == (1 if read_only else 2)
    error = capsys.readouterr().err
    assert f"{command[-1]} {target} " in error
    assert len(error.strip().splitlines()) == 1
    assert read_only or target.read_text() == "kept"


def test_a_report_needs_a_file_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(written_results(tmp_path)), "--out", str(tmp_path)]) == 2
    assert "is a folder: name a file" in capsys.readouterr().err


def written_results(folder: Path) -> Path:
    """A record of a run, as it is kept with the source."""
    source = next(iter(sorted(Path(__file__).parents[2].glob("results/records/digits/*/random.json"))))
    target = folder / "results" / "records" / "digits" / source.parent.name
    shutil.copytree(source.parent, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("[!r]*"))
    return folder / "results"
