from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attribench import Access, AttributionContext, AttributionMethod, ImageSet, Queries, Sampling
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AccessError, AttribenchError, DataError, UsageError
from attribench.method import score, start
from attribench.store.artifacts import ArtifactStore


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


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int32, torch.float64),
        (torch.int64, torch.float64),
        (torch.bool, torch.float64),
    ],
)
def test_scores_keep_their_order_in_every_type(tmp_path: Path, given: torch.dtype, kept: torch.dtype) -> None:
    class Typed(Constant):
        def attribute(self, queries: Queries) -> Tensor:
            return values

    # Neighbours that the next shorter type cannot tell apart.
    base, step = {torch.float64: (1e6, 1e-9), torch.int32: (2**24, 1), torch.int64: (2**52, 1)}.get(given, (0, 1))
    values = (torch.full((2, 3), base, dtype=torch.float64) + torch.tensor([0.0, step, 0.0])).to(given)
    method = Typed()
    start(method, context(Access.DATA, tmp_path))
    scores = score(method, queries())
    assert scores.dtype == kept
    assert torch.equal(scores.to(given), values)
    assert (scores[:, 1] > scores[:, 0]).all()


def test_what_is_no_real_tensor_is_refused(tmp_path: Path) -> None:
    class Complex(Constant):
        def attribute(self, queries: Queries) -> Tensor:
            return torch.zeros(2, 3, dtype=torch.complex64)

    class Array(Constant):
        def attribute(self, queries: Queries) -> Tensor:
            return torch.zeros(2, 3).numpy()  # type: ignore[return-value]

    for method, message in ((Complex(), "complex"), (Array(), "ndarray")):
        start(method, context(Access.DATA, tmp_path))
        with pytest.raises(AttribenchError, match=message):
            score(method, queries())


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


class OwnOnly(Constant):
    def undefined_on(self, queries: Queries) -> str | None:
        return None if queries.sampling else "nobody sampled them"


def test_a_method_is_never_asked_about_queries_that_it_is_not_defined_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Constant().undefined_on(queries()) is None
    method = OwnOnly()
    start(method, context(Access.DATA, tmp_path))
    assert score(method, replace(queries(), sampling=Sampling((3, 5), 10))).shape == (2, 3)
    monkeypatch.setattr(OwnOnly, "attribute", lambda *_: pytest.fail("asked"))
    with pytest.raises(UsageError, match="OwnOnly is not defined on the query set 'queries': nobody sampled them"):
        score(method, queries())


def test_queries_can_be_sliced() -> None:
    assert queries()[1:].ids == ("y",)
    assert queries()[1:].sampling is None


def test_parts_of_queries_keep_how_they_were_sampled() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    whole = Queries(pixels, tuple("abcd"), "generation", Sampling((10, 11, 12, 13), 50, 0.5))
    for part in (whole.select([3, 1]), whole[1:][2:], whole[::-2]):
        assert part.name == "generation"
        assert part.sampling is not None
        assert [seed - 10 for seed in part.sampling.seeds] == part.images.flatten().tolist()
        assert ["abcd"[seed - 10] for seed in part.sampling.seeds] == list(part.ids)
        assert (part.sampling.num_inference_steps, part.sampling.eta) == (50, 0.5)
    with pytest.raises(DataError, match="4 queries but 1 seeds"):
        replace(whole, sampling=Sampling((1,), 50))
