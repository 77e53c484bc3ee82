from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attribench.store.artifacts import Artifact, ArtifactStore, Staging
from attribench.store.parcels import DamagedParcelError, Outbox, adopt, pack, restore_unfinished, unfinished

SPEC = {"a": 1}


def build(staging: Staging) -> None:
    staging.save_tensors("rows", {"rows": torch.arange(6.0)})
    staging.save_json("names", ["a", "b"])
    staging.save_bytes("empty.bin", b"")


@pytest.fixture
def sent(tmp_path: Path) -> Artifact:
    return ArtifactStore(tmp_path / "there").scoped("methods/mine").get_or_create("kind", SPEC, build)


def test_what_arrives_is_what_was_sent(tmp_path: Path, sent: Artifact) -> None:
    parcel = pack(sent)
    assert parcel.num_bytes == sent.num_bytes
    store = ArtifactStore(tmp_path / "here")
    for _ in range(2):  # again: it is there already
        arrived = adopt(store, parcel)
        assert (arrived.kind, arrived.key, arrived.digest, arrived.info) == (
            sent.kind,
            sent.key,
            sent.digest,
            sent.info,
        )
    found = ArtifactStore(tmp_path / "here").scoped("methods/mine").find("kind", SPEC)
    assert found is not None
    assert torch.equal(found.load_tensors("rows")["rows"], torch.arange(6.0))
    assert [file.name for file in (tmp_path / "here/methods/mine/kind").iterdir()] == [sent.key]


@pytest.mark.parametrize("name", ["rows.safetensors", "names.json", "manifest.json", "spec.json"])
@pytest.mark.parametrize("how", ["flipped", "short", "missing"])
def test_a_damaged_file_is_refused_and_nothing_appears(tmp_path: Path, sent: Artifact, name: str, how: str) -> None:
    parcel = pack(sent)
    files = dict(parcel.files)
    content = files.pop(name).copy()
    if how == "flipped":
        content[len(content) // 2] ^= 4
    if how != "missing":
        files[name] = content[:-1] if how == "short" else content
    store = ArtifactStore(tmp_path / "here")
    with pytest.raises(DamagedParcelError, match="damaged on its way"):
        adopt(store, replace(parcel, files=files))
    assert not list((tmp_path / "here/methods/mine/kind").iterdir())
    assert adopt(store, parcel).digest == sent.digest


def test_what_its_label_does_not_say_is_refused(tmp_path: Path, sent: Artifact) -> None:
    parcel, store = pack(sent), ArtifactStore(tmp_path / "here")
    more = {**parcel.files, "more.bin": np.zeros(3, np.uint8)}
    others = (
        replace(parcel, key="0" * 32),
        replace(parcel, kind="../kind"),
        replace(parcel, files={**parcel.files, "../outside": np.zeros(3, np.uint8)}),
        replace(parcel, files=more),
    )
    for other in others:
        with pytest.raises(DamagedParcelError):
            adopt(store, other)
    assert not list(tmp_path.rglob("outside*"))
    assert not list(store.artifacts())


def test_unfinished_work_is_sent_when_it_has_changed(tmp_path: Path) -> None:
    there, here = ArtifactStore(tmp_path / "there"), ArtifactStore(tmp_path / "here")
    outbox = Outbox(lambda: there.working_folder("kind", SPEC), "state")
    assert outbox.news() == {}
    folder = there.working_folder("kind", SPEC)
    (folder / "kept").write_bytes(b"123")
    (folder / "state.tmp").write_bytes(b"being written")
    assert outbox.news() == {}
    (folder / "state").write_bytes(b"first")
    news = outbox.news()
    assert {name: content.tobytes() for name, content in news.items()} == {"kept": b"123", "state": b"first"}
    assert outbox.news() == {}
    (folder / "new").write_bytes(b"second")
    (folder / "new").replace(folder / "state")
    assert outbox.news()["state"].tobytes() == b"second"
    restore_unfinished(here, "kind", SPEC, news)
    assert {name: content.tobytes() for name, content in unfinished(here, "kind", SPEC).items()} == {
        "kept": b"123",
        "state": b"first",
    }
