"""NDA over groups of train images gives the scores of one process, bit for bit."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ray_jobs import FakeTask
from torch import Tensor

from attribench.computing.progress import Progress, silent_progress
from attribench.data import ImageSet
from attribench.diffusion.noise import NoiseSchedule
from attribench.method import Access, AttributionContext, Queries, score, start
from attribench.methods.nda import NDA
from attribench.methods.nda.distributed import DistributedScorer
from attribench.methods.nda.engine import stream
from attribench.methods.nda.scorers import make_engine
from attribench.methods.nda.task import PatchTask
from attribench.settings import Runtime
from attribench.store.artifacts import Artifact, ArtifactStore
from attribench.store.parts import Distribute, Part
from attribench.truth.executors import InProcessExecutor
from attribench.truth.part_jobs import PartJob

SHARD = 8


def images(count: int, seed: int = 0, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def tasks() -> list[PatchTask]:
    generator = torch.Generator().manual_seed(9)
    kinds = [(0.95, 3, 1, 5), (0.4, 5, 1, 2), (0.7, 4, 2, 100)]
    return [PatchTask(torch.randn(3, 8, 8, generator=generator), *kind[:2], kind[3], kind[2]) for kind in kinds]


def distribute(store: ArtifactStore) -> Distribute:
    """Every part as another process would get it, the last ones first."""

    def done(parts: Sequence[Part], description: str) -> list[Artifact]:
        jobs = [PartJob(pickle.loads(pickle.dumps(part))) for part in parts]
        runtime = Runtime(workdir=str(store.root), accelerator="cpu")
        bar = FakeTask()
        InProcessExecutor(ArtifactStore(store.root), runtime, Progress()).run(jobs[::-1], bar)
        assert bar.done == pytest.approx(sum(job.cost for job in jobs))
        return [artifact for job in jobs if (artifact := job.find(store)) is not None]

    return done


@pytest.fixture
def read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if so few train images were many."""
    monkeypatch.setattr(stream, "_READ_ONCE", 10)


# Less than a shard, a shard, a group and a bit of the next, several groups with a rest.
@pytest.mark.parametrize("count", [3, SHARD, 16 * SHARD + 1, 40 * SHARD + 3])
@pytest.mark.usefixtures("read_twice")
def test_scores_are_those_of_one_process(count: int, tmp_path: Path) -> None:
    train, engine = images(count), make_engine(torch.device("cpu"))
    expected = stream.score_tasks(engine, tasks(), train, shard_size=SHARD, memory_limit=1)
    store = ArtifactStore(tmp_path).scoped("methods/NDA")
    scorer = DistributedScorer(train, store, distribute(ArtifactStore(tmp_path)), torch.device("cpu"), SHARD)
    assert torch.equal(scorer(tasks()), expected)
    assert not [artifact for artifact in store.artifacts() if artifact.kind.endswith("groups")]
    # And of one pass up to rounding: what lies beyond any weight in float32 is dismissed earlier or later.
    stream.__dict__["_READ_ONCE"] = 2**16
    once = stream.score_tasks(engine, tasks(), train, shard_size=SHARD)
    assert torch.allclose(once, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("read_twice")
def test_the_first_of_two_passes_goes_on_where_it_was(tmp_path: Path) -> None:
    train, engine = images(20 * SHARD), make_engine(torch.device("cpu"))
    expected = stream.score_tasks(engine, tasks(), train, shard_size=SHARD)
    for number in (1, 7, 16, 17, 25):
        state = stream.StreamState(torch.zeros(3, len(train), dtype=torch.float64).numpy())
        left = [number]

        def stop(current: stream.StreamState, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stream.score_tasks(engine, tasks(), train, shard_size=SHARD, state=state, after_shard=stop)
        state = stream.StreamState.from_arrays(state.arrays())
        assert torch.equal(stream.score_tasks(engine, tasks(), train, shard_size=SHARD, state=state), expected)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.usefixtures("read_twice")
def test_the_method_distributes_where_it_may(flips: bool, tmp_path: Path) -> None:
    train = ImageSet(images(40), tuple(f"train-{i}" for i in range(40)))
    queries = Queries(images(3, seed=1), ("a", "b", "c"))
    found = []
    for name in ("alone", "distributed"):
        store = ArtifactStore(tmp_path / name)
        context = AttributionContext(
            train, NoiseSchedule(), torch.device("cpu"), 7, store.scoped("methods/NDA"), Access.DATA,
            progress=silent_progress, distribute=distribute(store) if name == "distributed" else None,
        )  # fmt: skip
        method = NDA([100, 400], [3, 5], [4, 6], top_k=3, flips=flips)
        start(method, context)
        found.append(score(method, queries))
        assert bool(list(store.artifacts())) == (name == "distributed"), "it keeps its images as parts read them"
    assert torch.equal(*found)


def test_few_train_images_are_scored_here(tmp_path: Path) -> None:
    assert not DistributedScorer.fits(images(40))
    assert stream.reads_twice(2**16 + 1)
