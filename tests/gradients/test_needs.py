"""The parts of what is said of memory, disk and time, against what is really allocated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_problem import Small, problem

from attribench import AttributionContext
from attribench.gradients import features, needs
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.features import GradientFeatures
from attribench.gradients.options import FeatureOptions
from attribench.method import AttributionMethod, Needs, score, start
from attribench.methods.datainf import DataInf
from attribench.methods.ekfac import EKFAC
from attribench.methods.trak import TRAK


@pytest.fixture
def context(tmp_path: Path) -> AttributionContext:
    return problem(Small, tmp_path, (2, 4, 4))[0]


@pytest.mark.parametrize(
    ("rows", "chunk", "most"), [(10, 3, 240), (10, 3, 1), (10, 100, 240), (12, 4, 2**20), (7, 2, 160)]
)
def test_a_block_is_as_large_as_said(rows: int, chunk: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "BLOCK_BYTES", most)
    parts = [torch.zeros(min(chunk, rows - begin), 10) for begin in range(0, rows, chunk)]
    largest = max(block.nbytes for block in FeatureSet.of(parts).blocks(most))
    block, held = needs.block_bytes(rows, 10, chunk)
    assert block == largest
    assert block <= held <= 3 * block


def test_ridge_holds_kernels_and_blocks() -> None:
    few, many = needs.ridge_bytes(100, 10**6, 100), needs.ridge_bytes(100, 2 * 10**6, 100)
    assert many == pytest.approx(2 * few, rel=0.01)  # blocks decide
    assert needs.ridge_bytes(10**5, 10, 10**5) < needs.ridge_bytes(10**5, 10**5, 10**5)  # the smaller form
    assert needs.ridge_bytes(30000, 30000, 100) >= 3 * 8 * 30000**2


def test_joined_is_the_largest_memory_and_all_of_the_rest() -> None:
    assert needs.joined(Needs(5, 1, 2.0), Needs(3, 10, 4.0)) == Needs(5, 11, 6.0)


def test_disk_is_what_is_stored(context: AttributionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_LARGEST_CHUNK", 3)
    for options in (FeatureOptions("loss", 2, "identity"), FeatureOptions("loss", 2, "basic", 7, noise_draws=2)):
        asked = GradientFeatures(context, options)
        said = asked.needs(context.train, 0).disk
        before = sum(artifact.num_bytes for artifact in context.shared_store().store.artifacts())
        asked.of(context.target_model(), context.train)
        stored = sum(artifact.num_bytes for artifact in context.shared_store().store.artifacts()) - before
        parts = 3 * options.noise_draws
        assert said - needs.ARTIFACT_BYTES * parts < stored <= said
        assert asked.needs(context.train, 0).disk == 0


def test_disk_of_a_kernel_method_has_its_inner_products(tmp_path: Path) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    method = TRAK(num_timesteps=2, projection="identity")
    said = method.needs(context, len(queries)).disk
    start(method, context)
    score(method, queries)
    artifacts = list(context.shared_store().store.artifacts())
    stored = sum(artifact.num_bytes for artifact in artifacts)
    assert len(artifacts) == 4  # gradients of train images and queries, and the inner products of both
    assert said - needs.ARTIFACT_BYTES * len(artifacts) < stored <= said


def test_what_is_there_already_takes_nothing(context: AttributionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attribench.gradients.plan.Plan.trial", lambda *_: 1.0)
    method = TRAK(num_timesteps=2, projection="identity")
    before = method.needs(context, 4)
    assert min(before.memory, before.disk, before.seconds) > 0
    GradientFeatures(context, FeatureOptions("loss", 2, "identity")).of(context.target_model(), context.train)
    after = method.needs(context, 4)
    assert after.disk < before.disk
    assert after.seconds < before.seconds


def test_queries_take_no_less_where_train_images_are_done(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of them as of train images take as much: passes are as large."""
    monkeypatch.setattr("attribench.gradients.plan.Plan.left_over", lambda *_: 0)  # as on a GPU
    asked, count = GradientFeatures(context, FeatureOptions("loss", 10, "basic", 2)), len(context.train)
    before = asked.needs(context.train, count).memory
    asked.of(context.target_model(), context.train)
    assert asked.needs(context.train, count).memory == before


@pytest.mark.parametrize("method", [DataInf(num_timesteps=1), EKFAC(num_timesteps=1)])
def test_scores_take_time_too(
    method: AttributionMethod, context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attribench.gradients.plan.Plan.trial", lambda *_: 0.0)
    few, many = (method.needs(context, count) for count in (1, 10**6))
    assert few is not None
    assert many is not None
    length = sum(parameter.numel() for parameter in context.target_model().parameters())
    products = needs.products_seconds(10**6, len(context.train), length, "cpu")
    assert many.seconds - few.seconds >= 2 * products * 0.99


def test_gradients_that_are_kept_are_in_the_memory(context: AttributionContext) -> None:
    def memory(options: FeatureOptions) -> int:
        return GradientFeatures(context, options).needs(context.train, 0).memory

    length = sum(parameter.numel() for parameter in context.target_model().parameters())
    identity = memory(FeatureOptions("loss", 1, "identity"))
    assert identity >= 3 * 4 * length * len(context.train)  # gradients, and a file's bytes twice
    assert memory(FeatureOptions("mean", 1, "identity", normalized=True)) >= identity
    assert memory(FeatureOptions("loss", 1, "basic", 64)) >= 4 * length * (len(context.train) + 64)


def test_the_bytes_that_a_pass_holds_are_counted(context: AttributionContext) -> None:
    """The inputs of the layers of one image at the least, and less than ten times that."""
    from attribench.gradients.per_sample import held_bytes

    inputs: list[Tensor] = []
    model = context.target_model()
    hooks = [module.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for module in model.children()]
    held, complete = held_bytes(model, (2, 4, 4), torch.device("cpu"))
    for hook in hooks:
        hook.remove()
    assert complete
    assert held == held_bytes(model, (2, 4, 4), torch.device("cpu"))[0]
    assert 0.3 < held / sum(value.nbytes for value in inputs) < 10
