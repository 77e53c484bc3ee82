from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
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
    model = torch.nn.ModuleList([filled()]).to(torch.float16)
    assert torch.equal(model[0].per_query(), EXPECTED)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_set_dtype_changes_nothing(dtype: torch.dtype) -> None:
    metric = LinearDatamodelingScore(MASKS)
    metric.update(SCORES[:4], OUTPUTS[:, :4])
    metric.set_dtype(dtype)
    metric.update(SCORES[4:], OUTPUTS[:, 4:])
    assert torch.equal(metric.per_query(), EXPECTED)
    metric.reset()
    metric.update(SCORES, OUTPUTS)
    assert metric.compute() == EXPECTED.mean()
    assert metric.undefined_queries().dtype == torch.bool


def test_merging() -> None:
    first, second = LinearDatamodelingScore(MASKS), LinearDatamodelingScore(MASKS)
    first.update(SCORES[6:], OUTPUTS[:, 6:])
    second.update(SCORES[:6], OUTPUTS[:, :6])
    assert first.compute() == EXPECTED[6:].mean()
    first.merge_state(second)
    assert torch.equal(first.per_query(), EXPECTED)
    assert first.compute() == EXPECTED.mean(), "not the result from before"
    empty = LinearDatamodelingScore(MASKS)
    first.merge_state(empty)
    empty.merge_state(second.metric_state)
    assert torch.equal(first.per_query(), EXPECTED)
    assert torch.equal(empty.per_query(), EXPECTED[:6])


@pytest.mark.parametrize("masks", [~MASKS, MASKS[:-1]], ids=["other values", "fewer subsets"])
def test_metrics_of_other_masks_are_not_merged(masks: Tensor) -> None:
    metric = filled()
    with pytest.raises(UsageError, match="masks differ"):
        metric.merge_state(LinearDatamodelingScore(masks))
    assert torch.equal(metric.per_query(), EXPECTED), "and what was there is left as it was"


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


# Imports everything once, then becomes two processes.
PROCESSES = """
import datetime, json, os, sys, warnings
import torch
import torch.distributed as dist
from attribench.metrics import LinearDatamodelingScore

folder = sys.argv[1]
SCORES, MASKS, OUTPUTS = torch.load(f"{folder}/data", weights_only=True)
rank = int(os.fork() == 0)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=30)
)
warnings.simplefilter("ignore")

def results(*queries, masks=MASKS, dtype=None):
    metric = LinearDatamodelingScore(masks)
    if dtype is not None:
        metric.set_dtype(dtype)
    return asked(add(metric, *queries))

def add(metric, *queries):
    for part in queries:
        metric.update(SCORES[part], OUTPUTS[: len(metric.masks), part])
    return metric

def asked(metric):
    answers = []
    for ask in (metric.compute, metric.per_query, metric.undefined_queries):
        try:
            answers.append(ask().tolist())
        except Exception as error:
            answers.append(f"{type(error).__name__}: {error}")
    return answers

a, b, c = slice(0, 3), slice(3, 7), slice(7, 10)
first = rank == 0
twice = add(LinearDatamodelingScore(MASKS), a if first else b)
recovering = LinearDatamodelingScore(MASKS)
answers = {
    "uneven": results(a, b) if first else results(c),
    "first without": results() if first else results(a, b, c),
    "second without": results(a, b, c) if first else results(),
    "set_dtype": results(a, dtype=torch.float16) if first else results(b, c, dtype=torch.float16),
    "set_dtype, second without": results(a, b, c, dtype=torch.float16) if first else results(dtype=torch.float16),
    "all without": results(),
    "recovered": [asked(recovering), asked(add(recovering, slice(0, 5) if first else slice(5, 10)))][1],
    "more queries after a result": [asked(twice), asked(add(twice, *([] if first else [c])))][1],
    "other masks": results(a, masks=MASKS if first else ~MASKS),
    "fewer subsets": results(a, masks=MASKS if first else MASKS[:-1]),
}
dist.destroy_process_group()
with open(f"{folder}/{rank}", "w") as file:
    json.dump(answers, file)
if rank == 0:
    os.wait()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Any]]]:
    """What each of two real processes was answered, by case."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save((SCORES, MASKS, OUTPUTS), folder / "data")
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / rank).read_text()) for rank in ("0", "1")]


@pytest.mark.parametrize(
    "case",
    [
        "uneven",
        "first without",
        "second without",
        "set_dtype",
        "set_dtype, second without",
        "recovered",
        "more queries after a result",
    ],
)
def test_processes_give_what_one_would_have(two_processes: list[dict[str, list[Any]]], case: str) -> None:
    with pytest.warns(match="constant"):
        reference = [spearmanr((SCORES.double() @ MASKS.T.double())[q], -OUTPUTS[:, q]).statistic for q in range(10)]
    for answers in two_processes:
        mean, values, undefined = answers[case]
        assert values == EXPECTED.tolist()
        assert mean == EXPECTED.mean().item()
        assert [q for q, flag in enumerate(undefined) if flag] == [7]
        assert [v for q, v in enumerate(values) if q != 7] == pytest.approx(reference[:7] + reference[8:], abs=1e-12)


@pytest.mark.parametrize(
    ("case", "message"),
    [("all without", "No queries yet"), ("other masks", "masks differ"), ("fewer subsets", "masks differ")],
)
def test_processes_that_cannot_be_gathered_all_raise(
    two_processes: list[dict[str, list[Any]]], case: str, message: str
) -> None:
    for answers in two_processes:
        for answer in answers[case]:
            assert str(answer).startswith("UsageError: ")
            assert message in answer


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
