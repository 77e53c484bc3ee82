from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from attribench.computing import similarity as module
from attribench.computing.similarity import Kind, similarity
from attribench.errors import DataError, UsageError


def features(rows: int, dimensions: int, seed: int) -> Tensor:
    return torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(seed))


def reference(queries: Tensor, train: Tensor, kind: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    a, b = queries.double().numpy(), train.double().numpy()
    if kind == "cosine":
        a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (a, b))
    return a @ b.T  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("working_memory", [1, 20_000, 2**27])
def test_equals_numpy(kind: Kind, dtype: torch.dtype, working_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORKING_MEMORY", working_memory)
    queries, train = features(7, 100, 0).to(dtype), features(23, 100, 1).to(dtype)
    scores = similarity(queries, train, kind)
    assert scores.dtype == torch.float32
    assert np.abs(scores.numpy() - reference(queries, train, kind)).max() < 1e-6 * (100 if kind == "dot" else 1)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_does_not_depend_on_scale(scale: float) -> None:
    queries, train = features(3, 50, 0), features(4, 50, 1)
    scaled = similarity(queries * scale, train, "cosine")
    assert np.abs(scaled.numpy() - reference(queries, train, "cosine")).max() < 1e-6


def test_zero_has_cosine_zero_with_everything() -> None:
    queries, train = features(3, 10, 0), features(4, 10, 1)
    queries[1], train[2] = 0, 0
    scores = similarity(queries, train, "cosine")
    assert torch.equal(scores[1], torch.zeros(4))
    assert torch.equal(scores[:, 2], torch.zeros(3))
    assert (scores[[0, 2]][:, [0, 1, 3]] != 0).all()


def test_arguments_are_left_alone() -> None:
    queries, train = features(3, 10, 0), features(4, 10, 1)
    similarity(queries, train, "cosine")
    assert torch.equal(queries, features(3, 10, 0))
    assert torch.equal(train, features(4, 10, 1))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="'dot' or 'cosine'"):
        similarity(features(1, 2, 0), features(1, 2, 0), "euclid")  # type: ignore[arg-type]
    for queries, train in ((features(1, 2, 0), features(1, 3, 0)), (features(1, 2, 0)[0], features(1, 2, 0))):
        with pytest.raises(DataError, match="one width"):
            similarity(queries, train, "dot")
