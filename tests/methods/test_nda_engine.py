"""The fast NDA engines against float64: golden values, a brute force written from the definition, and themselves."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nda_reference import ALPHA_BAR, brute_force, error, noised
from numpy.typing import NDArray
from torch import Tensor

from attribench.errors import AttribenchError, DataError, UsageError
from attribench.methods.nda import patch_influence
from attribench.methods.nda.engine.compiled import Engine, PatchTask, patch_influence_fast, warm_up
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.partial import PartialInfluence, finish, merge
from attribench.methods.nda.engine.stream import StreamState, score_tasks
from attribench.methods.nda.engine.torch_engine import TorchEngine
from attribench.methods.nda.evidence import evidence

GOLDEN = np.load(Path(__file__).parent / "data" / "nda_reference.npz")


def golden_tasks(case: int, low: bool) -> tuple[list[PatchTask], NDArray[np.float64]]:
    timestep, size, low_size, k, _ = (int(number) for number in GOLDEN[f"case{case}_params"])
    noise = torch.from_numpy(GOLDEN[f"case{case}_noise"])
    queries = torch.from_numpy(GOLDEN["test_uint8"]).double() / 127.5 - 1
    alpha_bar = ALPHA_BAR[timestep].item()
    tasks = [
        PatchTask(noised(query, noise, timestep), alpha_bar, low_size if low else size, k, 2 if low else 1)
        for query in queries
    ]
    return tasks, GOLDEN[f"case{case}_{'down' if low else 'single'}_float64"]


def golden_train() -> Tensor:
    return torch.from_numpy(GOLDEN["train_uint8"])


def random_task(
    seed: int, shape: tuple[int, int, int], num: int, timestep: int, size: int, k: int, low: bool
) -> tuple[PatchTask, Tensor]:
    """A query near one of the train images, which are smooth, partly equal, and not multiples of the lanes."""
    generator = torch.Generator().manual_seed(seed)
    train = torch.rand(num, *shape, generator=generator) * 2 - 1
    train[num // 2 :] = train[num // 2 :].mean((2, 3), keepdim=True)
    query = (train[0] + 0.1 * torch.randn(shape, generator=generator)).clamp(-1, 1)
    noise = torch.randn(shape, generator=generator)
    task = PatchTask(noised(query, noise, timestep), ALPHA_BAR[timestep].item(), size, k, 2 if low else 1)
    return task, train


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("case", range(8))
def test_golden_values(case: int, low: bool) -> None:
    tasks, truth = golden_tasks(case, low)
    layout = TrainLayout(golden_train())
    largest = truth.max()
    for task, expected in zip(tasks, truth, strict=True):
        assert np.abs(finish(Engine().partial(task, layout)).numpy() - expected).max() < 5e-6 * largest
    scores = finish(TorchEngine().partial(tasks[case % 3], layout))
    assert np.abs(scores.numpy() - truth[case % 3]).max() < 5e-6 * largest


@st.composite
def problems(draw: st.DrawFn) -> tuple[PatchTask, Tensor]:
    low = draw(st.booleans())
    size = draw(st.integers(1, 6)) * 2 if low else draw(st.integers(1, 12))
    least = 2 if size % 2 == 0 else 1
    shape = (draw(st.integers(1, 4)), draw(st.integers(least, 11)), draw(st.integers(least, 11)))
    k = draw(st.integers(1, 130))
    timestep = draw(st.sampled_from([0, 1, 10, 50, 100, 300, 500, 999]))
    return random_task(draw(st.integers(0, 2**20)), shape, draw(st.integers(1, 37)), timestep, size, k, low)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems())
@example(random_task(0, (1, 1, 1), 1, 100, 1, 1, False))
@example(random_task(1, (1, 1, 1), 5, 100, 9, 3, False))
@example(random_task(2, (3, 2, 2), 17, 300, 2, 1, True))
@example(random_task(3, (2, 3, 11), 33, 500, 12, 5, True))
def test_brute_force(problem: tuple[PatchTask, Tensor]) -> None:
    task, train = problem
    truth = brute_force(task, train)
    layout = TrainLayout(train)
    assert error(finish(Engine(1).partial(task, layout)), truth) < 1e-4
    assert error(finish(TorchEngine().partial(task, layout)), truth) < 1e-4


@pytest.mark.parametrize(
    ("shape", "size", "low"),
    [((3, 40, 24), 5, False), ((1, 64, 64), 21, False), ((3, 64, 64), 7, False), ((1, 33, 70), 22, True)],
)
def test_larger_images_use_fewer_lanes(shape: tuple[int, int, int], size: int, low: bool) -> None:
    task, train = random_task(4, shape, 6, 300, size, 20, low)
    truth = patch_influence(task.noisy_query, train.double(), task.alpha_bar, size, 20, task.downsample)
    assert error(finish(Engine().partial(task, TrainLayout(train))), truth) < 1e-5


def test_same_as_convolution_in_values_and_types() -> None:
    task, train = random_task(5, (3, 12, 12), 20, 200, 5, 9, False)
    arguments = (task.alpha_bar, task.patch_size, task.top_k, task.downsample)
    for dtype in (torch.float32, torch.float64):
        query = task.noisy_query.to(dtype)
        scores = patch_influence_fast(query, train.to(dtype), *arguments)
        expected = patch_influence(query, train.to(dtype), *arguments)
        assert scores.dtype == expected.dtype == dtype
        assert error(scores, expected.double()) < 2e-6


def test_ties_at_the_kth_weight() -> None:
    """Flat images: all candidates of an image weigh the same, and k of them count."""
    train = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 8, 8).contiguous()
    task = PatchTask(noised(train[2], torch.zeros(1, 8, 8), 300), ALPHA_BAR[300].item(), 3, 7)
    assert error(finish(Engine().partial(task, TrainLayout(train))), brute_force(task, train)) < 1e-6


def test_all_positions_count() -> None:
    task, train = random_task(6, (2, 9, 7), 19, 400, 3, 63, False)
    total = finish(Engine().partial(task, TrainLayout(train))).sum().item()
    assert total == pytest.approx(task.num_positions, rel=1e-6)


@pytest.mark.parametrize("timestep", [0, 100, 500])
def test_threads_shards_and_order_do_not_matter(timestep: int) -> None:
    task, train = random_task(7, (3, 16, 16), 300, timestep, 5, 30, False)
    whole = finish(Engine(1).partial(task, TrainLayout(train)))
    assert error(finish(Engine(2).partial(task, TrainLayout(train))), whole) < 1e-5
    engine = Engine(3)
    bounds = [0, 1, 70, 71, 160, 300]
    parts = [engine.partial(task, TrainLayout(train[a:b]), a) for a, b in itertools.pairwise(bounds)]
    assert error(finish(merge(parts)), whole) < 1e-5
    assert error(finish(merge(parts[::-1])), whole) < 1e-5
    known = [parts[2].normaliser]
    hinted = engine.partials([task], TrainLayout(train[:70]), 0, known)[0]
    assert error(finish(merge([hinted, *parts[2:]])), whole) < 1e-5


def test_merging_is_associative_and_survives_storage() -> None:
    task, train = random_task(8, (1, 10, 10), 90, 100, 4, 5, True)
    a, b, c = (Engine(1).partial(task, TrainLayout(train[i : i + 30]), i) for i in (0, 30, 60))
    left, right = finish(merge([merge([a, b]), c])), finish(merge([a, merge([c, b])]))
    assert error(left, right) < 1e-6
    stored = PartialInfluence.from_arrays(merge([a, c]).arrays())
    assert torch.equal(finish(merge([stored, b])), finish(merge([merge([a, c]), b])))
    alone = finish(PartialInfluence.from_arrays(b.arrays()))
    assert torch.equal(alone, finish(b))


def test_merging_refuses_what_does_not_belong_together() -> None:
    task, train = random_task(9, (1, 8, 8), 10, 100, 3, 5, False)
    other, _ = random_task(9, (1, 8, 8), 10, 100, 4, 5, False)
    engine, layout = Engine(1), TrainLayout(train)
    part = engine.partial(task, layout)
    with pytest.raises(DataError, match="No partial"):
        merge([])
    with pytest.raises(DataError, match="more than one"):
        merge([part, part])
    with pytest.raises(DataError, match="different patch sizes"):
        merge([part, engine.partial(other, layout, 10)])


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("size", [2, 6, 22])
def test_evidence_adds_up_to_the_score(size: int, low: bool) -> None:
    task, train = random_task(10, (3, 14, 12), 25, 200, size, 6, low)
    partial = Engine().partial(task, TrainLayout(train))
    scores = finish(partial)
    chosen = [0, 3, 24]
    for index, shown in zip(chosen, evidence(task, train[chosen], partial.normaliser), strict=True):
        assert shown.given.shape == shown.received.shape == task.geometry.grid
        # The engine's logits, of a few hundred, are rounded to float32, and its totals with them; the evidence's are not.
        assert abs(shown.score - scores[index]) < 5e-5 * scores.max()
        assert shown.received.sum().item() == pytest.approx(shown.score.item(), rel=1e-9)
        assert shown.given.max() <= 1 + 5e-5


def stream_tasks() -> tuple[list[PatchTask], Tensor]:
    tasks = [task for low in (False, True) for task in golden_tasks(1, low)[0][:2]]
    return tasks, golden_train()


@pytest.mark.parametrize("memory_limit", [1, 500_000, 2**28])
def test_streaming(memory_limit: int, tmp_path: Path) -> None:
    """One batch of tasks, several, or two passes: the same scores, also from a file; all pairs are reported."""
    tasks, train = stream_tasks()
    expected = torch.stack([finish(Engine(1).partial(task, TrainLayout(train))) for task in tasks])
    np.save(tmp_path / "train.npy", train.numpy())
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    pairs: list[float] = []
    scores = score_tasks(Engine(), tasks, mapped, shard_size=17, memory_limit=memory_limit, progress=pairs.append)
    assert error(scores, expected) < 1e-5
    assert sum(pairs) == len(tasks) * len(train)


class Interrupted(TorchEngine):
    """Fails on its third shard."""

    calls = 0

    def _partial(self, task: PatchTask, train: TrainLayout, start: int, sums: bool) -> PartialInfluence:
        self.calls += 1
        if self.calls == 9:
            raise KeyboardInterrupt
        return super()._partial(task, train, start, sums)


@pytest.mark.slow
@pytest.mark.parametrize("memory_limit", [1, 500_000, 2**28])
def test_an_interrupted_stream_goes_on(memory_limit: int, tmp_path: Path) -> None:
    tasks, train = stream_tasks()
    state = StreamState(np.zeros((len(tasks), len(train))))
    with pytest.raises(KeyboardInterrupt):
        score_tasks(Interrupted(), tasks, train, shard_size=10, memory_limit=memory_limit, state=state)
    np.savez(tmp_path / "state.npz", **state.arrays())  # type: ignore[arg-type]
    with np.load(tmp_path / "state.npz") as arrays:
        resumed = StreamState.from_arrays(arrays)
    pairs: list[float] = []
    scores = score_tasks(
        TorchEngine(), tasks, train, shard_size=10, memory_limit=memory_limit, progress=pairs.append, state=resumed
    )
    assert 0 < sum(pairs) < len(tasks) * len(train)
    assert error(scores, score_tasks(TorchEngine(), tasks, train)) < 1e-6


def test_a_state_of_other_data_is_refused() -> None:
    tasks, train = stream_tasks()
    with pytest.raises(DataError, match="state"):
        score_tasks(Engine(), tasks, train, state=StreamState(np.zeros((1, 2))))


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"top_k": 0}, UsageError),
        ({"alpha_bar": 1.0}, UsageError),
        ({"patch_size": 0}, UsageError),
        ({"patch_size": 3, "downsample": 2}, UsageError),
        ({"noisy_query": torch.zeros(1, 8, 7)}, DataError),
        ({"noisy_query": torch.full((1, 8, 8), torch.nan)}, DataError),
    ],
)
@pytest.mark.parametrize("engine", [Engine(1), TorchEngine()])
def test_wrong_calls(change: dict[str, object], failure: type[AttribenchError], engine: Engine | TorchEngine) -> None:
    options: dict[str, object] = {"noisy_query": torch.zeros(1, 8, 8), "alpha_bar": 0.5, "patch_size": 4, "top_k": 1}
    with pytest.raises(failure):
        engine.partial(PatchTask(**(options | change)), TrainLayout(torch.zeros(2, 1, 8, 8)))  # type: ignore[arg-type]


def test_a_stream_refuses_a_query_of_another_shape() -> None:
    _, train = stream_tasks()
    with pytest.raises(DataError, match="one shape"):
        score_tasks(Engine(1), [PatchTask(torch.zeros(8, 8), 0.5, 4, 1)], train)


def test_no_patch_fits() -> None:
    with pytest.raises(DataError, match="No patch"):
        patch_influence_fast(torch.zeros(1, 1, 1), torch.zeros(2, 1, 1, 1), 0.5, 2, 1)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(0, 1, 4, 4),
        torch.zeros(4, 4),
        torch.zeros(1, 1, 4, 4, dtype=torch.int64),
        torch.full((1, 1, 4, 4), torch.inf),
    ],
)
def test_what_is_not_images_is_refused(images: Tensor) -> None:
    with pytest.raises(DataError):
        TrainLayout(images)


def test_warm_up_reports_seconds() -> None:
    assert warm_up() >= 0.0


def test_repeats_bit_for_bit_whatever_the_threads_did_before() -> None:
    task, train = random_task(5, (1, 9, 9), 150, 100, 3, 4, False)
    again, _ = random_task(6, (1, 9, 9), 150, 300, 3, 2, False)
    layout, engine = TrainLayout(train), Engine(2)
    first = finish(engine.partial(task, layout))
    engine.partial(again, layout)
    for threads in (1, 2, 3):
        assert torch.equal(finish(Engine(threads).partial(task, layout)), first)
    assert torch.equal(finish(engine.partial(task, layout)), first)
