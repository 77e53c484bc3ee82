from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attribench import Access, AttributionContext, AttributionMethod, ImageSet, Queries
from attribench.artifacts import ArtifactStore
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AccessError, AttribenchError, DataError
from attribench.method import score, start


class Models:
    def target_model(self) -> nn.Module:
        return nn.Identity()

    def checkpoints(self) -> Iterator[nn.Module]:
        return iter([nn.Identity(), nn.Identity()])


def context(access: Access, tmp_path: Path, models: Models | None = None) -> AttributionContext:
    train = ImageSet(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), ("a", "b", "c"))
    return AttributionContext(
        train, NoiseSchedule(), torch.device("cpu"), 42, ArtifactStore(tmp_path), access, models or Models()
    )


def queries(size: int = 4) -> Queries:
    return Queries(torch.zeros(2, 1, size, size, dtype=torch.uint8), ("x", "y"))


class Constant(AttributionMethod):
    """Returns what it is told to.

    Args:
        value: the score.
        rows: number of rows.
    """

    access = Access.DATA

    def __init__(self, value: float = 1.0, rows: int = 2) -> None:
        self.value, self.rows = value, rows

    def attribute(self, queries: Queries) -> Tensor:
        return torch.full((self.rows, len(self.context.train)), self.value, dtype=torch.float64)


def test_access_is_enforced_at_each_level(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="MODEL"):
        context(Access.DATA, tmp_path).target_model()
    with pytest.raises(AccessError, match="CHECKPOINTS"):
        context(Access.MODEL, tmp_path).checkpoints()
    assert not context(Access.MODEL, tmp_path).target_model().training
    assert len(list(context(Access.CHECKPOINTS, tmp_path).checkpoints())) == 2


def test_scores_come_back_as_float32_of_the_right_shape(tmp_path: Path) -> None:
    method = Constant()
    start(method, context(Access.DATA, tmp_path))
    scores = score(method, queries())
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 3)


def test_wrong_scores_and_wrong_queries_are_refused(tmp_path: Path) -> None:
    for method, message in ((Constant(rows=1), r"shape \(1, 3\); expected \(2, 3\)"), (Constant(float("nan")), "NaN")):
        start(method, context(Access.DATA, tmp_path))
        with pytest.raises(AttribenchError, match=message):
            score(method, queries())
    method = Constant()
    start(method, context(Access.DATA, tmp_path))
    with pytest.raises(DataError, match=r"\(1, 6, 6\)"):
        score(method, queries(6))


def test_a_method_without_a_context_says_so() -> None:
    with pytest.raises(AttribenchError, match="no context yet"):
        Constant().attribute(queries())


def test_queries_can_be_sliced() -> None:
    assert queries()[1:].ids == ("y",)
