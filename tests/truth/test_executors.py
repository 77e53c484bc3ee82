from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.errors import ArtifactError, AttribenchError, UsageError
from attribench.settings import Runtime
from attribench.store.artifacts import Artifact, ArtifactStore
from attribench.truth.executors import InProcessExecutor, ProcessExecutor, default_workers, make_executor

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Sum:
    """A job without a model: writes its number, and in ``log`` a line each time it really works.

    It ends when ``company`` processes have written there, or after a minute: one can do all jobs while the next starts.
    """

    number: int
    log: str
    fails: bool = False
    company: int = 1
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"sum {self.number}"

    @property
    def cost(self) -> float:
        return 10.0

    def find(self, store: ArtifactStore) -> Artifact | None:
        return store.find("sums", {"number": self.number})

    def run(self, store: ArtifactStore, runtime: Runtime, report: object, worker: int = 0) -> Artifact:
        def build(staging: object) -> None:
            with Path(self.log).open("a") as file:
                file.write(json.dumps({"number": self.number, "pid": os.getpid(), "worker": worker}) + "\n")
            deadline = time.monotonic() + 60
            while len({entry["pid"] for entry in log(Path(self.log))}) < self.company and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.fails:
                raise ValueError("no such luck")
            report(25.0)  # type: ignore[operator]  # more than its cost: must not overshoot the bar
            staging.save_json("sum", self.number)  # type: ignore[attr-defined]

        return store.get_or_create("sums", {"number": self.number}, build, wait=False)


class Bar:
    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount


def log(path: Path) -> list[dict[str, int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_runs_once_and_the_bar_ends_full(tmp_path: Path, runtime: Runtime, workers: int) -> None:
    store, bar = ArtifactStore(tmp_path / "runs"), Bar()
    jobs = [Sum(number, str(tmp_path / "log"), company=workers) for number in range(6)]
    executor = (
        InProcessExecutor(store, runtime, Progress())
        if workers == 1
        else ProcessExecutor(store, runtime, Progress(), workers)
    )
    executor.run(jobs, bar)
    assert sorted(entry["number"] for entry in log(tmp_path / "log")) == list(range(6))
    assert len({entry["pid"] for entry in log(tmp_path / "log")}) == workers
    assert bar.done == 60.0
    assert all(job.find(ArtifactStore(tmp_path / "runs")) for job in jobs)


def test_a_job_that_another_process_holds_is_put_off_not_done_twice(tmp_path: Path, runtime: Runtime) -> None:
    store, bar = ArtifactStore(tmp_path / "runs"), Bar()
    jobs = [Sum(number, str(tmp_path / "log")) for number in range(3)]
    release = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with ArtifactStore(tmp_path / "runs").lock("sums", {"number": 0}):
            holding.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    said: list[str] = []

    class Saying(Progress):
        def message(self, text: str) -> None:
            said.append(text)
            release.set()

    InProcessExecutor(store, runtime, Saying()).run(jobs, bar)
    thread.join()
    assert [entry["number"] for entry in log(tmp_path / "log")] == [1, 2, 0]
    assert "Waiting" in said[0]
    assert bar.done == 30.0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_job_stops_the_run_with_its_reason(tmp_path: Path, runtime: Runtime, workers: int) -> None:
    store = ArtifactStore(tmp_path / "runs")
    jobs = [Sum(0, str(tmp_path / "log"), fails=True), Sum(1, str(tmp_path / "log"))]
    executor = (
        InProcessExecutor(store, runtime, Progress())
        if workers == 1
        else ProcessExecutor(store, runtime, Progress(), workers)
    )
    with pytest.raises((AttribenchError, ValueError), match="no such luck"):
        executor.run(jobs, Bar())
    assert jobs[0].find(store) is None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_begins_after_those_it_needs(tmp_path: Path, runtime: Runtime, workers: int) -> None:
    store, lines = ArtifactStore(tmp_path / "runs"), str(tmp_path / "log")
    jobs = [Sum(0, lines, needs=("sum 2", "elsewhere")), Sum(1, lines, needs=("sum 0",)), Sum(2, lines)]
    executor = (
        InProcessExecutor(store, runtime, Progress())
        if workers == 1
        else ProcessExecutor(store, runtime, Progress(), workers)
    )
    executor.run(jobs, Bar())
    assert [entry["number"] for entry in log(tmp_path / "log")] == [2, 0, 1]


@dataclass(frozen=True)
class Dies(Sum):
    """Its process is killed, as by the operating system when memory runs out."""

    def run(self, store: ArtifactStore, runtime: Runtime, report: object, worker: int = 0) -> Artifact:
        os._exit(137)


def test_a_worker_that_is_killed_is_an_error_that_names_the_job(tmp_path: Path, runtime: Runtime) -> None:
    store = ArtifactStore(tmp_path / "runs")
    jobs = [Dies(0, str(tmp_path / "log")), Dies(1, str(tmp_path / "log"))]
    with pytest.raises(ArtifactError, match=r"sum \d.*out of memory"):
        ProcessExecutor(store, runtime, Progress(), 2).run(jobs, Bar())


def test_little_work_stays_in_this_process(tmp_path: Path) -> None:
    store, jobs = ArtifactStore(tmp_path), [Sum(0, ""), Sum(1, "")]
    assert isinstance(make_executor(jobs, store, Runtime(accelerator="cpu"), Progress()), InProcessExecutor)
    explicit = make_executor(jobs, store, Runtime(accelerator="cpu", workers=2), Progress())
    assert isinstance(explicit, ProcessExecutor)


def test_several_small_models_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_workers(Runtime(accelerator="gpu")) == 2
    assert default_workers(Runtime(accelerator="gpu", workers_per_gpu=3)) == 6
    devices = [str(resolve_device("gpu", worker)) for worker in range(6)]
    assert devices == ["cuda:0", "cuda:1"] * 3


def test_ctrl_c_ends_the_workers_too(tmp_path: Path, runtime: Runtime) -> None:
    store, lines = ArtifactStore(tmp_path / "runs"), tmp_path / "log"
    jobs = [Sum(number, str(lines), company=3) for number in range(2)]  # they wait for one that never comes

    def interrupt() -> None:
        while not lines.exists() or len(log(lines)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ProcessExecutor(store, runtime, Progress(), 2).run(jobs, Bar())
    finally:
        signal.signal(signal.SIGINT, handler)
    children, end = multiprocessing.active_children(), time.monotonic() + 20
    # Asked again: while the pool's own thread waits for a child, this one may be told that it lives.
    while any(child.is_alive() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(child.is_alive() for child in children)
    assert not any(job.find(store) for job in jobs)


def test_ray_is_imported_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """A ground truth of one process, from the command on."""
    code = f"""
import sys
from attribench.cli import main
call = ["ground-truth", "--dataset", "digits", "--preset", "smoke", "--workers", "1", "--accelerator", "cpu"]
assert main([*call, "--workdir", {str(tmp_path)!r}]) == 0
assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_ray_is_missing_the_call_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "attribench.truth.cluster.executor", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'attribench\[ray\]'"):
        make_executor([Sum(0, "")], ArtifactStore(tmp_path), Runtime(executor="ray"), Progress())
