"""DataInf against the mean of dense inverses in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dense_gradients import moments
from torch import Tensor, nn
from toy_problem import SEED, Small, problem

from attribench import AttributionContext, Queries, load_method
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.feature_set import FeatureSet
from attribench.method import score, start
from attribench.methods.datainf import DataInf, layer_slices
from attribench.methods.trak import TRAK
from attribench.testing import check_method

TIMESTEPS = [0, 333, 666, 999]


def scores_of(method: DataInf | TRAK, context: AttributionContext, queries: Queries) -> Tensor:
    start(method, context)
    return score(method, queries)


def gradients(context: AttributionContext, images: Tensor, ids: tuple[str, ...]) -> Tensor:
    found = moments(context.target_model(), images, ids, SEED, TIMESTEPS, 2)
    return torch.stack(
        [torch.stack([m.gradient((m.predicted - m.noise).square().mean()) for m in own]).mean(0) for own in found]
    )


@pytest.mark.parametrize("damping", [0.1, 100.0])
def test_scores_equal_the_mean_of_inverses(tmp_path: Path, damping: float, monkeypatch: pytest.MonkeyPatch) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    x, phi = (gradients(context, side.images, side.ids) for side in (queries, context.train))
    expected, at = torch.zeros(3, 8).double(), 0
    for module in context.target_model().children():
        size = sum(parameter.numel() for parameter in module.parameters())
        own, rows = slice(at, at + size), phi[:, at : at + size]
        lam = damping * rows.square().mean() * torch.eye(size).double()
        inverse = torch.stack([torch.linalg.inv(g.outer(g) + lam) for g in rows]).mean(0)
        expected += x[:, own] @ inverse @ rows.T
        at += size
    options = {"num_timesteps": 3, "noise_draws": 2, "damping": damping}
    scores = scores_of(DataInf(**options), context, queries)  # type: ignore[arg-type]
    assert (scores - expected).abs().max() < 1e-4 * expected.abs().max()
    blocks = FeatureSet.blocks
    monkeypatch.setattr(FeatureSet, "blocks", lambda self: (row for block in blocks(self) for row in block.split(3)))
    apart = scores_of(DataInf(**options), context, queries)  # type: ignore[arg-type]
    assert (apart - scores).abs().max() < 1e-12 * scores.abs().max()


def test_a_layer_without_gradients_adds_nothing(tmp_path: Path) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    with torch.no_grad():
        context.target_model().get_parameter("last.weight").zero_()  # nothing before it matters
    assert torch.isfinite(scores_of(DataInf(num_timesteps=1), context, queries)).all()


def test_layers_are_modules_own_parameters() -> None:
    sizes = [layer.stop - layer.start for layer in layer_slices(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), Small()))]
    assert sizes == [9, *(sum(p.numel() for p in module.parameters()) for module in Small().children())]


def test_it_takes_the_gradients_that_others_have_computed(tmp_path: Path) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    scores_of(TRAK(num_timesteps=2), context, queries)
    count = len(list(context.shared_store().store.artifacts()))
    scores_of(DataInf(num_timesteps=2), context, queries)
    assert len(list(context.shared_store().store.artifacts())) == count


@pytest.mark.slow
def test_conforms() -> None:
    assert check_method(DataInf, num_timesteps=1) is None


def test_what_cannot_fit_is_a_reason_to_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = problem(Small, tmp_path, (2, 4, 4))
    assert DataInf(num_timesteps=1).skip_reason(context) is None
    assert "trained model" in (DataInf().skip_reason(replace(context, models=None)) or "")
    monkeypatch.setattr("attribench.gradients.budget.available_memory", lambda device: 10)
    assert "(10 bytes) are available" in (DataInf(num_timesteps=1).skip_reason(context) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, r"damping must be positive and finite; got -1\.0"),
        ({"num_timesteps": 0}, r"num_timesteps must lie in 1\.\.1000; got 0"),
        ({"noise_draws": 0}, "noise_draws must be at least 1; got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataInf(**options)  # type: ignore[arg-type]


def test_the_search_tries_the_published_damping() -> None:
    tried: list[object] = []

    def evaluate(options: object) -> float:
        tried.append(options)
        return 0.0

    load_method("datainf").search(evaluate, {"num_timesteps": 10})
    assert {"damping": 0.1} in tried


def test_an_unprepared_method_says_so() -> None:
    with pytest.raises(AttribenchError, match="not prepared"):
        DataInf().attribute(Queries(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ("a",)))
