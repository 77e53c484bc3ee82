"""On a real cluster of three raylets of one CPU each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray_cluster import OBJECT_STORE, add_node, cluster, ray
from ray_jobs import Square, lines

from attribench.cli import main
from attribench.computing.progress import Progress
from attribench.errors import ArtifactError, AttribenchError, UsageError
from attribench.settings import RayOptions, Runtime
from attribench.store.artifacts import ArtifactStore
from attribench.store.journal import Journal
from attribench.store.parcels import Parcel, adopt
from attribench.truth.executors import make_executor

pytestmark = pytest.mark.slow

SMOKE = ["--dataset", "digits", "--preset", "smoke", "--accelerator", "cpu", "--retrain"]


@pytest.fixture(scope="module")
def raylets() -> Iterator[Any]:
    # The workers import tests/ray_jobs.py by its name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        with cluster() as found:
            yield found


@pytest.fixture
def address(raylets: Any) -> str:
    found: str = raylets.address
    return found


class Bar:
    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount


class Saying(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def progress() -> Saying:
    return Saying()


def run(jobs: list[Square], folder: Path, address: str, progress: Progress, *, carry: bool = False) -> Bar:
    options = RayOptions(address=address, carry=carry)
    runtime = Runtime(workdir=str(folder), accelerator="cpu", executor="ray", ray=options)
    bar = Bar()
    make_executor(jobs, ArtifactStore(folder), runtime, progress).run(jobs, bar)
    return bar


def test_every_job_runs_once_on_all_nodes_and_after_those_it_needs(
    address: str, tmp_path: Path, progress: Saying
) -> None:
    log = str(tmp_path / "log")
    jobs = [Square(number, log, seconds=0.2, needs=("square 5",) if number == 0 else ()) for number in range(6)]
    bar = run(jobs, tmp_path / "runs", address, progress)
    begun = [entry["number"] for entry in lines(log) if "pid" in entry]
    assert sorted(begun) == list(range(6))
    assert begun.index(0) > begun.index(5)
    assert len({entry["pid"] for entry in lines(log) if "pid" in entry}) >= 3
    assert bar.done == 60.0
    store = ArtifactStore(tmp_path / "runs")
    assert [job.find(store).load_json("square") for job in jobs] == [0, 1, 4, 9, 16, 25]  # type: ignore[union-attr]
    assert not list((tmp_path / "runs" / ".drivers").iterdir())
    assert {entry.doer.split("(")[1] for entry in Journal(tmp_path / "runs").entries()} == {"Ray)"}


def test_a_job_whose_worker_dies_goes_elsewhere(address: str, tmp_path: Path, progress: Saying) -> None:
    log = str(tmp_path / "log")
    jobs = [Square(0, log, "dies"), Square(1, log)]
    bar = run(jobs, tmp_path / "runs", address, progress)
    assert sorted(entry["number"] for entry in lines(log) if "pid" in entry) == [0, 0, 1]
    assert bar.done == 20.0
    assert any("The worker of the square 0" in text and "another one goes on" in text for text in progress.said)
    attempts = {entry.key: entry.attempt for entry in Journal(tmp_path / "runs").entries()}
    assert sorted(attempts.values()) == [1, 2]


def test_a_job_whose_node_dies_goes_elsewhere(raylets: Any, tmp_path: Path, progress: Saying) -> None:
    log, killed = str(tmp_path / "log"), []

    def kill() -> None:
        """A node with a worker that is at a job, but not the command's own."""
        others = {node.all_processes["raylet"][0].process.pid: node for node in raylets.worker_nodes}
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            ended = {entry["number"] for entry in lines(log) if "ended" in entry}
            for entry in lines(log):
                if "pid" in entry and entry["number"] not in ended:
                    raylet = psutil.Process(int(entry["pid"])).parent()
                    if raylet is not None and raylet.pid in others:
                        workers = raylet.children()
                        for process in (raylet, *workers):  # a worker by itself might come to its job's end
                            process.kill()
                        killed.append(others[raylet.pid])
                        return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    jobs = [Square(number, log, seconds=3.0) for number in range(4)]
    run(jobs, tmp_path / "runs", raylets.address, progress)
    killer.join()
    raylets.remove_node(*killed, allow_graceful=False)
    add_node(raylets, num_cpus=1, object_store_memory=OBJECT_STORE)
    begun = Counter(entry["number"] for entry in lines(log) if "pid" in entry)
    assert sorted(begun.values()) == [1, 1, 1, 2]
    assert all(job.find(ArtifactStore(tmp_path / "runs")) for job in jobs)
    assert any("died: another one goes on" in text for text in progress.said)
    assert sorted(entry.attempt for entry in Journal(tmp_path / "runs").entries()) == [1, 1, 1, 2]


def test_when_the_command_is_killed_the_same_command_goes_on(address: str, tmp_path: Path, progress: Saying) -> None:
    log, jobs = str(tmp_path / "log"), "[Square(n, sys.argv[1], seconds=0.5 if n < 3 else 60.0) for n in range(6)]"
    code = f"""
import sys
from pathlib import Path
from ray_jobs import Square, FakeTask
from attribench.computing.progress import Progress
from attribench.settings import RayOptions, Runtime
from attribench.store.artifacts import ArtifactStore
from attribench.truth.executors import make_executor
store = ArtifactStore(Path(sys.argv[2]))
runtime = Runtime(workdir=sys.argv[2], accelerator="cpu", executor="ray", ray=RayOptions(address=sys.argv[3]))
make_executor({jobs}, store, runtime, Progress()).run({jobs}, FakeTask())
"""
    command = [sys.executable, "-c", code, log, str(tmp_path / "runs"), address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 90
        while len({entry["number"] for entry in lines(log) if "pid" in entry} - {0, 1, 2}) < 3:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
    again = [Square(number, log) for number in range(6)]
    run(
        [job for job in again if job.find(ArtifactStore(tmp_path / "runs")) is None],
        tmp_path / "runs",
        address,
        progress,
    )
    made = [entry.key for entry in Journal(tmp_path / "runs").entries()]
    assert len(made) == len(set(made)) == 6
    begun = Counter(entry["number"] for entry in lines(log) if "pid" in entry)
    assert begun == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2, 5: 2}, "what was in hand, and nothing else"


def test_a_job_that_runs_out_of_memory_is_tried_alone(address: str, tmp_path: Path, progress: Saying) -> None:
    log = str(tmp_path / "log")
    jobs = [Square(0, log, "exhausts"), *(Square(number, log, seconds=0.5) for number in range(1, 5))]
    run(jobs, tmp_path / "runs", address, progress)
    assert (
        "The square 0 ran out of memory: it will be tried while no other job runs (cannot allocate 12 GiB)."
        in progress.said
    )
    ends = {entry["number"]: entry["ended"] for entry in lines(log) if "ended" in entry}
    again = [entry["at"] for entry in lines(log) if entry["number"] == 0 and "at" in entry][1]
    assert all(ends[number] <= again for number in range(1, 5))


def test_a_job_that_runs_out_of_memory_alone_is_refused_with_figures(
    address: str, tmp_path: Path, progress: Saying
) -> None:
    jobs = [Square(0, str(tmp_path / "log"), "exhausts always", host_memory=3 * 2**20)]
    with pytest.raises(AttribenchError, match=r"square 0 cannot be done here.*takes 3\.00 MiB; .* GiB were free on"):
        run(jobs, tmp_path / "runs", address, progress)


def test_a_job_that_no_node_can_take_is_refused_before_it_begins(
    address: str, tmp_path: Path, progress: Saying
) -> None:
    jobs = [Square(0, str(tmp_path / "log"), host_memory=2**50)]
    with pytest.raises(AttribenchError, match=r"square 0 takes 1\.00 PiB by the model's size; no node .* more than"):
        run(jobs, tmp_path / "runs", address, progress)
    assert lines(str(tmp_path / "log")) == []


def test_a_failing_job_stops_the_run_with_its_reason(address: str, tmp_path: Path, progress: Saying) -> None:
    jobs = [Square(0, str(tmp_path / "log"), "fails"), Square(1, str(tmp_path / "log"), seconds=30.0)]
    with pytest.raises(AttribenchError, match="The square 0 failed: ValueError: no such luck"):
        run(jobs, tmp_path / "runs", address, progress)


def test_a_job_that_somebody_else_is_at_is_put_off(address: str, tmp_path: Path, progress: Saying) -> None:
    log, store = str(tmp_path / "log"), ArtifactStore(tmp_path / "runs")
    jobs = [Square(number, log) for number in range(3)]
    holding = store.lock("squares", jobs[0].spec)
    holding.__enter__()

    class Releasing(Saying):
        def message(self, text: str) -> None:
            super().message(text)
            holding.__exit__(None, None, None)

    waiting = Releasing()
    run(jobs, tmp_path / "runs", address, waiting)
    assert sorted(entry["number"] for entry in lines(log) if "pid" in entry) == [0, 1, 2]
    assert waiting.said[0].startswith("Waiting: squares-")


def test_the_record_is_that_of_local_bit_for_bit(address: str, tmp_path: Path) -> None:
    """Over a shared folder, and where Ray carries everything: a method that sees images, and one that sees the model."""
    records, stored, scores = [], [], []
    on_ray = ["--executor", "ray", "--ray.address", address]
    ways = {"local": ["--workers", "1"], "ray": on_ray, "carried": [*on_ray, "--ray.carry", "true"]}
    for name, options in ways.items():
        place = ["--workdir", str(tmp_path / name), "--results", str(tmp_path / f"{name}-results")]
        assert main(["run", "--method", "nda,dtrak", *SMOKE, *options, *place]) == 0
        records.append(record(tmp_path / f"{name}-results"))
        kinds = ("models", "losses", "generated")
        stored.append({a.key: a.digest for a in ArtifactStore(tmp_path / name).artifacts() if a.kind in kinds})
        kept = ArtifactStore(tmp_path / name)
        found = [a for a in kept.artifacts() if a.kind == "scores"]
        scores.append({a.key: a.load_tensors("scores")["scores"] for a in found})
        assert len(found) == 4
    assert records[0] == records[1] == records[2]
    assert stored[0] == stored[1] == stored[2]
    assert len(stored[0]) == 14
    for key, expected in scores[0].items():
        for others in scores[1:]:  # gradients are added up by as many threads as a process has
            assert torch.allclose(others[key], expected, rtol=1e-4, atol=1e-6 * expected.abs().max())
    for name in ("ray", "carried"):
        kinds = ("models", "losses", "scores")
        entries = [entry for entry in Journal(tmp_path / name).entries() if entry.kind in kinds]
        assert len(entries) == len({(entry.kind, entry.key) for entry in entries}) == 17
        assert all(entry.doer.endswith("(Ray)") and entry.attempt == 1 for entry in entries)


def record(results: Path) -> dict[str, Any]:
    (path,) = results.rglob("nda.json")
    content: dict[str, Any] = json.loads(path.read_text())
    for measured in ("cost", "created"):
        del content[measured]
    return content


def test_carried_jobs_work_in_folders_of_their_own_which_are_swept(
    address: str, tmp_path: Path, progress: Saying
) -> None:
    log = str(tmp_path / "log")
    jobs = [Square(number, log, seconds=0.3) for number in range(6)]
    run(jobs, tmp_path / "runs", address, progress, carry=True)
    store = ArtifactStore(tmp_path / "runs")
    assert [job.find(store).load_json("square") for job in jobs] == [0, 1, 4, 9, 16, 25]  # type: ignore[union-attr]
    roots = {str(entry["root"]) for entry in lines(log) if "root" in entry}
    assert len(roots) == 3
    assert not any(Path(root).exists() or root.startswith(str(tmp_path)) for root in roots)
    entries = list(Journal(tmp_path / "runs").entries())
    workers = {entry["pid"] for entry in lines(log) if "pid" in entry}
    assert {int(entry.doer.split()[1]) for entry in entries} == workers
    assert not any((tmp_path / "runs" / ".claims").iterdir())


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_damaged_on_its_way_is_refused_and_done_again(
    times: int, address: str, tmp_path: Path, progress: Saying, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attribench.truth.cluster import carrier

    arrived = []

    def damage(store: ArtifactStore, parcel: Parcel) -> object:
        arrived.append(parcel.key)
        if len(arrived) <= times:
            content = parcel.files["square.json"].copy()
            content[0] ^= 1
            parcel = replace(parcel, files={**parcel.files, "square.json": content})
        return adopt(store, parcel)

    monkeypatch.setattr(carrier, "adopt", damage)
    job = Square(7, str(tmp_path / "log"))
    if times == 3:
        with pytest.raises(ArtifactError, match="was damaged 3 times on its way"):
            run([job], tmp_path / "runs", address, progress, carry=True)
        assert job.find(ArtifactStore(tmp_path / "runs")) is None
        return
    run([job], tmp_path / "runs", address, progress, carry=True)
    assert len(arrived) == 2
    found = job.find(ArtifactStore(tmp_path / "runs"))
    assert found is not None
    assert found.load_json("square") == 49
    assert any(
        "The square 7 is done again. A squares artifact was damaged on its way" in text for text in progress.said
    )
    assert not (tmp_path / "runs" / ".set-aside").exists()


def test_unfinished_work_goes_elsewhere_too(address: str, tmp_path: Path, progress: Saying) -> None:
    """The first worker loses its disk as it dies; the next one has what had been carried."""
    log = str(tmp_path / "log")
    run([Square(3, log, "loses", seconds=2.0)], tmp_path / "runs", address, progress, carry=True)
    assert [entry["resumed"] for entry in lines(log) if "resumed" in entry] == [False, True]
    assert not (tmp_path / "runs" / ".work" / "squares").exists() or not any(
        (tmp_path / "runs" / ".work" / "squares").iterdir()
    )


def test_a_job_that_others_hold_is_not_given_out(address: str, tmp_path: Path, progress: Saying) -> None:
    log, store = str(tmp_path / "log"), ArtifactStore(tmp_path / "runs")
    jobs = [Square(number, log) for number in range(2)]
    with store.lock("squares", jobs[0].spec) as claim:
        runtime = Runtime(
            workdir=str(tmp_path / "runs"),
            accelerator="cpu",
            executor="ray",
            lock_timeout=1.0,
            ray=RayOptions(address=address, carry=True),
        )
        with pytest.raises(ArtifactError, match="is being made by process"):
            make_executor(jobs, store, runtime, progress).run(jobs, Bar())
        assert claim.attempt == 1
    assert [entry["number"] for entry in lines(log) if "pid" in entry] == [1]


def test_no_cluster_is_a_wrong_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--workdir", str(tmp_path), "--executor", "ray", "--ray.address", "127.0.0.1:1"]
    ray.shutdown()
    assert main(["ground-truth", *SMOKE[:4], *place]) == 2
    assert "--ray.address 127.0.0.1:1: no Ray cluster answers (Connection refused)" in capsys.readouterr().err


def test_a_client_is_refused(tmp_path: Path) -> None:
    import ray

    from attribench.truth.cluster.nodes import connect

    ray.shutdown()
    with pytest.raises(UsageError, match="on a node of the cluster"):
        connect(RayOptions(address="ray://head:10001"))
