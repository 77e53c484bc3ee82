from __future__ import annotations

import pickle
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from attribench.errors import DataError, UsageError
from attribench.metrics import LinearDatamodelingScore, linear_datamodeling_score, undefined_queries

generator = torch.Generator().manual_seed(0)
SCORES = torch.randn(10, 30, generator=generator)
SCORES[7] = 0.1  # an undefined query
MASKS = torch.rand(12, 30, generator=generator).argsort(dim=1) < 15
OUTPUTS = torch.rand(12, 10, generator=generator)
EXPECTED = linear_datamodeling_score(SCORES, MASKS, OUTPUTS)


def batches(size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(SCORES), size):
        yield SCORES[start : start + size], OUTPUTS[:, start : start + size]


def filled(size: int = 4) -> LinearDatamodelingScore:
    metric = LinearDatamodelingScore(MASKS)
    for scores, outputs in batches(size):
        metric.update(scores, outputs)
    return metric


@pytest.mark.parametrize("size", [1, 4, 10])
def test_batches_equal_all_at_once(size: int) -> None:
    metric = filled(size)
    assert torch.equal(metric.compute(), EXPECTED.mean())
    assert torch.equal(metric.per_query(), EXPECTED)
    assert torch.equal(metric.undefined_queries(), undefined_queries(SCORES, MASKS, OUTPUTS))
    assert metric.undefined_queries().nonzero().tolist() == [[7]]


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    metric = LinearDatamodelingScore(MASKS)
    for start, (scores, outputs) in zip((0, 4, 8), batches(4), strict=True):
        assert torch.equal(metric(scores, outputs), EXPECTED[start : start + 4].mean())
    assert torch.equal(metric.compute(), EXPECTED.mean())


def test_reset() -> None:
    metric = filled()
    metric.reset()
    metric.update(SCORES[:2], OUTPUTS[:, :2])
    assert torch.equal(metric.per_query(), EXPECTED[:2])


def test_pickle_and_copy() -> None:
    copies: list[LinearDatamodelingScore] = [pickle.loads(pickle.dumps(filled())), deepcopy(filled())]
    for metric in copies:
        assert torch.equal(metric.compute(), EXPECTED.mean())
        metric.update(SCORES[:2], OUTPUTS[:, :2])
        assert metric.per_query().shape == (12,)


def test_precision_survives_a_model_in_half() -> None:
    assert filled().half().compute().dtype == torch.float64


def test_collection_keeps_metrics_of_other_masks_apart() -> None:
    """On the first batch both agree; a collection must not take them for one metric."""
    swapped = MASKS.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    collection = MetricCollection({"one": LinearDatamodelingScore(MASKS), "other": LinearDatamodelingScore(swapped)})
    collection.update(torch.zeros(3, 30), OUTPUTS[:, :3])
    collection.update(SCORES, OUTPUTS)
    got = collection.compute()
    first = torch.zeros(3)
    assert got["one"] == torch.cat([first, EXPECTED]).mean()
    assert got["other"] == torch.cat([first, linear_datamodeling_score(SCORES, swapped, OUTPUTS)]).mean()
    assert got["one"] != got["other"]


def test_collection_of_equal_metrics() -> None:
    collection = MetricCollection({"one": LinearDatamodelingScore(MASKS), "same": LinearDatamodelingScore(MASKS)})
    for scores, outputs in batches(4):
        collection.update(scores, outputs)
    assert collection.compute() == {"one": EXPECTED.mean(), "same": EXPECTED.mean()}


def test_processes_are_gathered() -> None:
    """Two processes that hold the same queries, simulated: every state is gathered as that of both."""
    metric = LinearDatamodelingScore(
        MASKS, distributed_available_fn=lambda: True, dist_sync_fn=lambda state, group: [state, state]
    )
    metric.update(SCORES, OUTPUTS)
    assert torch.equal(metric.per_query(), torch.cat([EXPECTED, EXPECTED]))
    assert metric.undefined_queries().sum() == 2
    assert metric.compute() == torch.cat([EXPECTED, EXPECTED]).mean()
    assert torch.equal(metric.masks, MASKS)
    metric.update(SCORES[:1], OUTPUTS[:, :1])  # on top of the own queries, not of those gathered
    assert metric.per_query().shape == (22,)


def test_declarations() -> None:
    metric = LinearDatamodelingScore(MASKS)
    assert metric.higher_is_better is True
    assert metric.is_differentiable is False
    assert metric.full_state_update is False


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_errors() -> None:
    with pytest.raises(UsageError, match="bool"):
        LinearDatamodelingScore(MASKS.float())
    with pytest.raises(UsageError, match=r"torch\.Tensor"):
        LinearDatamodelingScore(MASKS.numpy())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="num_subsets"):
        LinearDatamodelingScore(MASKS[0])
    metric = LinearDatamodelingScore(MASKS)
    for ask in (metric.compute, metric.per_query, metric.undefined_queries):
        with pytest.raises(UsageError, match="No queries yet"):
            ask()
    with pytest.raises(UsageError, match="outputs must be a torch"):
        metric.update(SCORES, OUTPUTS.numpy())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="outputs"):
        metric.update(SCORES, OUTPUTS[:, :3])
    with pytest.raises(DataError, match="masks"):
        metric.update(SCORES[:, :3], OUTPUTS)
