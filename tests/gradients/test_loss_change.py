"""What methods that change the weights for a query refuse, say and keep apart, on a toy problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_problem import Small, problem

from attribench import AttributionContext, ImageSet, Queries
from attribench.computing.progress import Progress
from attribench.errors import AttribenchError
from attribench.gradients import budget, common_noise, fisher, per_sample
from attribench.gradients.common_noise import COMMON, CommonNoiseLosses, noise_seed, noisy_rows
from attribench.gradients.fisher import diagonal_fisher, fisher_refusal
from attribench.gradients.loss_change import LossChangeMethod
from attribench.gradients.per_sample import num_parameters
from attribench.method import score, start
from attribench.methods import fine_tune
from attribench.methods.fine_tune import FineTune, spread
from attribench.methods.unlearning import Unlearning

SHAPE = (2, 4, 4)
Make = Callable[..., LossChangeMethod]


def unlearning(**options: Any) -> Unlearning:
    return Unlearning(**{"num_timesteps": 2, "loss_timesteps": 2, "fisher_timesteps": 1, **options})


def tuned(**options: Any) -> FineTune:
    return FineTune(**{"steps": 2, "num_timesteps": 4, "learning_rate": 0.01, **options})


both = pytest.mark.parametrize("make", [unlearning, tuned])


@pytest.fixture
def toy(tmp_path: Path) -> tuple[AttributionContext, Queries]:
    return problem(Small, tmp_path, SHAPE)


@pytest.fixture
def context(toy: tuple[AttributionContext, Queries]) -> AttributionContext:
    return toy[0]


@pytest.fixture
def queries(toy: tuple[AttributionContext, Queries]) -> Queries:
    return toy[1]


@pytest.fixture(autouse=True)
def far_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody trained the model: its losses are about those of one that knows nothing."""
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 100.0)


def scores_of(method: LossChangeMethod, context: AttributionContext, queries: Queries) -> Tensor:
    start(method, context)
    return score(method, queries)


def disk(free: int) -> Callable[[object], object]:
    return lambda _: type("Usage", (), {"free": free})


class Notes(Progress):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@both
def test_what_cannot_fit_is_a_reason_to_skip(
    make: Make, context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> Tensor:
        raise AssertionError("work was done")

    monkeypatch.setattr(common_noise.CommonNoiseLosses, "_losses", work)
    monkeypatch.setattr(fisher, "_squares", work)
    assert make().skip_reason(context) is None
    with monkeypatch.context() as patch:
        patch.setattr(budget, "available_memory", lambda device: 10)
        assert "(10 bytes) are available" in (make().skip_reason(context) or "")
    with monkeypatch.context() as patch:
        patch.setattr(budget.shutil, "disk_usage", disk(10))
        assert "(10 bytes) are free" in (make().skip_reason(context) or "")


@both
def test_what_is_refused_is_a_part_of_what_is_said_before(
    make: Make, context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = make().needs(context, 1)
    with monkeypatch.context() as patch:
        patch.setattr(budget, "available_memory", lambda device: said.memory)
        assert make().skip_reason(context) is None
        patch.setattr(budget, "available_memory", lambda device: said.memory - 1)
        assert f"({said.memory} bytes) of memory" in (make().skip_reason(context) or "")
    monkeypatch.setattr(budget.shutil, "disk_usage", disk(said.disk))
    assert make().skip_reason(context) is None


def test_fisher_information_is_refused_by_the_parts_that_are_missing(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "_IMAGES_PER_PART", 3)
    model, terms = context.target_model(), [(0, 0)]
    needed = 3 * (8 * num_parameters(model) + 4096)
    monkeypatch.setattr(budget.shutil, "disk_usage", disk(needed - 1))
    assert f"({needed} bytes) on disk" in (fisher_refusal(context, model, terms) or "")
    assert "Fisher" in (unlearning().skip_reason(context) or "")
    with pytest.raises(AttribenchError, match="Fisher information of 275 parameters needs"):
        diagonal_fisher(context, model, terms)
    assert not list(context.shared_store().store.artifacts())
    monkeypatch.setattr(budget.shutil, "disk_usage", disk(needed))
    diagonal_fisher(context, model, terms)
    monkeypatch.setattr(budget.shutil, "disk_usage", disk(0))
    assert fisher_refusal(context, model, terms) is None


@both
def test_losses_of_queries_that_are_missing_must_fit_on_the_disk(
    make: Make, context: AttributionContext, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make()
    start(method, context)
    each = 4 * method._losses.passes + 4096
    monkeypatch.setattr(budget.shutil, "disk_usage", disk(2 * each))
    with pytest.raises(AttribenchError, match=rf"\({3 * each} bytes\) on disk"):
        score(method, queries)
    first = score(method, queries[:2])
    assert torch.equal(score(method, queries)[:2], first)
    monkeypatch.setattr(budget.shutil, "disk_usage", disk(0))
    assert torch.equal(score(method, queries)[:2], first)


def test_noise_of_its_own_many_images_and_many_terms_need_memory(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.zeros(1000, *SHAPE, dtype=torch.uint8)
    many = replace(context, train=ImageSet(images, tuple(map(str, range(1000)))))
    asked: list[int] = []
    monkeypatch.setattr(common_noise, "shortage", lambda what, memory, *_: asked.append(memory))

    def needed(given: AttributionContext, owner: common_noise.NoiseOwner = "common", terms: int = 1) -> int:
        CommonNoiseLosses(given, given.target_model(), [(0, draw) for draw in range(terms)], owner).refusal(3)
        return asked[-1]

    few = needed(context)
    assert needed(many) > few + 4 * images.numel()
    assert needed(many, "own") > needed(many) + 4 * images.numel()
    assert needed(many, "own", 4) > needed(many, "own") + 3 * 4 * images.numel()
    assert needed(context, terms=1000) > few


def test_rows_that_do_not_fit_go_through_the_network_one_after_the_other(
    context: AttributionContext, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scores_of(unlearning(), context, queries)
    other = replace(context, shared=None)
    rows: list[int] = []
    forward = Small.forward

    def noting(self: Small, noisy: Tensor, timesteps: Tensor) -> Any:
        if noisy.any():  # the network is looked at with blank images
            rows.append(len(noisy))
        return forward(self, noisy, timesteps)

    monkeypatch.setattr(Small, "forward", noting)
    monkeypatch.setattr(per_sample, "_PASS_BYTES", {"cpu": 1})
    found = scores_of(unlearning(), other, queries)
    assert set(rows) == {1}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


@both
def test_results_of_other_options_in_the_same_store_are_not_taken(
    make: Make, context: AttributionContext, queries: Queries, tmp_path: Path
) -> None:
    changes: list[dict[str, Any]] = [{"noise": "own"}, {"noise_draws": 2}, {"num_timesteps": 1}]
    if make is unlearning:
        changes += [{"damping": 0.5}, {"step": 0.3}, {"loss_timesteps": 1}, {"loss_draws": 2}, {"fisher_timesteps": 2}]
    else:
        changes += [{"learning_rate": 0.02}, {"steps": 1}, {"noise_batch": 1}, {"fresh_noise": True}]
    first = scores_of(make(), context, queries)
    for number, change in enumerate(changes):
        alone, _ = problem(Small, tmp_path / str(number), SHAPE)
        expected = scores_of(make(**change), alone, queries)
        assert not torch.equal(expected, first), change
        assert torch.equal(scores_of(make(**change), context, queries), expected), change
    assert torch.equal(scores_of(make(), context, queries), first)


def test_results_of_another_method_query_or_model_in_the_same_store_are_not_taken(
    context: AttributionContext, queries: Queries, tmp_path: Path
) -> None:
    """One query after the other, under the same name too, and a model of which one weight differs."""
    first = scores_of(unlearning(), context, queries[:1])
    renamed = Queries(queries.images[1:2], queries.ids[:1])
    alone, _ = problem(Small, tmp_path / "other", SHAPE)
    assert torch.equal(scores_of(unlearning(), context, renamed), scores_of(unlearning(), alone, renamed))
    scores_of(tuned(), context, queries[:1])
    assert torch.equal(scores_of(unlearning(), context, queries[:1]), first)
    with torch.no_grad():
        for some in (context, alone):
            some.target_model().norm.bias[0] = 0.5
    expected = scores_of(unlearning(), alone, queries[:1])
    assert not torch.equal(expected, first)
    assert torch.equal(scores_of(unlearning(), context, queries[:1]), expected)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_batch_of_one_moves_the_weights_whatever_the_loss_at_its_timestep(
    fresh: bool, context: AttributionContext, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tuned(noise_batch=1, fresh_noise=fresh, learning_rate=1e-4)
    model, query = context.target_model(), queries[:1]
    like, seed = next(model.parameters()), noise_seed(context)
    noisy, noise, timesteps = noisy_rows(query.images[0], COMMON, method._terms, seed, context.schedule, like)
    with torch.no_grad():
        losses = (model(noisy, timesteps).sample - noise).square().flatten(1).mean(1)
    # The first step's timestep alone would be a reason to stop; all of them are not.
    method._terms = [method._terms[number] for number in losses.argsort(descending=True).tolist()]
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", float(losses.mean() + losses.max()) / 2)
    assert scores_of(method, context, query).abs().max() > 0


def test_a_batch_is_spread_over_the_timesteps() -> None:
    for count in (1, 2, 3, 4, 7, 10, 20, 100):
        order = spread(count)
        assert sorted(order) == list(range(count))
        for size in range(2, min(count, 10)):
            for begin in range(count):
                places = sorted(order[(begin + i) % count] for i in range(size))
                gaps = [b - a for a, b in zip(places, [*places[1:], places[0] + count], strict=True)]
                assert max(gaps) <= 3 * count / size


def test_queries_that_move_nothing_are_counted_aloud(
    context: AttributionContext, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    noted = replace(context, progress=notes)
    assert scores_of(tuned(), noted, queries).abs().max() > 0
    assert not notes.messages
    monkeypatch.setattr(fine_tune, "_NULL_LOSS", 0.0)
    method = tuned(learning_rate=0.02)
    start(method, noted)
    for _ in range(2):  # computed, then from the store
        notes.messages.clear()
        assert torch.equal(score(method, queries), torch.zeros(3, 8).double())
        (message,) = notes.messages
        assert "3 of 3 queries (queries) did not move the weights" in message
        assert "--method.learning_rate" in message
