"""Whatever the encoding of standard output, every command prints."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_results import write_results

from attribench.cli import main
from attribench.computing.progress import BarProgress, LineProgress


class Streams:
    """Standard output and error of one encoding."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._encoding = encoding
        self._files = {name: io.BytesIO() for name in ("stdout", "stderr")}
        for name, file in self._files.items():
            stream = io.TextIOWrapper(file, encoding, errors="strict", write_through=True)
            monkeypatch.setattr(sys, name, stream)

    def __getitem__(self, name: str) -> str:
        return self._files[name].getvalue().decode(self._encoding)


every_encoding = pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


@every_encoding
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list"], ["table", "--help"], ["run", "--method", "nda", "--help"],
     ["run", "--method", "dtrak", "--preset", "smoke", "--print_config"]],
)  # fmt: skip
def test_commands_print(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(encoding, monkeypatch)
    assert main(arguments) == 0
    assert len(streams["stdout"]) > 100
    assert streams["stderr"] == ""


@every_encoding
@pytest.mark.parametrize("style", ["terminal", "markdown", "latex", "csv"])
def test_tables_print(style: str, results: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(encoding, monkeypatch)
    for more in ([], ["--layout", "paper", "--published"], ["--kind", "counterfactual"]):
        assert main(["table", "--results", str(results), "--format", style, *more]) == 0
    assert "nda" in streams["stdout"]
    assert streams["stderr"] == ""


def test_replacements_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams("ascii", monkeypatch)
    assert main(["--help"]) == 0
    print("49.0 ± 2.0 ≈ −3 × 4 — λ … café 猫 \udcff")
    assert streams["stdout"].endswith(f"49.0 +- 2.0 ~ -3 x 4 - lambda ... cafe ? ?{os.linesep}")


def test_what_an_encoding_has_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams("cp1252", monkeypatch)
    assert main(["--help"]) == 0
    print("× ± — é ≈")
    assert streams["stdout"].splitlines()[-1] == "× ± — é ~"


@every_encoding
def test_errors_print(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(encoding, monkeypatch)
    assert main(["run", "--dataset", "猫"]) == 2
    assert "Unknown data set '?'" in streams["stderr"]


@every_encoding
def test_progress_prints(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(encoding, monkeypatch)
    assert main(["--help"]) == 0
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    for progress in (BarProgress(), LineProgress(0.0)):
        with progress.task("猫 — LDS×100", 2, "query × train image") as task:
            progress.message("λ ≈ 0.1")
            task.advance()
    assert streams["stderr"].count("~ 0.1") == 2


def test_a_process_of_its_own(results: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "attribench", "table", "--results", str(results)]
    with (tmp_path / "table.txt").open("wb") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "49.0 +- 2.0" in (tmp_path / "table.txt").read_text("ascii")
