"""Equal train images get equal scores, to the bit: whatever the engine, and wherever they stand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from nda_reference import brute_force, error, noised
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.method import score, start
from attribench.methods.nda import NDA, patch_influence
from attribench.methods.nda.engine.compiled import Engine, patch_influence_fast
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import finish, merge
from attribench.methods.nda.engine.stream import score_tasks
from attribench.methods.nda.engine.torch_engine import TorchEngine
from attribench.methods.nda.task import PatchTask
from attribench.metrics.lds import undefined_queries
from attribench.store.artifacts import ArtifactStore

ALPHA_BAR = NoiseSchedule().alpha_bar.double()
COPIES = 41


def scattered(
    seed: int, shape: tuple[int, int, int], num: int, timestep: int, size: int, top_k: int, low: bool
) -> tuple[PatchTask, Tensor, list[int]]:
    """A query, uint8 train images, and where among these one image comes again and again."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, shape[0], 4, 4, generator=generator) * 255
    train = torch.nn.functional.interpolate(coarse, shape[1:]).round().to(torch.uint8)
    places = torch.randperm(num, generator=generator)[: min(COPIES, num)]
    train[places] = train[places[0]].clone()
    query = train[places[0]] / 127.5 - 1 + 0.2 * torch.randn(shape, generator=generator)
    noisy = noised(query, torch.randn(shape, generator=generator), timestep)
    return PatchTask(noisy, ALPHA_BAR[timestep].item(), size, top_k, 2 if low else 1), train, sorted(places.tolist())


def assert_equal_there(scores: Tensor, places: Sequence[int]) -> None:
    assert len(scores[list(places)].unique()) == 1


@pytest.mark.parametrize("influence", [patch_influence, patch_influence_fast])
@pytest.mark.parametrize(("size", "top_k"), [(3, 1), (5, 20), (5, 10**6), (11, 4)])
def test_copies_alone(influence: object, size: int, top_k: int) -> None:
    assert callable(influence)
    task, train, places = scattered(size, (2, 8, 8), COPIES, 300, size, top_k, False)
    scores = influence(task.noisy_query, train / 127.5 - 1, task.alpha_bar, size, top_k)
    assert_equal_there(scores, places)
    assert error(scores, brute_force(task, train / 127.5 - 1)) < 1e-5


def test_lds_on_copies_is_undefined() -> None:
    task, train, _ = scattered(0, (1, 8, 8), COPIES, 300, 3, 5, False)
    subsets = torch.rand(16, COPIES, generator=torch.Generator().manual_seed(0)).argsort(1) < COPIES // 2
    for influence in (patch_influence, patch_influence_fast):
        scores = influence(task.noisy_query, train / 127.5 - 1, task.alpha_bar, 3, 5)
        assert undefined_queries(scores[None], subsets, torch.arange(16.0)[:, None]).all()


CASES = [
    # shape, train images, timestep, patch size, top k, low resolution
    ((3, 16, 16), 97, 100, 5, 30, False),
    ((3, 16, 16), 61, 500, 6, 10, True),
    ((1, 12, 9), 83, 50, 12, 3, False),  # all patches hang over an edge
    ((2, 40, 24), 43, 300, 9, 100, False),  # fewer lanes than a vector has
    ((1, 14, 14), 70, 999, 3, 1, False),
    ((1, 14, 14), 70, 0, 3, 1000, False),  # sharp weights: float64
    ((1, 36, 36), 42, 500, 3, 1100, False),  # float64 for the sake of top-k
]


@pytest.mark.parametrize("case", CASES)
def test_copies_among_others(case: tuple[tuple[int, int, int], int, int, int, int, bool]) -> None:
    """In lanes, groups and units of threads, in shards of any size and order, with and without a good match known."""
    task, train, places = scattered(1, *case)
    whole = finish(Engine(1).partial(task, TrainLayout(train)))
    assert_equal_there(whole, places)
    assert torch.equal(finish(Engine(2).partial(task, TrainLayout(train))), whole)
    bounds = [0, 1, 18, 36, len(train)]
    for engine in (Engine(2), TorchEngine(memory_limit=2**22)) if task.num_positions < 1000 else (Engine(2),):
        parts = [engine.partial(task, TrainLayout(train[a:b]), a) for a, b in itertools.pairwise(bounds)]
        known = parts[2].normaliser
        parts[3] = engine.partial(task, TrainLayout(train[36:]), 36, known)
        assert_equal_there(finish(merge(parts[::-1])), places)
    if task.num_positions < 200:
        assert error(whole, brute_force(task, train / 127.5 - 1)) < 1e-5


def test_a_better_match_that_comes_late() -> None:
    """The first copy is weighed when nothing better is known, the last after an image that matches far better."""
    task, train, _ = scattered(2, (1, 10, 10), 30, 100, 3, 4, False)
    train[:] = train[0]
    train[15:20] = ((task.noisy_query.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
    for engine in (Engine(1), TorchEngine()):
        parts = [engine.partial(task, TrainLayout(train[i : i + 1]), i) for i in range(30)]
        assert_equal_there(finish(merge(parts)), [*range(15), *range(20, 30)])
        assert_equal_there(finish(engine.partial(task, TrainLayout(train))), [*range(15), *range(20, 30)])


@pytest.mark.parametrize("memory_limit", [1, 2**28])
def test_copies_in_a_stream(memory_limit: int) -> None:
    task, train, places = scattered(3, (3, 12, 12), 90, 200, 5, 10, False)
    scores = score_tasks(Engine(2), [task, task], train, shard_size=13, memory_limit=memory_limit)
    for row in scores:
        assert_equal_there(row, places)


@pytest.mark.parametrize("memory_limit", [1, 100_000, 2**28])
def test_convolution_counts_copies_as_often_as_they_come(memory_limit: int) -> None:
    task, train, places = scattered(4, (2, 8, 8), 50, 300, 3, 6, False)
    images = train / 127.5 - 1
    images[places[0]][images[places[0]] == 0] = -0.0
    scores = patch_influence(task.noisy_query, images, task.alpha_bar, 3, 6, memory_limit=memory_limit)
    assert_equal_there(scores, places)
    assert error(scores, brute_force(task, images)) < 1e-5


@pytest.mark.parametrize("engine", ["fast", "convolution"])
def test_the_method_scores_copies_alike(engine: Literal["fast", "convolution"], tmp_path: Path) -> None:
    _, train, places = scattered(5, (1, 8, 8), 67, 100, 3, 1, False)
    method = NDA([100, 300], 3, 4, top_k=5, engine=engine)
    ids = tuple(map(str, range(67)))
    start(
        method,
        AttributionContext(
            ImageSet(train, ids), NoiseSchedule(), torch.device("cpu"), 1, ArtifactStore(tmp_path), Access.DATA
        ),
    )
    for row in score(method, Queries(train[:2], ("a", "b"))):
        assert_equal_there(row, places)
