from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from attribench.errors import ArtifactError
from attribench.store import claims as module
from attribench.store.artifacts import ArtifactStore, LockBusyError, Staging
from attribench.store.claims import Claims, HeldError, Owner
from attribench.store.journal import Journal


def claims(root: Path, dead_after: float = 120.0, assigned: str = "") -> Claims:
    return Claims(root, dead_after, assigned)


def claimed_by(root: Path, owner: Owner, beat: str = "0") -> Path:
    """A claim as its owner on another machine leaves it."""
    folder = root / "thing" / "1"
    folder.mkdir(parents=True)
    (folder / "owner.json").write_text(json.dumps(asdict(owner)))
    (folder / "beat").write_text(beat)
    return folder


def seems_dead(folder: Path) -> None:
    """Make an owner look like one that is gone, as one that was stopped for long does on another machine."""
    owner = json.loads((folder / "owner.json").read_text())
    (folder / "owner.json").write_text(json.dumps({**owner, "started": "long ago"}))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)


def test_a_claim_is_held_until_it_is_released(tmp_path: Path) -> None:
    first = claims(tmp_path).take("thing")
    with pytest.raises(HeldError, match=f"process {os.getpid()} on"):
        claims(tmp_path).take("thing")
    holder = claims(tmp_path).holder("thing")
    assert holder is not None
    assert holder.pid == os.getpid()
    first.release()
    assert claims(tmp_path).holder("thing") is None
    second = claims(tmp_path).take("thing")
    assert (first.attempt, second.attempt) == (1, 2)
    second.finish()
    assert not (tmp_path / "thing").exists()
    assert claims(tmp_path).take("thing").attempt == 1


def test_a_claim_of_another_thing_is_free(tmp_path: Path) -> None:
    claims(tmp_path).take("thing")
    assert claims(tmp_path).take("other").attempt == 1


def test_the_claim_of_a_killed_process_passes_on_at_once(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path; from attribench.store.claims import Claims; import time
Claims(Path({str(tmp_path)!r}), 120.0).take("thing"); print("held", flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=f"process {process.pid} "):
            claims(tmp_path).take("thing")
        process.send_signal(signal.SIGKILL)
        while True:  # the signal takes its time; nobody has asked for its exit code yet, so its number is still taken
            try:
                assert claims(tmp_path).take("thing").attempt == 2
                break
            except HeldError:
                time.sleep(0.01)


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    claimed_by(tmp_path, replace(Owner.me(), started="long ago"))
    assert claims(tmp_path).take("thing").attempt == 2


def test_an_owner_elsewhere_lives_as_long_as_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    folder = claimed_by(tmp_path, replace(Owner.me(), machine="another", host="node7", pid=1))
    for beat in range(3):
        now[0] += 100.0
        (folder / "beat").write_text(str(beat))
        with pytest.raises(HeldError, match="process 1 on node7"):
            claims(tmp_path).take("thing")
    now[0] += 119.0
    with pytest.raises(HeldError):
        claims(tmp_path).take("thing")
    now[0] += 2.0
    assert claims(tmp_path).take("thing").attempt == 2


def test_who_gives_out_the_same_assignment_again_knows_that_its_holder_is_gone(tmp_path: Path) -> None:
    claimed_by(tmp_path, replace(Owner.me("job 3"), machine="another"))
    with pytest.raises(HeldError):
        claims(tmp_path).take("thing")
    with pytest.raises(HeldError):
        claims(tmp_path, assigned="job 4").take("thing")
    assert claims(tmp_path, assigned="job 3").take("thing").attempt == 2


@pytest.mark.parametrize("content", ["", '{"pid": 1}', '["unknown"]'])
def test_an_owner_that_cannot_be_read_is_judged_by_its_heartbeat(tmp_path: Path, content: str) -> None:
    (claimed_by(tmp_path, Owner.me()) / "owner.json").write_text(content)
    with pytest.raises(HeldError):
        claims(tmp_path).take("thing")
    time.sleep(0.02)
    assert claims(tmp_path, dead_after=0.01).take("thing").attempt == 2


def test_hearts_beat_until_the_claim_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    monkeypatch.setattr(module, "_heart", module._Heart())
    claim = claims(tmp_path).take("thing")
    beat = tmp_path / "thing" / "1" / "beat"
    end = time.monotonic() + 30
    while beat.read_text() in ("", "0", "1") and time.monotonic() < end:
        time.sleep(0.01)
    assert int(beat.read_text() or "9") > 1
    claim.release()
    assert module._heart._held == {}


def test_who_comes_back_leaves_the_claim_of_another_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It seemed dead, another made the thing; it is being made a third time when the first goes on."""
    monkeypatch.setattr(module, "BEAT", 0.01)
    monkeypatch.setattr(module, "_heart", module._Heart())
    first = claims(tmp_path).take("thing")
    assert not first.lost
    seems_dead(tmp_path / "thing" / "1")
    second = claims(tmp_path).take("thing")
    assert first.lost
    second.finish()
    assert first.lost
    folder = claimed_by(tmp_path, replace(Owner.me(), machine="another"), "7")
    time.sleep(0.1)  # enough for a beat of the first
    first.release()
    first.finish()
    assert first.lost
    assert (folder / "beat").read_text() == "7"
    assert sorted(file.name for file in folder.iterdir()) == ["beat", "owner.json"]
    with pytest.raises(HeldError):
        claims(tmp_path).take("thing")


def test_a_beat_makes_no_folder_or_file_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    monkeypatch.setattr(module, "_heart", module._Heart())
    claims(tmp_path).take("thing")
    (tmp_path / "thing" / "1" / "beat").unlink()
    time.sleep(0.1)
    assert not (tmp_path / "thing" / "1" / "beat").exists()


def test_half_removed_attempts_are_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claims(tmp_path).take("thing")
    seen: list[bool] = []
    removing = module.shutil.rmtree

    def rmtree(path: Path, ignore_errors: bool) -> None:
        seen.append((tmp_path / "thing").exists())
        removing(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(module.shutil, "rmtree", rmtree)
    claim.finish()
    assert seen == [False]
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_is_never_allowed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    tried: list[Path] = []

    def rename(self: Path, target: Path) -> None:
        tried.append(target)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(module.Path, "rename", rename)
    with pytest.raises(OSError, match="Permission denied"):
        claims(tmp_path).take("thing")
    assert set(tried) == {tmp_path / "thing" / "1"}, "what is not there is no released attempt"
    assert list((tmp_path / "thing").iterdir()) == []


def test_an_attempt_that_another_one_does_not_see_yet_is_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    """A network file system says of a folder that it is not there, and of a rename onto it that it is."""
    folder = claimed_by(tmp_path, replace(Owner.me(), machine="another"))
    exists, listing = module.Path.exists, module.Path.iterdir
    looks: list[Path] = []

    def late(self: Path) -> bool:
        looks.append(self)
        return exists(self) and len(looks) > 5

    monkeypatch.setattr(module.Path, "exists", late)
    monkeypatch.setattr(module.Path, "iterdir", lambda self: [] if len(looks) <= 5 else listing(self))
    with pytest.raises(HeldError):
        claims(tmp_path).take("thing")
    assert [entry.name for entry in folder.parent.iterdir()] == ["1"]


def test_an_attempt_that_does_not_say_whose_it_is_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    (claimed_by(tmp_path, Owner.me()) / "owner.json").unlink()
    with pytest.raises(HeldError, match="a process on another machine"):
        claims(tmp_path).take("thing")
    time.sleep(0.02)
    assert claims(tmp_path, dead_after=0.01).take("thing").attempt == 2


def test_a_folder_that_can_never_be_made_is_an_error(tmp_path: Path, no_pauses: None) -> None:
    """As below a working directory that was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    before = Path.cwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(ArtifactError, match="Cannot write"):
            ArtifactStore(Path("runs")).get_or_create("kind", {"a": 1}, lambda staging: staging.save_json("v", 1))
    finally:
        os.chdir(before)


def test_who_waits_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed_by(tmp_path, replace(Owner.me(), machine="another"))

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("something is written")

    for name in ("mkdir", "write_text", "rename"):
        monkeypatch.setattr(module.Path, name, fail)
    with pytest.raises(HeldError):
        claims(tmp_path).take("thing")


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """``hidepid=2``: other users' processes are not in /proc, and a signal to them is not permitted."""
    hidden = replace(Owner.me(), pid=1, started="7")

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (1, 0)
        raise PermissionError(errno.EPERM, "no")

    def no_process(pid: int) -> None:
        raise module.psutil.NoSuchProcess(pid)

    monkeypatch.setattr(module.Path, "read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError(2, "no")))
    monkeypatch.setattr(module.psutil, "Process", no_process)
    monkeypatch.setattr(module.psutil, "pid_exists", lambda pid: False)
    monkeypatch.setattr(module.os, "kill", kill)
    monkeypatch.setattr(module, "this_machine", lambda: hidden.machine)
    assert hidden.alive is None


def test_an_owner_elsewhere_that_is_silent_is_said_to_be_so(tmp_path: Path) -> None:
    folder = claimed_by(tmp_path, replace(Owner.me(), machine="another", host="node7", pid=1, since="then"))
    assert list(claims(tmp_path).held()) == [("thing", "process 1 on node7 since then")]
    os.utime(folder / "beat", (time.time() - 3 * 3600,) * 2)
    assert list(claims(tmp_path).held()) == [("thing", "process 1 on node7 since then (no sign of life for 3 hours)")]


def _take(root: Path, barrier: object, found: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for number in range(20):
        try:
            claims(root).take(f"thing {number}")
            found.put((number, os.getpid()))  # type: ignore[attr-defined]
        except HeldError:
            pass
    barrier.wait()  # type: ignore[attr-defined]  # dead owners would be followed


def test_of_many_processes_one_gets_each_claim(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(4), context.Queue()
    children = [context.Process(target=_take, args=(tmp_path, barrier, found)) for _ in range(4)]
    for child in children:
        child.start()
    got = [found.get(timeout=30) for _ in range(20)]
    for child in children:
        child.join()
    assert sorted(number for number, _ in got) == list(range(20))
    assert found.empty()


def test_of_many_threads_one_follows_a_dead_owner(tmp_path: Path) -> None:
    for number in range(30):
        root = tmp_path / str(number)
        claimed_by(root, replace(Owner.me(), started="long ago"))
        barrier, taken = threading.Barrier(4), list[int]()

        def follow(root: Path = root, barrier: threading.Barrier = barrier, taken: list[int] = taken) -> None:
            barrier.wait()
            with contextlib.suppress(HeldError):
                taken.append(claims(root).take("thing").attempt)

        threads = [threading.Thread(target=follow) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert taken == [2]


def test_a_store_makes_a_thing_once_and_notes_who_did(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, doer="shard 2/8")
    made = [store.get_or_create("kind", {"a": 1}, lambda staging: staging.save_json("v", 1)) for _ in range(2)]
    (entry,) = Journal(tmp_path).entries()
    assert (entry.kind, entry.key, entry.attempt) == ("kind", made[0].key, 1)
    assert entry.doer.startswith(f"process {os.getpid()} on ")
    assert entry.doer.endswith("(shard 2/8)")
    assert not any((tmp_path / ".claims").iterdir())


def test_a_failure_lets_the_next_attempt_begin(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def fail(staging: object) -> None:
        assert store.maker("kind", {"a": 1}) is not None
        raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError):
        store.get_or_create("kind", {"a": 1}, fail)
    assert store.maker("kind", {"a": 1}) is None
    store.get_or_create("kind", {"a": 1}, lambda staging: staging.save_json("v", 1))
    assert [entry.attempt for entry in Journal(tmp_path).entries()] == [2]


def test_who_was_taken_over_finds_what_the_other_made(tmp_path: Path) -> None:
    """It had seemed dead, as a process that was stopped for long does, and goes on."""
    slow, quick = ArtifactStore(tmp_path), ArtifactStore(tmp_path, assigned="again")

    def build(staging: object) -> None:
        staging.save_json("v", "slow")  # type: ignore[attr-defined]
        seems_dead(tmp_path / ".claims" / slow.claim_name("kind", {"a": 1}) / "1")
        quick.get_or_create("kind", {"a": 1}, lambda other: other.save_json("v", "quick"))

    with pytest.raises(LockBusyError, match="taken over"):
        slow.get_or_create("kind", {"a": 1}, build)
    found = slow.find("kind", {"a": 1})
    assert found is not None
    assert found.load_json("v") == "quick"


def test_who_was_taken_over_before_it_began_leaves_the_other_alone(tmp_path: Path) -> None:
    slow, quick = ArtifactStore(tmp_path), ArtifactStore(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    def build(staging: Staging) -> None:
        begun.set()
        assert go_on.wait(30)
        staging.save_json("v", "quick")

    def work() -> None:
        made.append(quick.get_or_create("kind", {"a": 1}, build).load_json("v"))

    other = threading.Thread(target=work)

    def stopped(kind: str, spec: object) -> None:
        seems_dead(tmp_path / ".claims" / slow.claim_name("kind", {"a": 1}) / "1")
        other.start()
        assert begun.wait(30)

    slow._look_anew = stopped  # type: ignore[method-assign,assignment]
    with pytest.raises(LockBusyError, match="taken over"):
        slow.get_or_create("kind", {"a": 1}, lambda staging: staging.save_json("v", "slow"))
    go_on.set()
    other.join()
    assert made == ["quick"]


def test_what_was_changed_meanwhile_is_not_adopted(tmp_path: Path) -> None:
    source = tmp_path / "kept"
    source.write_text("own")
    staging = Staging(tmp_path)
    staging.adopt(source, "taken", hashlib.sha256(b"own").hexdigest())
    assert (tmp_path / "taken").read_text() == "own"
    source.write_text("another's")
    with pytest.raises(ArtifactError, match="was changed"):
        staging.adopt(source, "taken", hashlib.sha256(b"own").hexdigest())


def test_a_journal_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    Journal(tmp_path).add("kind", "key", 1, 2.0)
    (tmp_path / ".journal" / "a.jsonl").mkdir()
    (tmp_path / ".journal" / "b.jsonl").write_bytes(b'{"doer": "\xff')
    assert [entry.key for entry in Journal(tmp_path).entries()] == ["key"]
