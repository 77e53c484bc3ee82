"""Several real processes share a folder; see tests/store/test_claims.py for how they agree on who does what."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attribench.cli import main
from attribench.store.artifacts import ArtifactStore
from attribench.store.journal import Entry, Journal

SMOKE = ["--dataset", "digits", "--preset", "smoke", "--accelerator", "cpu"]


def start(folder: Path, shard: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "attribench", "work", "--shard", shard, *SMOKE, "--workers", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--workdir", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=150)
        assert process.returncode == 0, said
        assert "all is done" in said


def made(folder: Path) -> list[Entry]:
    return list(Journal(folder).entries())


def digests(folder: Path, kinds: tuple[str, ...] = ("models", "losses", "generated")) -> dict[str, str]:
    found = {f"{a.kind}/{a.key}": a.digest for a in ArtifactStore(folder).artifacts() if a.kind in kinds}
    assert found
    return found


def record(results: Path) -> dict[str, Any]:
    (path,) = results.rglob("nda.json")
    content: dict[str, Any] = json.loads(path.read_text())
    for measured in ("cost", "created"):
        del content[measured]
    return content


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("local")
    place = ["--workdir", str(folder / "runs"), "--results", str(folder / "results")]
    assert main(["run", "--method", "nda", *SMOKE, "--workers", "1", "--retrain", *place]) == 0
    return folder


@pytest.mark.slow
def test_three_processes_make_what_one_does_and_nothing_twice(local: Path, tmp_path: Path) -> None:
    end([start(tmp_path / "runs", f"{number}/3") for number in (1, 2, 3)])
    entries = made(tmp_path / "runs")
    assert len({(entry.kind, entry.key) for entry in entries}) == len(entries) == 5 + 8 + 1 + 3
    assert all(entry.attempt == 1 for entry in entries)
    assert {entry.doer.split("(")[1] for entry in entries} <= {f"shard {number}/3)" for number in (1, 2, 3)}
    assert digests(tmp_path / "runs") == digests(local / "runs")
    place = ["--workdir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["run", "--method", "nda", *SMOKE, "--workers", "1", "--retrain", *place]) == 0
    assert [entry for entry in made(tmp_path / "runs") if entry.kind in ("models", "losses")] == [
        entry for entry in entries if entry.kind in ("models", "losses")
    ]
    assert record(tmp_path / "results") == record(local / "results")


@pytest.mark.slow
def test_the_job_of_a_killed_process_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--training.epochs", "15", "--checkpoint_seconds", "0"]
    first = start(tmp_path / "runs", "1/2", *options)
    states = wait_for(lambda: list((tmp_path / "runs" / ".work").glob("models/*/resume.ckpt")), first)
    first.send_signal(signal.SIGSTOP)  # while it is looked at
    status = ["status", *SMOKE, *options, "--retrain", "--workdir", str(tmp_path / "runs")]
    assert main(status) == 0
    assert f"process {first.pid} on " in capsys.readouterr().out
    first.kill()
    first.wait()
    assert main(status) == 0
    assert "At work" not in capsys.readouterr().out
    end([start(tmp_path / "runs", "2/2", *options)])
    entries = {(entry.kind, entry.key): entry for entry in made(tmp_path / "runs")}
    assert len(entries) == len(made(tmp_path / "runs"))
    taken_over = {key for (kind, key), entry in entries.items() if kind == "models" and entry.attempt == 2}
    assert taken_over == {state.parent.name for state in states}
    end([start(tmp_path / "alone", "1/1", *options)])
    assert digests(tmp_path / "runs") == digests(tmp_path / "alone")


def wait_for(found: Callable[[], list[Path]], process: subprocess.Popen[str]) -> list[Path]:
    until = time.monotonic() + 120
    while not (paths := found()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["counterfactual", "removals"])
def test_other_plans_are_shared_too(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here in one process, one shard after the other: the second finds everything done."""
    options = ["--groups", "2", "--group-size", "2", "--seeds", "1"] if plan == "removals" else []
    call = [*SMOKE, "--workers", "1", "--method", "pixel", "--workdir", str(tmp_path / "runs"), *options]
    assert main(["work", plan, "--shard", "2/2", *call]) == 0
    entries = made(tmp_path / "runs")
    assert any(entry.kind == "regenerated" for entry in entries)
    assert main(["work", plan, "--shard", "1/2", *call]) == 0
    monkeypatch.chdir(tmp_path)
    assert main([plan, *call]) == 0
    added = {entry.kind for entry in made(tmp_path / "runs")[len(entries) :]}
    assert added.isdisjoint({"models", "losses", "regenerated", "scores"})


def test_a_script_for_sbatch_states_what_the_model_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["jobs", "--dataset", "digits", "--preset", "smoke", "--shards", "4", "--workdir", str(tmp_path / "my runs")]
    assert main([*call, "--accelerator", "gpu", "--workers_per_gpu", "2"]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "#SBATCH --array=1-4\n" in script
    assert "#SBATCH --gpus-per-task=1\n" in script
    assert "#SBATCH --cpus-per-task=2\n" in script
    assert "177,441 parameters" in script
    command = script.splitlines()[-1].replace("$SLURM_ARRAY_TASK_ID", "3")
    expected = ["exec", "srun", "attribench", "work", "ground-truth", "--shard", "3/4", "--dataset", "digits"]
    assert script.splitlines()[-3] == f"cd {shlex.quote(str(Path.cwd()))} || exit 1"
    assert "Scores that are not" not in script
    words = shlex.split(command)
    assert words[: len(expected)] == expected
    assert words[-2:] == ["--workdir", str(tmp_path / "my runs")]
    assert main([*call, "--format", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[4] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("--workers 1" in line for line in lines)


def test_scripts_state_the_process_beside_the_workers_and_say_what_scores_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def memory(*options: str) -> tuple[int, str]:
        call = ["--dataset", "digits", "--preset", "smoke", "--workdir", str(tmp_path), *options]
        assert main(["jobs", "counterfactual", *call]) == 0
        printed = capsys.readouterr()
        assert "begin with one process" in printed.err
        (line,) = (line for line in printed.out.splitlines() if line.startswith("#SBATCH --mem="))
        return int(line.removeprefix("#SBATCH --mem=").removesuffix("M")), " ".join(printed.out.split())

    (one, _), (three, script) = memory("--workers", "1"), memory("--workers", "3")
    assert three > 3 * one + 1024, "a process that has imported torch takes more than a GiB"
    assert "for the process that gives them out" in script
    assert "Scores that are not in the store yet are computed by one process" in script.replace(" # ", " ")


def test_status_names_what_is_made_for_other_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ArtifactStore(tmp_path)
    with store.lock("regenerated", {"a": 1}), store.lock("regenerated", {"a": 2}), store.lock("shared/gradients", {}):
        assert main(["status", *SMOKE, "--retrain", "--workdir", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  process {os.getpid()} "))
    assert line.endswith(": 2 of regenerated, 1 of shared-gradients")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["jobs", "--executor", "ray"], "--executor ray: jobs is for clusters without it."),
        (["work", "--shard", "0/3"], "--shard 0/3: expected which of how many"),
        (["work", "--shard", "4/3"], "expected which of how many, as 1/8"),
        (["work", "--shard", "2"], "--shard 2: expected"),
        (["work", "everything"], "There is no plan 'everything'. Known: ground-truth, counterfactual, removals."),
        (["jobs", "--format", "pbs"], "--format pbs: slurm or list."),
        (["jobs", "--shards", "0"], "at least one process"),
        (["work", "--dead_after", "3"], "--dead_after must be at least 20"),
        (["ground-truth", "--executor", "dask"], "--executor dask: local or ray."),
        (
            ["ground-truth", "--ray.gpus_per_job", "1.5"],
            "--ray.gpus_per_job 1.5: a share of one GPU, or a whole number.",
        ),
        (["ground-truth", "--ray.adress", "auto"], "Did you mean '--ray.address'?"),
        (["work", "--workers_per_gpu", "0"], "--workers_per_gpu must be at least 1"),
    ],
)
def test_wrong_calls_are_refused(call: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*call, "--preset", "smoke"]) == 2
    assert said in capsys.readouterr().err
