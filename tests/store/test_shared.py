from __future__ import annotations

from pathlib import Path

import pytest

from attribench.store.artifacts import ArtifactStore, Staging
from attribench.store.shared import SharedStore


def build(staging: Staging) -> None:
    staging.save_json("payload", 1)
    staging.note(peak_bytes=77)


def test_what_is_found_costs_what_it_took_to_make_and_what_is_made_does_not(tmp_path: Path) -> None:
    first = SharedStore(ArtifactStore(tmp_path))
    with first.watch() as made:
        artifact = first.get_or_create("thing", {"a": 1}, build)
    assert made.seconds == 0
    assert made.stored == {f"thing/{artifact.key}": artifact.num_bytes}

    second = SharedStore(ArtifactStore(tmp_path))
    with second.watch() as outer:
        with second.watch() as found:
            second.get_or_create("thing", {"a": 1}, build)
            second.get_or_create("thing", {"a": 1}, build)
        with second.watch() as again:
            second.get_or_create("thing", {"a": 1}, build)
    assert found.seconds == outer.seconds == artifact.info["seconds"]
    assert again.seconds == 0  # paid for already
    assert found.stored == again.stored == made.stored
    assert found.peak_bytes == 77


def test_notes_are_no_part_of_the_digest(tmp_path: Path) -> None:
    def silent(staging: Staging) -> None:
        staging.save_json("payload", 1)

    store = ArtifactStore(tmp_path)
    noted, plain = store.get_or_create("a", {}, build), store.get_or_create("b", {}, silent)
    assert noted.digest == plain.digest
    assert noted.info["peak_bytes"] == 77
    assert "peak_bytes" not in plain.info


def test_a_watch_ends_with_its_block(tmp_path: Path) -> None:
    shared = SharedStore(ArtifactStore(tmp_path))
    with pytest.raises(KeyError), shared.watch() as usage:
        raise KeyError
    shared.get_or_create("thing", {}, build)
    assert not usage.stored
