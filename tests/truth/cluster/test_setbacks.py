"""What the command makes of what it hears from a cluster, and of what it does not hear."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_ray import NODE, A, B, C, FakeRay, Given, crashed
from ray_cluster import ray
from ray_jobs import FakeTask, Square

from attribench.computing.progress import Progress
from attribench.errors import AttribenchError
from attribench.settings import RayOptions, Runtime
from attribench.store import artifacts, parcels
from attribench.store.artifacts import ArtifactStore, LockBusyError, Spec
from attribench.store.files import file_sum
from attribench.store.parcels import Outbox, pack, read_files
from attribench.truth.cluster import executor
from attribench.truth.cluster.carrier import Carrier
from attribench.truth.cluster.remote import (
    Assignment,
    Busy,
    Done,
    Failed,
    Message,
    OutOfMemory,
    Progressed,
    TooSmall,
    carry_out,
)
from attribench.truth.executors import make_executor
from attribench.truth.resources import Memory

Run = Callable[..., list[str]]


class Saying(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def running(found: FakeRay, jobs: list[Any], *, carry: bool = False, **options: Any) -> list[str]:
        found.install(monkeypatch)
        options = {"accelerator": "cpu", **options}
        runtime = Runtime(workdir=str(tmp_path), executor="ray", ray=RayOptions(carry=carry), **options)
        progress = Saying()
        executor.RayExecutor(ArtifactStore(tmp_path), runtime, progress).run(jobs, FakeTask())
        return progress.said

    return running


def squares(count: int) -> list[Square]:
    return [Square(number, "") for number in range(count)]


def test_a_process_that_used_a_gpu_does_one_job(run: Run) -> None:
    found = FakeRay(lambda given: [given.begun(), Done()], {A: {**NODE, "GPU": 1.0}})
    run(found, squares(2), accelerator="auto")
    assert [given.once for given in found.given] == [True, True]
    without = FakeRay(lambda given: [given.begun(), Done()])
    run(without, squares(2), accelerator="auto")
    assert [given.once for given in without.given] == [False, False]


def test_all_that_is_said_is_heard_after_one_wait(run: Run) -> None:
    found = FakeRay(lambda given: [given.begun(), Progressed(1.0), Progressed(1.0), Done()])
    run(found, squares(100))
    assert found.waits <= 2 * 4 + 2  # 400 messages


@dataclass(frozen=True)
class Reading(Square):
    """Reads an artifact of its own."""

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return [("models", {"n": self.number})]


@pytest.fixture
def readings(tmp_path: Path) -> list[Reading]:
    store = ArtifactStore(tmp_path)
    for number in range(8):
        store.get_or_create("models", {"n": number}, lambda staging, n=number: staging.save_json("model", n))  # type: ignore[misc]
    return [Reading(number, "") for number in range(8)]


def answer(given: Given, elsewhere: ArtifactStore) -> list[Message]:
    job = given.assignment.job
    return [given.begun(), Done((pack(job.run(elsewhere, given.assignment.runtime, lambda units: None)),))]


def test_what_is_carried_goes_out_as_nodes_become_free(
    run: Run, readings: list[Reading], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere, done, ahead = ArtifactStore(tmp_path_factory.mktemp("node")), [], []
    found = FakeRay(lambda given: [given.begun()], {A: NODE, B: NODE})

    def finish() -> None:
        """One job at a time comes to its end."""
        ahead.append(len(found.stored) - len(done))
        if not any(given.says for given in found.given):
            given = found.given[len(done)]
            done.append(given)
            given.says.extend(answer(given, elsewhere)[1:])

    found.waiting = finish
    run(found, [replaced(job, tmp_path_factory) for job in readings], carry=True)
    assert len(done) == 8
    assert max(ahead) == 2 + 2  # of two nodes, and two more


def replaced(job: Reading, factory: pytest.TempPathFactory) -> Reading:
    return Reading(job.number, str(factory.getbasetemp() / "log"))


def test_a_full_object_store_is_waited_for_or_said(
    run: Run, readings: list[Reading], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = ArtifactStore(tmp_path_factory.mktemp("node"))
    jobs = [replaced(job, tmp_path_factory) for job in readings[:2]]

    class Full(FakeRay):
        room = 1

        def put(self, thing: Any) -> Any:
            self.room -= 1
            if self.room < 0:
                self.room = 1
                raise ray.exceptions.ObjectStoreFullError("no room for 12 GiB")
            return super().put(thing)

    found = Full(lambda given: answer(given, elsewhere))
    run(found, jobs, carry=True)
    assert [given.assignment.job.name for given in found.given] == ["square 0", "square 1"]
    found = Full(lambda given: answer(given, elsewhere))
    found.room = 0
    with pytest.raises(AttribenchError, match=r"does not fit into Ray's object store.*no room for 12 GiB"):
        run(found, [replaced(readings[2], tmp_path_factory)], carry=True)


def test_when_nodes_are_gone_it_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_IDLE", 0.0)
    found = FakeRay(lambda given: [given.begun(), crashed()] if len(found.given) == 1 else [])
    idle = []

    def come_back() -> None:
        if len(found.given) == 2:
            idle.append(0)
            if len(idle) == 3:
                found.given[1].says.append(Done())

    found.waiting = come_back
    assert any(text.startswith("Waiting: no node takes a job") for text in run(found, squares(1)))


@dataclass(frozen=True)
class Raising(Square):
    def run(self, *_: Any, **__: Any) -> Any:
        raise SystemExit(3)  # no Exception


def test_a_job_that_raises_anything_at_all_ends(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    assignment = Assignment(
        Raising(0, ""), Runtime(accelerator="cpu"), str(tmp_path), "token", str(tmp_path / "marker")
    )
    heard: list[Message] = []
    listener = threading.Thread(target=lambda: heard.extend(carry_out(assignment)), daemon=True)
    listener.start()
    listener.join(120.0)
    assert heard[1:] == [Failed("The square 0 failed: SystemExit: 3")]


def test_a_node_without_the_device_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assignment = Assignment(Square(0, ""), Runtime(accelerator="cuda"), str(tmp_path), "token", "")
    (said,) = list(carry_out(assignment))
    assert isinstance(said, Failed)
    assert said.text.startswith("The square 0 could not begin on ")


def test_a_worker_that_only_seems_dead_is_stopped(run: Run) -> None:
    found = FakeRay(lambda given: [given.begun(), crashed() if len(found.given) == 1 else Done()])
    run(found, squares(1))
    assert found.cancelled == found.given[:1]


@dataclass(frozen=True)
class Long(Square):
    @property
    def unfinished(self) -> str | None:
        return "state"


@pytest.mark.parametrize("gets_on", [True, False])
def test_only_deaths_without_progress_add_up(gets_on: bool, run: Run, tmp_path: Path) -> None:
    store, job = ArtifactStore(tmp_path), Long(0, "")

    def work(given: Given) -> list[Any]:
        state = store.working_folder("squares", job.spec) / "state"
        if gets_on or not state.exists():
            state.with_suffix(".tmp").write_text(str(len(found.given)))
            state.with_suffix(".tmp").replace(state)
        return [given.begun(), Done() if len(found.given) > 30 else crashed("gone for good")]

    found = FakeRay(work)
    if gets_on:
        run(found, [job])
        return
    with pytest.raises(AttribenchError, match=r"11 of its workers died.*\(WorkerCrashedError: "):
        run(found, [job])
    assert len(found.given) == 8 + 3


def test_a_node_where_all_fails_does_not_end_the_run(run: Run) -> None:
    found = FakeRay(
        lambda given: [given.begun(), Failed("bad disk", node=A) if given.node == A else Done()],
        {A: NODE, B: NODE},
    )
    said = run(found, squares(3))
    assert said == ["bad disk Once more, on another node."] * 3
    assert [given.node for given in found.given] == [A] * 3 + [B] * 3


def test_a_job_that_fails_on_two_nodes_ends_the_run(run: Run) -> None:
    found = FakeRay(lambda given: [given.begun(), Failed("bad job", given.node)], {A: NODE, B: NODE, C: NODE})
    with pytest.raises(AttribenchError, match="bad job"):
        run(found, squares(1))
    assert len(found.given) == 2
    alone = FakeRay(lambda given: [given.begun(), Failed("bad job", given.node)])
    with pytest.raises(AttribenchError, match="bad job"):
        run(alone, squares(1))
    assert len(alone.given) == 1


def test_a_job_that_was_put_off_while_alone_is_not_alone_any_more(run: Run) -> None:
    ends: list[Message] = [OutOfMemory("no room"), Busy("others"), OutOfMemory("no room"), Done()]
    found = FakeRay(lambda given: [given.begun(), ends[len(found.given) - 1]])
    said = run(found, squares(1))
    assert len([text for text in said if "ran out of memory" in text]) == 2


@dataclass(frozen=True)
class OnGpu(Square):
    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        return Memory(2**20, 2**30 if cuda else 0)


def test_a_gpu_that_is_too_small_is_left_for_a_larger_one(run: Run) -> None:
    gpu = {**NODE, "GPU": 1.0}

    def work(given: Given) -> list[Message]:
        size = 2**29 if given.node == A else 2**31
        assert given.assignment.device_memory == 2**30
        return [given.begun(device_size=size), TooSmall("too small.") if given.node == A else Done()]

    found = FakeRay(work, {A: gpu, B: gpu})
    run(found, [OnGpu(number, "") for number in range(2)], accelerator="cuda")
    assert [given.node for given in found.given] == [A, A, B, B]
    small = FakeRay(work, {A: gpu})
    with pytest.raises(AttribenchError, match=r"1\.00 GiB on a GPU.*no node .* more than 512\.00 MiB"):
        run(small, [OnGpu(0, "")], accelerator="cuda")


def test_a_worker_compares_what_a_job_takes_with_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Given(Assignment(Square(0, ""), Runtime(), "", "", ""), {}, A, []).begun(device_size=2**30)
    monkeypatch.setattr("attribench.truth.cluster.remote.begun", lambda runtime: here)
    assignment = Assignment(Square(0, ""), Runtime(), str(tmp_path), "token", "", device_memory=2**31)
    said = list(carry_out(assignment))
    assert said[1:] == [
        TooSmall("The square 0 takes 2.00 GiB on a GPU by the model's size; that of host-a has 1.00 GiB.")
    ]


def test_work_does_not_count_as_waiting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy, then at work for long, then busy again: nobody has waited for long."""
    clock = [0.0]
    monkeypatch.setattr("attribench.truth.waiting.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("attribench.truth.waiting.time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def work(given: Given) -> list[Any]:
        if len(found.given) == 2:
            clock[0] += 1000.0
            return [given.begun(), Progressed(1.0), crashed()]
        return [given.begun(), Busy("others") if len(found.given) < 5 else Done()]

    found = FakeRay(work)
    run(found, squares(1), lock_timeout=100.0)
    busy = FakeRay(lambda given: [given.begun(), Busy("others")])
    with pytest.raises(LockBusyError):
        run(busy, squares(1), lock_timeout=100.0)


def test_a_cluster_that_is_gone_does_not_hide_what_the_run_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def nodes(self) -> None:
            raise ConnectionError("no GCS")

    monkeypatch.setattr("attribench.truth.cluster.carrier.ray", Gone())
    Carrier(ArtifactStore(tmp_path), "token").sweep()


def test_resumed_state_is_no_news_and_is_never_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"one")
    known = read_files(tmp_path)
    outbox = Outbox(lambda: tmp_path, "state", known)
    assert outbox.news() == {}
    state.write_bytes(b"another")

    def read(folder: Path) -> dict[str, Any]:
        """Another checkpoint is put in place after the folder was listed."""
        found = read_files(folder)
        (folder / "weights").write_bytes(b"w")
        (folder / "new").write_bytes(b"third")
        (folder / "new").replace(folder / "state")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(parcels, "read_files", read)
        assert outbox.news() == {}
    assert {name: content.tobytes() for name, content in outbox.news().items()} == {"state": b"third", "weights": b"w"}


def test_what_arrives_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = ArtifactStore(tmp_path / "there"), ArtifactStore(tmp_path / "here")
    made = there.get_or_create("squares", {"number": 3}, lambda staging: staging.save_json("square", 9))
    parcel, hashed = pack(made), []
    monkeypatch.setattr(artifacts, "file_sum", lambda path: hashed.append(path.name) or file_sum(path))  # type: ignore[func-returns-value]
    found = parcels.adopt(here, parcel)
    assert found.load_json("square") == 9
    assert len(hashed) == len(set(hashed)) == 2


def test_another_missing_module_is_not_taken_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "attribench.truth.cluster.executor")
    monkeypatch.setitem(sys.modules, "attribench.truth.cluster.carrier", None)
    with pytest.raises(ModuleNotFoundError, match="carrier"):
        make_executor([], ArtifactStore(tmp_path), Runtime(executor="ray"), Saying())
