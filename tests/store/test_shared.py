from __future__ import annotations

from pathlib import Path

import pytest

from attribench.store.artifacts import ArtifactStore, Staging
from attribench.store.shared import SharedStore, added


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


def test_others_share_of_what_is_found_is_that_of_its_making_and_unknown_where_it_was_not_kept(tmp_path: Path) -> None:
    first = SharedStore(ArtifactStore(tmp_path))
    made = [first.get_or_create("thing", {"a": number}, build) for number in (1, 2)]
    assert all(artifact.info["others_seconds"] >= 0 for artifact in made)

    second = SharedStore(ArtifactStore(tmp_path))
    with second.watch() as found:
        for number in (1, 2):
            second.get_or_create("thing", {"a": number}, build)
    kept = [second.store.find("thing", {"a": number}) for number in (1, 2)]
    assert found.others_seconds == sum(artifact.info["others_seconds"] for artifact in kept if artifact)
    assert added(1.0, 2.5) == 3.5
    assert added(1.0, None) is None
