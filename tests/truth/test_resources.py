from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attribench.configuration.resolution import resolve
from attribench.diffusion.network import build_network
from attribench.settings import ModelSettings, RayOptions, Runtime, Shard, TrainingSettings
from attribench.store.files import canonical
from attribench.truth.base import StoredBase
from attribench.truth.jobs import LossJob, TrainJob
from attribench.truth.resources import Blueprint, Memory, Size, _counting, size_of

SHAPE = (1, 8, 8)


def sized(model: ModelSettings, shape: tuple[int, int, int], batch: int) -> Size:
    return size_of(Blueprint(canonical(model), lambda: build_network(model, shape)), shape, batch, batch)


def test_counted_is_what_exists_at_a_time() -> None:
    with torch.device("meta"):
        given = torch.empty(1000)
        with _counting() as live:
            gone = given * 2
            del gone
            kept = given * 3
            view = kept[:10]  # the same storage
            total = (kept + 1).sum()  # the sum's operand goes
            assert live.peak == 2 * 4000 + 4
            del kept, view, total
            assert live._now == 0
            weight = torch.ones(1000, requires_grad=True)
            (weight.exp() * 2).sum().backward()
    # The weight, its exponential, that times two, and their gradients: what of these is there at once.
    assert 3 * 4000 <= live.peak <= 5 * 4000 + 8


def test_a_network_that_trains_is_weights_gradients_and_two_moments(tiny_model: ModelSettings) -> None:
    network = build_network(tiny_model, SHAPE)
    numbers = sum(value.numel() for value in network.parameters())
    size = sized(tiny_model, SHAPE, 1)
    assert (size.parameters, size.weights) == (numbers, 4 * numbers)
    large = sized(resolve("cifar2", "paper", [], {}).settings.model, (3, 32, 32), 1)
    assert 35e6 < large.parameters < 40e6
    assert 16 * large.parameters < large.training < 1.5 * 16 * large.parameters
    assert 4 * large.parameters < large.evaluating < 1.5 * 4 * large.parameters


def test_activations_grow_with_the_batch(tiny_model: ModelSettings) -> None:
    sizes = [sized(tiny_model, SHAPE, batch) for batch in (64, 128, 192)]
    training = [size.training for size in sizes]
    evaluating = [size.evaluating for size in sizes]
    for values in (training, evaluating):
        assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=0.02)
        assert values[1] > values[0]


def test_jobs_say_their_memory(tiny_model: ModelSettings) -> None:
    trained = TrainJob("m", "t", SHAPE, None, 100, tiny_model, TrainingSettings(batch_size=64), 7)
    losses = LossJob(trained, "q", 5, (0, 500), 3, 42)
    runtime = Runtime(evaluation_batch=64)
    size = trained.size(runtime)
    on_cpu, on_gpu = (trained.memory(runtime, cuda=cuda) for cuda in (False, True))
    assert on_cpu.device == 0
    assert on_cpu.host > size.training
    assert on_gpu.device > size.training
    # The checkpoint: weights and two moments; in memory on its way to the disk, and once more on its way to others.
    assert size.saved == 3 * 4 * size.parameters
    with_none = Memory.of(size.training, size.weights + 3 * 100 * 64, cuda=True).host
    assert on_gpu.host - with_none == size.saved
    carried = replace(runtime, executor="ray", ray=RayOptions(carry=True))
    assert [trained.memory(carried, cuda=cuda).host for cuda in (False, True)] == [
        on_cpu.host + size.saved,
        on_gpu.host + size.saved,
    ]
    assert losses.memory(runtime, cuda=True).device > size.evaluating
    assert Memory.of(100, 10, cuda=False).host - Memory.of(0, 0, cuda=False).host == 135


def test_lora_takes_gradients_and_moments_of_its_own_weights_alone(tiny_model: ModelSettings) -> None:
    network = build_network(tiny_model, SHAPE)
    config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # type: ignore[arg-type]
    whole = TrainJob("m", "t", SHAPE, None, 100, tiny_model, TrainingSettings(batch_size=1), 7).size(Runtime())
    training = TrainingSettings(batch_size=1, lora_rank=2, lora_modules=["to_q"])
    job = TrainJob(
        "m", "t", SHAPE, None, 100, ModelSettings(base="b"), training, 7, base=StoredBase("c", canonical(config))
    )
    size = job.size(Runtime())
    assert size.parameters == whole.parameters + 2 * 2 * 16  # A and B of a layer of 16 × 16
    assert size.saved == 3 * 4 * 2 * 2 * 16
    assert size.training < whole.training - 2 * whole.weights
    assert job.memory(Runtime(), cuda=False).host > size.training


def test_shards_are_disjoint_and_then_help() -> None:
    orders = [Shard(number, 3).order(8) for number in (1, 2, 3)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert [order[: len(range(k, 8, 3))] for k, order in enumerate(orders)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert orders[0][3:] == [7, 5, 4, 2, 1]
    assert Shard().order(3) == [0, 1, 2]
