"""Scores that were interrupted go on from the last finished shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.computing.cost import measure
from attribench.diffusion.noise import NoiseSchedule
from attribench.method import score, start
from attribench.methods.nda import NDA
from attribench.methods.nda.engine import stream
from attribench.methods.nda.engine.compiled import Engine
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import Normaliser, PartialInfluence
from attribench.methods.nda.saved import SavedState
from attribench.methods.nda.task import PatchTask
from attribench.store.artifacts import ArtifactStore

NUM_TRAIN, SHARD = 50, 10


def image_set(count: int, name: str) -> ImageSet:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{name}-{i}" for i in range(count)))


def prepared(store: Path) -> NDA:
    method = NDA(timesteps=[100, 300], patch_size=3, low_resolution_patch_size=4, top_k=5)
    context = AttributionContext(
        train=image_set(NUM_TRAIN, "train"),
        schedule=NoiseSchedule(),
        device=torch.device("cpu"),
        seed=1,
        store=ArtifactStore(store),
        access=Access.DATA,
    )
    start(method, context)
    return method


def queries() -> Queries:
    return Queries.of(image_set(2, "query"), "queries")


class Shards:
    """Counts the shards that engines compute, and presses Ctrl-C in the middle of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> None:
        self.starts: list[int] = []
        self.interrupt_at = interrupt_at
        original = Engine.partials

        def partials(
            engine: Engine,
            tasks: Sequence[PatchTask],
            train: TrainLayout,
            start: int = 0,
            known: Sequence[Normaliser] | None = None,
        ) -> list[PartialInfluence]:
            if len(train) > 1:  # not the engine's own warming up
                if len(self.starts) == self.interrupt_at:
                    raise KeyboardInterrupt
                self.starts.append(start)
            return original(engine, tasks, train, start, known)

        monkeypatch.setattr(Engine, "partials", partials)
        monkeypatch.setattr(
            stream.score_tasks, "__kwdefaults__", {**stream.score_tasks.__kwdefaults__, "shard_size": SHARD}
        )


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        Shards(patch)
        return score(prepared(tmp_path / "whole"), queries())


def test_an_interrupted_method_loses_only_the_shard_in_progress(
    expected: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(monkeypatch, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        score(prepared(tmp_path / "store"), queries())
    assert shards.starts == [0, 10, 20]
    shards.interrupt_at = None
    scores = score(prepared(tmp_path / "store"), queries())
    assert shards.starts == [0, 10, 20, 30, 40]
    assert torch.equal(scores, expected)
    assert not list((tmp_path / "store").rglob("*.safetensors"))  # nothing is left behind


def test_a_state_saved_in_passing_serves_after_a_kill(
    expected: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attribench.methods.nda.saved.INTERVAL", 0.0)
    monkeypatch.setattr(SavedState, "save", _dies_after(2))
    shards = Shards(monkeypatch)
    with pytest.raises(_Killed):
        score(prepared(tmp_path / "store"), queries())
    done = len(shards.starts)
    assert done == 3  # the third one was not saved
    monkeypatch.undo()
    again = Shards(monkeypatch)
    scores = score(prepared(tmp_path / "store"), queries())
    assert again.starts == [20, 30, 40]
    assert torch.equal(scores, expected)


class _Killed(BaseException):
    pass


def _dies_after(saves: int):  # type: ignore[no-untyped-def]
    """A process that is killed also does not save on its way out."""
    original, count = SavedState.save, 0

    def save(self: SavedState, state: stream.StreamState) -> None:
        nonlocal count
        count += 1
        if count > saves:
            raise _Killed
        original(self, state)

    return save


def test_a_damaged_state_is_not_used(expected: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(monkeypatch, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        score(prepared(tmp_path / "store"), queries())
    (file,) = (tmp_path / "store").rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    shards.interrupt_at = None
    scores = score(prepared(tmp_path / "store"), queries())
    assert shards.starts == [0, 10, 20, 0, 10, 20, 30, 40]
    assert torch.equal(scores, expected)


def test_a_state_of_other_queries_or_images_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(monkeypatch, interrupt_at=3)
    with pytest.raises(KeyboardInterrupt):
        score(prepared(tmp_path / "store"), queries())
    shards.interrupt_at = None
    score(prepared(tmp_path / "store"), Queries.of(image_set(3, "query"), "queries"))
    assert shards.starts == [0, 10, 20, 0, 10, 20, 30, 40]


@pytest.mark.parametrize("interruptions", [1, 2])
def test_what_interrupted_calls_spent_is_part_of_the_cost(
    interruptions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("attribench.methods.nda.saved.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("attribench.computing.cost.time", SimpleNamespace(perf_counter=lambda: now[0]))
    shards = Shards(monkeypatch)
    counted = Engine.partials

    def slow(engine: Engine, *args: Any) -> list[PartialInfluence]:
        found = counted(engine, *args)
        now[0] += 10.0
        return found

    method = prepared(tmp_path / "store")  # compiles, before anything takes time
    monkeypatch.setattr(Engine, "partials", slow)
    for number in range(interruptions):
        shards.interrupt_at = 1 + number
        with pytest.raises(KeyboardInterrupt), measure(torch.device("cpu")):
            score(method, queries())
        now[0] += 1000.0  # until it is called again
    shards.interrupt_at = None
    with measure(torch.device("cpu")) as cost:
        score(method, queries())
    assert shards.starts == [0, 10, 20, 30, 40]
    assert cost.seconds == 50.0, "of the five shards, whichever call computed them"


def test_a_state_without_mirror_images_is_not_one_with_them(tmp_path: Path) -> None:
    store, train = ArtifactStore(tmp_path), image_set(5, "train")
    plain, mirrored = (SavedState.of(store, [], train, flips=flips) for flips in (False, True))
    plain.save(stream.StreamState(np.ones((1, 5))))
    assert mirrored.load() is None
    again = SavedState.of(store, [], train).load()
    assert again is not None
    assert again.scores.tolist() == [[1.0] * 5]
