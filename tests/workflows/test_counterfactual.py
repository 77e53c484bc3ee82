"""A counterfactual evaluation on data that trains in seconds: what is removed, retrained, shared and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import write_tiny_clip
from tiny_data import TinyData
from torch import Tensor

from attribench import Access, AttributionMethod, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.diffusion import sampling
from attribench.errors import UsageError
from attribench.method import AttributionContext
from attribench.metrics.counterfactual import pixel_distance
from attribench.records.counterfactual import CONTROL, CounterfactualRecord, groups, load_counterfactuals
from attribench.records.files import load_attachment
from attribench.settings import CounterfactualSettings, Runtime, Settings
from attribench.truth import generation as jobs
from attribench.workflows.counterfactual import Clip, choose_queries, run, strongest

pytestmark = pytest.mark.slow


class ByNumber(AttributionMethod):
    """Every query's proponents are the train images of the lowest numbers."""

    access = Access.DATA

    def attribute(self, queries: Queries) -> Tensor:
        return -torch.arange(len(self.context.train)).float().expand(len(queries), -1)


class AlsoByNumber(ByNumber):
    """The same, by another name."""


class ByQuery(AttributionMethod):
    """Other proponents for every query."""

    access = Access.DATA

    def attribute(self, queries: Queries) -> Tensor:
        shift = queries.images.flatten(1).long().sum(dim=1)[:, None]
        return -((torch.arange(len(self.context.train)) + shift) % len(self.context.train)).float()


class Refuses(ByNumber):
    def skip_reason(self, context: AttributionContext) -> str | None:
        return "not today"


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def evaluate(
    tiny_settings: Settings, runtime: Runtime, tmp_path: Path
) -> Callable[..., tuple[list[CounterfactualRecord], dict[str, str]]]:
    def call(*methods: type[AttributionMethod], **changes: Any) -> tuple[list[CounterfactualRecord], dict[str, str]]:
        settings = replace(
            tiny_settings,
            counterfactual=CounterfactualSettings(**{"num_queries": 2, "num_removed": 6, "num_seeds": 2, **changes}),
        )
        config = Config("tiny", "smoke", TinyData, {}, settings, [MethodConfig(m.__name__, m, {}) for m in methods], {})
        outcome = run(config, runtime, tmp_path / "results", silent_progress, Clip())
        return outcome.records, outcome.skipped

    return call


def test_what_is_removed_is_what_scores_highest_and_the_rest_is_trained_on(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[tuple[int, ...]] = []
    original = jobs.TrainJob.run

    def watched(job: jobs.TrainJob, *arguments: Any) -> Any:
        trained.append(job.indices or ())
        return original(job, *arguments)

    monkeypatch.setattr(jobs.TrainJob, "run", watched)
    (control, by_number, by_query), _ = evaluate(ByNumber, ByQuery)
    assert (control.method, control.num_removed, control.is_control) == (CONTROL, 0, True)
    assert tuple(range(6, 24)) in trained
    assert () in trained  # the control, and the target model
    removed = (load_attachment(by_number, tmp_path / "results") or {})["removed"]
    assert removed.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    gone = (load_attachment(by_query, tmp_path / "results") or {})["removed"]
    for row in gone.tolist():
        assert tuple(sorted(set(range(24)) - set(row))) in trained


def test_numbers_are_the_distances_of_the_images_in_the_record(evaluate: Any, tmp_path: Path) -> None:
    records, _ = evaluate(ByQuery)
    for record in records:
        tensors = load_attachment(record, tmp_path / "results")
        assert tensors is not None
        assert tensors["regenerated"].shape == (2, 2, 1, 8, 8)
        assert pixel_distance(tensors["originals"], tensors["regenerated"]).tolist() == record.l2
        assert record.clip is None
        assert "ViT-B-32" in record.clip_missing
        assert len(set(record.train_seeds)) == 2
    assert records[0].train_seeds == records[1].train_seeds  # paired with the control
    assert records[0].l2 != records[1].l2
    assert load_counterfactuals(tmp_path / "results") == sorted(records, key=lambda record: str(record.path))
    assert [[record.method for record in group] for group in groups(records[::-1])] == [[CONTROL, "ByQuery"]]


def test_images_are_generated_again_from_their_own_noise(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    original = sampling.generate_images

    def watched(network: Any, seeds: Any, *arguments: Any, **options: Any) -> Tensor:
        asked.append(list(seeds))
        return original(network, seeds, *arguments, **options)

    monkeypatch.setattr(jobs, "generate_images", watched)
    records, _ = evaluate(ByQuery)
    numbers = [int(name.rpartition("-")[2]) for name in records[0].query_ids]
    assert asked[0] == list(range(5))  # the queries themselves, by the target model
    assert asked[1:3] == [numbers, numbers]  # the control's two seeds, all queries at once
    assert sorted(asked[3:]) == sorted([[n] for n in numbers] * 2)


def test_the_same_removals_are_retrained_once(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[int] = []
    from attribench.diffusion.training import loop as training

    original = training._fit

    def counted(*arguments: Any) -> None:
        trainings.append(1)
        original(*arguments)

    monkeypatch.setattr(training, "_fit", counted)
    (_, first, second), _ = evaluate(ByNumber, AlsoByNumber)
    # The target model, two controls, and one set of removals, the same for both queries and methods, with two seeds.
    assert len(trainings) == 1 + 2 + 2
    assert first.l2 == second.l2
    evaluate(ByNumber, AlsoByNumber)
    assert len(trainings) == 5


def test_the_published_seed_is_the_target_model_s(evaluate: Any, tiny_settings: Settings) -> None:
    (control, record), _ = evaluate(ByNumber, target_seed=True)
    assert record.train_seeds[0] == tiny_settings.training.seed
    assert control.train_seeds[0] != tiny_settings.training.seed
    assert record.train_seeds[1:] == control.train_seeds[1:]


def test_a_method_that_cannot_run_is_skipped_with_its_reason(evaluate: Any) -> None:
    records, skipped = evaluate(Refuses, ByNumber)
    assert [record.method for record in records] == [CONTROL, "ByNumber"]
    assert skipped == {"Refuses": "not today"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_removed": 24}, "would leave nothing of 24"), ({"num_queries": 6}, "more than the 5 generated images")],
)
def test_more_than_there_is(evaluate: Any, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(ByNumber, **changes)


def test_without_galleries_no_image_is_filed(tiny_settings: Settings, runtime: Runtime, tmp_path: Path) -> None:
    settings = replace(tiny_settings, counterfactual=CounterfactualSettings(num_queries=2, num_removed=6, num_seeds=1))
    methods = [MethodConfig("by-number", ByNumber, {})]
    config = Config("tiny", "smoke", TinyData, {}, settings, methods, {}, galleries=False)
    control, record = run(config, runtime, tmp_path / "results", silent_progress, Clip()).records
    assert load_attachment(control, tmp_path / "results") == {}
    assert set(load_attachment(record, tmp_path / "results") or {}) == {"removed"}
    assert all(value > 0 for row in record.l2 for value in row)


def test_queries_are_drawn_as_published() -> None:
    assert choose_queries(1000, 60)[:5] == [521, 737, 740, 660, 411]
    assert len(set(choose_queries(1000, 60))) == 60
    assert choose_queries(5, 5) == [0, 1, 2, 3, 4]


def test_ties_are_broken_by_number() -> None:
    scores = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0]])
    assert strongest(scores, 3).tolist() == [[1, 3, 2]]


def test_clip_values_come_from_a_local_checkpoint(tiny_settings: Settings, runtime: Runtime, tmp_path: Path) -> None:
    files = write_tiny_clip(tmp_path)
    settings = replace(tiny_settings, counterfactual=CounterfactualSettings(num_queries=2, num_removed=6, num_seeds=1))
    config = Config("tiny", "smoke", TinyData, {}, settings, [MethodConfig("by-number", ByNumber, {})], {})
    clip = Clip(files["model"], checkpoint=files["checkpoint"])
    outcome = run(config, runtime, tmp_path / "results", silent_progress, clip)
    for record in outcome.records:
        assert record.clip is not None
        assert record.clip_missing == ""
        assert record.clip.weights == "tiny.safetensors"
        assert all(-1 <= value <= 1 for row in record.clip.values for value in row)
