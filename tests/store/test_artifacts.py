from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from attribench.errors import ArtifactError
from attribench.store.artifacts import Artifact, ArtifactStore, LockBusyError, Staging
from attribench.store.files import canonical

SPEC = {"what": "numbers", "n": 3, "rate": 1e-4, "list": (1, 2)}


def build(staging: Staging) -> None:
    staging.save_tensors("numbers", {"x": torch.arange(3.0)})
    staging.save_json("notes", {"text": "é"})


def test_an_artifact_is_built_once_and_read_back(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    calls = []

    def counting(staging: Staging) -> None:
        calls.append(1)
        build(staging)

    first = store.get_or_create("kind", SPEC, counting)
    again = ArtifactStore(tmp_path).get_or_create("kind", SPEC, counting)
    assert len(calls) == 1
    assert first.digest == again.digest
    assert torch.equal(again.load_tensors("numbers")["x"], torch.arange(3.0))
    assert again.load_json("notes") == {"text": "é"}
    assert ArtifactStore(tmp_path).find("kind", {**SPEC, "n": 4}) is None


def test_the_specification_s_order_and_container_types_do_not_matter() -> None:
    assert canonical({"b": (1, 2), "a": 1}) == canonical({"a": 1, "b": [1, 2]})
    assert canonical({"a": 1}) != canonical({"a": 1.5})
    with pytest.raises(TypeError):
        canonical({"a": torch.zeros(1)})


@pytest.mark.parametrize("name", ["numbers.safetensors", "notes.json", "spec.json", "manifest.json"])
def test_a_flipped_byte_is_reported_by_name_and_rebuilt(tmp_path: Path, name: str) -> None:
    artifact = ArtifactStore(tmp_path).get_or_create("kind", SPEC, build)
    for position in (0, (artifact.folder / name).stat().st_size // 2, -1):
        file = artifact.folder / name
        content = bytearray(file.read_bytes())
        content[position] ^= 1
        file.write_bytes(bytes(content))
        said: list[str] = []
        store = ArtifactStore(tmp_path, report=said.append)
        assert store.find("kind", SPEC) is None
        assert len(said) == 1
        assert name in said[0]
        rebuilt = store.get_or_create("kind", SPEC, build)
        assert rebuilt.digest == artifact.digest
    assert len(list((tmp_path / ".set-aside").iterdir())) == 3


def test_a_missing_payload_file_is_damage(tmp_path: Path) -> None:
    artifact = ArtifactStore(tmp_path).get_or_create("kind", SPEC, build)
    (artifact.folder / "notes.json").unlink()
    said: list[str] = []
    assert ArtifactStore(tmp_path, report=said.append).find("kind", SPEC) is None
    assert "notes.json is missing" in said[0]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def failing(staging: Staging) -> None:
        build(staging)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        store.get_or_create("kind", SPEC, failing)
    assert store.find("kind", SPEC) is None
    assert list((tmp_path / "kind").iterdir()) == []


def test_what_a_killed_process_left_half_written_is_never_seen_and_is_cleared(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    left = tmp_path / "kind" / f".{store.key(SPEC)}.123-abc.tmp"
    left.mkdir(parents=True)
    (left / "numbers.safetensors").write_bytes(b"half")
    assert store.find("kind", SPEC) is None
    assert list(store.artifacts()) == []
    store.get_or_create("kind", SPEC, build)
    assert not left.exists()


def test_looks_and_arrivals_are_cleared_when_they_are_old(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    left = [tmp_path / "kind" / f".{store.key(SPEC)}.{age}-abc.{what}" for age in "12" for what in ("look", "arrived")]
    for folder in left:
        folder.mkdir(parents=True)
    for folder in left[:2]:
        os.utime(folder, (time.time() - 2 * 24 * 3600,) * 2)
    store.get_or_create("kind", SPEC, build)
    assert [folder.exists() for folder in left] == [False, False, True, True]


def test_a_full_disk_is_an_error_that_says_where_and_what_to_do(tmp_path: Path) -> None:
    def full(staging: Staging) -> None:
        build(staging)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArtifactError, match=r"is full .*B free.*--workdir"):
        ArtifactStore(tmp_path).get_or_create("kind", SPEC, full)
    assert list((tmp_path / "kind").iterdir()) == []


def test_two_threads_build_one_artifact_once(tmp_path: Path) -> None:
    calls: list[int] = []
    inside = threading.Event()

    def slow(staging: Staging) -> None:
        calls.append(1)
        inside.set()
        threading.Event().wait(0.3)
        build(staging)

    results: list[Artifact] = []
    threads = [
        threading.Thread(target=lambda: results.append(ArtifactStore(tmp_path).get_or_create("kind", SPEC, slow)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    inside.wait()
    with pytest.raises(LockBusyError, match=f"process {os.getpid()}"):
        ArtifactStore(tmp_path).get_or_create("kind", SPEC, slow, wait=False)
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({result.digest for result in results}) == 1


def test_waiting_for_a_lock_ends_with_the_time_out(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, lock_timeout=0.3)
    with store.lock("kind", SPEC), pytest.raises(LockBusyError):
        store.get_or_create("kind", SPEC, build)


def test_a_scoped_store_keeps_its_artifacts_apart(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    scoped = store.scoped("methods/mine")
    scoped.get_or_create("kind", SPEC, build)
    assert store.find("kind", SPEC) is None
    assert store.find("methods/mine/kind", SPEC) is not None
    assert [artifact.kind for artifact in scoped.artifacts()] == ["methods/mine/kind"]
    assert list(store.scoped("methods/other").artifacts()) == []


def test_the_working_folder_survives_until_the_artifact_is_there(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    work = store.working_folder("kind", SPEC)
    (work / "state").write_text("unfinished")
    assert (store.working_folder("kind", SPEC) / "state").read_text() == "unfinished"
    store.get_or_create("kind", SPEC, build)
    assert not work.exists()


def test_nothing_is_pickled(tmp_path: Path) -> None:
    artifact = ArtifactStore(tmp_path).get_or_create("kind", SPEC, build)
    assert sorted(file.name for file in artifact.folder.iterdir()) == [
        "manifest.json",
        "notes.json",
        "numbers.safetensors",
        "spec.json",
    ]
    assert json.loads((artifact.folder / "spec.json").read_text())["what"] == "numbers"


def test_a_store_remembers_what_was_used_through_it(tmp_path: Path) -> None:
    ArtifactStore(tmp_path).get_or_create("kind", {"n": 1}, build)
    store = ArtifactStore(tmp_path)
    assert store.used == {}
    made = store.get_or_create("kind", {"n": 2}, build)
    found = store.find("kind", {"n": 1})
    assert found is not None
    assert store.used == {f"kind/{made.key}": made.num_bytes, f"kind/{found.key}": found.num_bytes}
    assert made.num_bytes == sum(file.stat().st_size for file in made.folder.iterdir())


def test_folders_of_a_kind_are_counted(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.count("numbers") == 0
    for number in range(3):
        store.get_or_create("numbers", {"n": number}, lambda staging: staging.save_json("n", 1))
    store.scoped("other").get_or_create("numbers", {"n": 0}, lambda staging: staging.save_json("n", 1))
    assert store.count("numbers") == 3
    assert store.scoped("other").count("numbers") == 1
