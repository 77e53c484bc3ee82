"""Influence in the local score machine against float64: the definition, with loops over images, positions and patches."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nda_reference import ALPHA_BAR
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.errors import AttribenchError, DataError, UsageError
from attribench.gradients import budget
from attribench.method import score, start
from attribench.methods.nda.engine.layout import TrainLayout
from attribench.methods.nda.engine.pixel_sums import CompiledSums, TorchSums
from attribench.methods.score_machine import ScoreMachine
from attribench.methods.score_machine.machine import CUTS, ORDERS, MachineTask, Order, candidate_mean
from attribench.methods.score_machine.search import search_machine
from attribench.methods.score_machine.stream import SumEngine, influences
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method


def brute_force(task: MachineTask, train: Tensor, order: Order, copies: int = 1) -> Tensor:
    """The definition: pad with 100, compare every patch with every one, denoise with each image there and gone."""
    size, radius = task.patch_size, (task.patch_size - 1) // 2
    _, height, width = task.noisy.shape
    places = list(itertools.product(range(height), range(width)))

    def patches(image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image.double(), [radius] * 4, value=100.0)
        return torch.stack([padded[:, y : y + size, x : x + size] for y, x in places])

    everyone = list(range(len(train)))
    pixels = train.double().flatten(2)
    result = torch.zeros(len(train) // copies, dtype=torch.float64)
    candidates = torch.stack([patches(math.sqrt(task.alpha_bar) * image.double()) for image in train])
    for query, (y, x) in zip(patches(task.noisy), places, strict=True):
        logits = -(query - candidates).square().sum((2, 3, 4)) / (2 * (1 - task.alpha_bar))  # (n, q)

        def weights_of(keep: list[int], logits: Tensor = logits) -> Tensor:
            return logits[keep].flatten().softmax(0).view(len(keep), -1)

        def denoised(keep: list[int]) -> Tensor:
            return torch.einsum("nq,ncq->c", weights_of(keep), pixels[keep])

        clean, answer = task.clean[:, y, x].double(), denoised(everyone)
        for n in range(len(result)):
            gone = range(n * copies, (n + 1) * copies)
            if order == "first":
                weights = weights_of(everyone)
                share = weights[list(gone)].sum()
                weighted = torch.stack([pixels[index] @ weights[index] for index in gone]).sum(0)
                result[n] += 2 * ((clean - answer) * (weighted - answer * share)).sum()
            else:
                without = denoised([index for index in everyone if index not in gone])
                result[n] += (clean - without).square().sum() - (clean - answer).square().sum()
    return result


def problem(seed: int, shape: tuple[int, int, int], num: int, timestep: int, size: int) -> tuple[MachineTask, Tensor]:
    """A query near one of the train images, which are smooth."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand(num, channels, height // 2 + 1, width // 2 + 1, generator=generator) * 2 - 1
    train = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    clean = (train[0] + 0.2 * torch.randn(shape, generator=generator)).clamp(-1, 1)
    alpha_bar = ALPHA_BAR[timestep].item()
    noisy = math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * torch.randn(shape, generator=generator)
    return MachineTask(clean, noisy, alpha_bar, size), train


def error(found: Tensor, truth: Tensor) -> float:
    """Relative to the largest score; where one image has all the weight, they are all next to nothing."""
    return ((found - truth).abs().max() / truth.abs().max().clamp(min=1e-6)).item()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**20), st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), st.integers(2, 6),
    st.sampled_from([20, 100, 300, 500, 900]), st.sampled_from([1, 3, 5, 7, 9]),
)  # fmt: skip
def test_first_order_equals_brute_force(
    seed: int, shape: tuple[int, int, int], num: int, timestep: int, size: int
) -> None:
    task, train = problem(seed, shape, num, timestep, size)
    truth = brute_force(task, train, "first")
    assert error(influences(CompiledSums(1), [task], train, "first")[0], truth) < 1e-4
    assert error(influences(TorchSums(), [task], train, "first")[0], truth) < 1e-4
    assert error(influences(TorchSums(), [task], train.double(), "first")[0], truth) < 1e-9


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**20), st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), st.integers(2, 6),
    st.sampled_from([300, 500, 900]), st.sampled_from([1, 3, 5, 7, 9]),
)  # fmt: skip
def test_leave_one_out_equals_brute_force(
    seed: int, shape: tuple[int, int, int], num: int, timestep: int, size: int
) -> None:
    task, train = problem(seed, shape, num, timestep, size)
    truth = brute_force(task, train, "leave-one-out")
    fast = CompiledSums(1, CUTS["leave-one-out"])
    assert error(influences(fast, [task], train, "leave-one-out")[0], truth) < 1e-4
    assert error(influences(TorchSums(), [task], train, "leave-one-out")[0], truth) < 1e-4
    assert error(influences(TorchSums(), [task], train.double(), "leave-one-out")[0], truth) < 1e-9


@pytest.mark.parametrize("other", [0.05, 0.1, 0.29])
def test_without_the_best_image_others_take_its_place_however_far_they_are(other: float) -> None:
    """One pixel: the other image's weight is 2^-2 to 2^-61 of the best one's, which float32 cannot tell from nothing."""
    alpha_bar, clean = 0.999, torch.full((1, 1, 1), 0.5)
    train = torch.tensor([0.5, 0.5 - other]).view(2, 1, 1, 1)
    task = MachineTask(clean, clean * math.sqrt(alpha_bar), alpha_bar, 1)
    truth = brute_force(task, train, "leave-one-out")
    assert truth[0].item() == pytest.approx(other**2, rel=0.5)
    for engine in (CompiledSums(1, CUTS["leave-one-out"]), TorchSums()):
        found = influences(engine, [task], train, "leave-one-out")[0]
        torch.testing.assert_close(found[0], truth[0], rtol=1e-4, atol=0)
        assert 0 <= (truth[1] - found[1]).abs() <= 1e-4 * truth[1].abs() + 1e-14


@pytest.mark.parametrize("num", [1, 2])
def test_without_the_only_image_that_knows_the_machine_answers_with_the_mean(num: int) -> None:
    alpha_bar, clean = 0.999, torch.full((1, 1, 1), 0.5)
    train = torch.tensor([0.75, -1.0])[:num].view(num, 1, 1, 1)
    task = MachineTask(clean, clean * math.sqrt(alpha_bar), alpha_bar, 1)
    for engine in (CompiledSums(1, CUTS["leave-one-out"]), TorchSums()):
        found = influences(engine, [task], train, "leave-one-out")[0]
        assert found[0].item() == pytest.approx((0.5 - train.mean().item()) ** 2 - 0.25**2, rel=1e-5)
        assert (found[1:].abs() < 1e-12).all()


def test_the_mean_is_of_what_a_position_may_match() -> None:
    train = torch.randint(0, 256, (5, 2, 6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean = (train.double() / 127.5 - 1).mean(0)
    found = torch.from_numpy(candidate_mean(train, 3)).view(2, 6, 4)
    torch.testing.assert_close(found[:, 0, 0], mean[:, 0, 0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[:, 2, 3], mean[:, 1:5, 3].mean(1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[:, 4, 1], mean[:, 1:5, 1:3].mean((1, 2)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(candidate_mean(train, 9), mean.flatten(1).numpy(), rtol=1e-6, atol=1e-7)


def larger(order: Order, num: int = 70, shape: tuple[int, int, int] = (3, 12, 11)) -> tuple[list[MachineTask], Tensor]:
    tasks = [
        problem(seed, shape, 2, timestep, size)[0]
        for seed, (timestep, size) in enumerate([(200, 5), (500, 5), (300, 9)])
    ]
    return tasks, problem(9, shape, num, 300, 3)[1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(3, 12, 11), (1, 44, 24)])
def test_engines_agree_on_larger_images(order: Order, shape: tuple[int, int, int]) -> None:
    """More images than lanes, or fewer lanes than a vector has."""
    tasks, train = larger(order, 10 if shape[1] > 12 else 70, shape)
    fast = influences(CompiledSums(2, CUTS[order]), tasks[1:2], train, order)
    for row, truth in zip(fast, influences(TorchSums(), tasks[1:2], train.double(), order), strict=True):
        assert error(row, truth) < 1e-4


@pytest.mark.parametrize("order", ORDERS)
def test_shards_memory_and_neighbours_do_not_matter(order: Order) -> None:
    tasks, train = larger(order)
    engine = CompiledSums(2, CUTS[order])
    whole = influences(engine, tasks, train, order)
    assert torch.equal(whole, influences(CompiledSums(1, CUTS[order]), tasks, train, order))  # threads
    assert torch.equal(whole[1], influences(engine, tasks[1:2], train, order)[0])
    for size, limit in ((37, 2**28), (64, 1)):
        pairs: list[float] = []
        found = influences(engine, tasks, train, order, shard_size=size, memory_limit=limit, progress=pairs.append)
        assert sum(pairs) == pytest.approx(len(tasks) * len(train))
        assert max(error(a, b) for a, b in zip(found, whole, strict=True)) < 1e-5


@pytest.mark.parametrize("order", ORDERS)
def test_copies_are_removed_together(order: Order) -> None:
    task, train = problem(3, (2, 5, 4), 6, 300, 3)
    both: list[SumEngine] = [CompiledSums(1, CUTS[order]), TorchSums(memory_limit=1)]
    for engine in both:
        assert error(influences(engine, [task], train, order, copies=2)[0], brute_force(task, train, order, 2)) < 1e-4


def test_sums_of_weights_are_ndas() -> None:
    task, train = problem(4, (1, 7, 7), 20, 300, 3)
    partial = CompiledSums(1).partial(task.patches, TrainLayout(train))
    shares = partial.blocks[0].sums[:, 0] * np.exp2(partial.blocks[0].peak - partial.normaliser.log_total)
    np.testing.assert_allclose(shares.sum(0), 1.0, rtol=1e-6)


def test_a_query_of_another_shape_is_refused() -> None:
    task, train = problem(5, (1, 5, 5), 3, 300, 3)
    with pytest.raises(DataError, match="one shape"):
        influences(CompiledSums(1), [task], train[..., :4], "first")


# --- the method ---


def images(count: int, seed: int) -> tuple[Tensor, tuple[str, ...]]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 6, 5), generator=generator, dtype=torch.uint8)
    return pixels, tuple(f"{seed}-{i}" for i in range(count))


def prepared(method: ScoreMachine, tmp_path: Path, seed: int = 42) -> ScoreMachine:
    train = ImageSet(*images(5, 1))
    store = ArtifactStore(tmp_path)
    start(method, AttributionContext(train, NoiseSchedule(), torch.device("cpu"), seed, store, Access.DATA))
    return method


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(
    ("order", "weighting", "flips"), [("first", "epsilon", False), ("leave-one-out", "uniform", True)]
)
def test_combines_timesteps_and_draws_as_defined(
    engine: str, order: Order, weighting: str, flips: bool, tmp_path: Path
) -> None:
    method = ScoreMachine(
        [500, 700], [3, 5], order, weighting, noise_draws=2, flips=flips, engine=engine,  # type: ignore[arg-type]
    )  # fmt: skip
    queries = Queries(*images(2, 2))
    found = score(prepared(method, tmp_path), queries)
    train = ImageSet(*images(5, 1)).unit_range()
    copies = 2 if flips else 1
    if flips:
        train = torch.cat([torch.stack([image, image.flip(-1)]) for image in train])
    for row, image in zip(found, queries.unit_range(), strict=True):
        truth = torch.zeros(5, dtype=torch.float64)
        for timestep, size in ((500, 3), (700, 5)):
            alpha_bar = ALPHA_BAR[timestep].item()
            weight = alpha_bar / (1 - alpha_bar) if weighting == "epsilon" else 1.0
            for draw in range(2):
                noise = sample_noise(42, "nda", timestep, draw, (3, 6, 5))
                noisy = alpha_bar**0.5 * image + (1 - alpha_bar) ** 0.5 * noise
                truth += weight / 4 * brute_force(MachineTask(image, noisy, alpha_bar, size), train, order, copies)
        assert error(row.double(), truth) < 1e-4


def test_opponents_are_negative(tmp_path: Path) -> None:
    found = score(prepared(ScoreMachine([500], 3), tmp_path), Queries(*images(3, 2)))
    assert (found.min(1).values < 0).all()
    assert (found.max(1).values > 0).all()


def test_too_many_images_are_refused_before_they_are_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda device: 1)
    with pytest.raises(AttribenchError, match=r"mirror images needs .* Compare without --method\.flips"):
        prepared(ScoreMachine(flips=True), tmp_path)


def test_it_must_be_prepared() -> None:
    with pytest.raises(AttribenchError, match="not prepared"):
        ScoreMachine().attribute(Queries(*images(1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": []}, "timesteps: at least one"),
        ({"timesteps": [1000], "patch_size": 3}, r"0\.\.999"),
        ({"timesteps": [100]}, "patch_size: 2 values for 1 timesteps"),
        ({"patch_size": 4}, "must be odd"),
        ({"patch_size": [3, 0]}, "must be odd"),
        ({"patch_size": -1}, "must be odd"),
        ({"noise_draws": 0}, "noise_draws"),
        ({"order": "second"}, "Unknown order 'second'"),
        ({"timestep_weighting": "epsilo"}, "Did you mean 'epsilon'"),
        ({"engine": "fats"}, "Did you mean 'fast'"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScoreMachine(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"patch_size": 3, "order": "leave-one-out"}, {"engine": "reference"}])
def test_conforms(options: dict[str, object]) -> None:
    assert check_method(ScoreMachine, **options) is None


def test_the_search_finds_what_is_best() -> None:
    """A made-up LDS: patch sizes 5 at t = 300 and 9 at t = 500 are best, both timesteps help, 700 harms, uniform is better."""
    best = {300: 5, 500: 9, 700: 3}

    def lds(options: dict[str, object]) -> float:
        pairs = list(zip(options["timesteps"], options["patch_size"], strict=True))  # type: ignore[call-overload]
        total = sum((-0.2 if t == 700 and len(pairs) > 1 else 0.1) - 0.01 * abs(p - best[t]) for t, p in pairs)
        return total + (0.01 if options.get("timestep_weighting") == "uniform" else 0.0)

    found = search_machine(lds, {"timesteps": [700, 300, 500]})  # type: ignore[arg-type]
    assert found == {"timesteps": [300, 500], "patch_size": [5, 9], "timestep_weighting": "uniform"}
