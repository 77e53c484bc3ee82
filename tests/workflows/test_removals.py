"""A grouped removal on data that trains in seconds: what is removed, for whom, with which controls, and what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import TinyData
from torch import Tensor

from attribench import Access, AttributionMethod, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.data.planted import Planted
from attribench.errors import UsageError
from attribench.records.files import load_attachment
from attribench.records.removals import CONTROL, RANDOM, RemovalRecord, load_removals, removal_groups
from attribench.reporting.removal_tables import effects, removal_tables
from attribench.settings import RemovalSettings, Runtime, Settings
from attribench.truth import jobs
from attribench.workflows.counterfactual import Clip
from attribench.workflows.removal_questions import alike
from attribench.workflows.removals import Outcome, by_group, run

pytestmark = pytest.mark.slow


class ByQuery(AttributionMethod):
    """Other proponents for every query, with another factor."""

    access = Access.DATA

    def attribute(self, queries: Queries) -> Tensor:
        shift = queries.images.flatten(1).long().sum(dim=1)[:, None]
        place = (torch.arange(len(self.context.train)) + shift) % len(self.context.train)
        return -place.float() * (1 + shift % 7)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The train images of every training that was done."""
    from attribench.diffusion.training import loop as training

    seen: list[int] = []
    kept: list[tuple[int, ...]] = []
    fit, original = training._fit, jobs.TrainJob.run

    def counted(*arguments: Any) -> None:
        seen.append(1)
        fit(*arguments)

    def watched(job: jobs.TrainJob, *arguments: Any) -> Any:
        before = len(seen)
        found = original(job, *arguments)
        if len(seen) > before:
            kept.append(job.indices or ())
        return found

    monkeypatch.setattr(training, "_fit", counted)
    monkeypatch.setattr(jobs.TrainJob, "run", watched)
    return kept


@pytest.fixture
def evaluate(tiny_settings: Settings, runtime: Runtime, tmp_path: Path) -> Callable[..., Outcome]:
    def call(*methods: type[AttributionMethod], **changes: Any) -> Outcome:
        asked = {"num_groups": 2, "group_size": 2, "num_removed": (4, 8), "num_seeds": 1, **changes}
        found = [MethodConfig(m.__name__, m, {}) for m in methods]
        training = replace(tiny_settings.training, epochs=2)
        config = Config("tiny", "smoke", TinyData, {}, replace(tiny_settings, training=training), found, {})
        return run(config, RemovalSettings(**asked), runtime, tmp_path / "results", silent_progress)

    return call


def tensors_of(record: RemovalRecord, folder: Path) -> dict[str, Tensor]:
    found = load_attachment(record, folder / "results")
    assert found is not None
    return found


def test_what_a_group_ranks_first_is_removed_and_everything_is_kept(
    evaluate: Any, trained: list[tuple[int, ...]], tmp_path: Path
) -> None:
    outcome = evaluate(ByQuery, num_seeds=2)
    control, random, method = outcome.records
    assert [record.method for record in outcome.records] == [CONTROL, RANDOM, "ByQuery"]
    # The target model, the control, and for random and the method two groups × two sizes; each but the first with two seeds.
    assert len(trained) == 1 + 2 + 2 * (2 * 2 * 2)
    for record in (random, method):
        removed = tensors_of(record, tmp_path)["removed"]
        assert removed.shape == (2, 2 if record is random else 1, 8)
        for size in (4, 8):
            for row in removed.flatten(0, 1)[:, :size].tolist():
                assert tuple(sorted(set(range(24)) - set(row))) in trained
    drawn = tensors_of(random, tmp_path)["removed"].flatten(0, 1)
    assert len({tuple(sorted(row)) for row in drawn.tolist()}) == 4  # other images for every group and seed

    values = tensors_of(method, tmp_path)["values.l2"]
    assert values.shape == (2, 2, 2, 4)
    distances = method.measures["l2"]
    assert distances.on_group[1][0] == pytest.approx(values[1, 0, :, 2:].double().mean(dim=1).tolist(), abs=1e-5)
    assert distances.on_controls[1][0] == pytest.approx(values[1, 0, :, :2].double().mean(dim=1).tolist(), abs=1e-5)
    assert set(method.measures) == {"loss", "l2", "ssim"}
    assert set(method.missing) == {"lpips", "clip"}
    assert control.sizes == [0]
    assert control.train_seeds == method.train_seeds

    before = len(trained)
    again = evaluate(ByQuery, num_seeds=2)
    assert len(trained) == before  # everything was in the store
    assert [record.measures for record in again.records] == [record.measures for record in outcome.records]
    assert load_removals(tmp_path / "results") == sorted(outcome.records, key=lambda record: str(record.path))

    (group,) = removal_groups(outcome.records[::-1])
    effect = effects(group, "loss")["ByQuery"]
    base = control.measures["loss"]
    on_group = np.array(method.measures["loss"].on_group) - np.array(base.on_group)
    on_controls = np.array(method.measures["loss"].on_controls) - np.array(base.on_controls)
    assert np.allclose(effect.curve.numpy(), (on_group - on_controls).mean(axis=2))
    (table,) = removal_tables(outcome.records)
    assert [row[0] for row in table.rows] == ["ByQuery", "random, as many"]


def test_a_class_and_copies_have_a_right_answer(evaluate: Any, trained: list[tuple[int, ...]], tmp_path: Path) -> None:
    by_class = evaluate(asked="class", num_removed=(12,))
    assert [record.kind for record in by_class.records] == ["control", "random", "known"]
    known = by_class.records[2]
    assert known.group_names == ["class 0", "class 1"]
    assert tensors_of(known, tmp_path)["removed"][:, 0].sort().values.tolist() == [
        list(range(0, 24, 2)),
        list(range(1, 24, 2)),
    ]
    assert list(known.measures) == ["loss"]
    assert tuple(range(1, 24, 2)) in trained  # without class 0
    assert all(len(images) in (0, 12) for images in trained)  # and the target model was not needed

    beyond = evaluate(asked="class", num_removed=(12, 16)).records[2]
    first, _ = tensors_of(beyond, tmp_path)["removed"][:, 0].tolist()
    assert sorted(first[:12]) == list(range(0, 24, 2))
    assert len({*first[12:]} & {*range(1, 24, 2)}) == 4
    assert sorted(first[12:]) != [1, 3, 5, 7]  # drawn at random: the first ones may have something in common

    copies = evaluate(asked="copies", num_copies=3, num_removed=())
    known = copies.records[2]
    assert known.sizes == [3, 4, 6]  # half, all but one of each, all
    assert known.num_train == 24 + 12
    removed = tensors_of(known, tmp_path)["removed"]
    assert removed[:, 0].tolist() == [[24, 25, 28, 29, 32, 33], [26, 27, 30, 31, 34, 35]]
    assert len(removal_tables(by_class.records + copies.records)) == 2
    assert {record.path.parent.name.partition("-")[0] for record in (*by_class.records, *copies.records)} == {
        "smoke.class",
        "smoke.copies",
    }


def test_planted_copies_are_copies() -> None:
    data = Planted(TinyData(), [4, 1], 3)
    train, validation = data.train, data.validation
    assert len(train) == 24 + 6
    for number in range(3):
        assert torch.equal(train.images[24 + 2 * number], validation.images[4])
        assert torch.equal(train.images[25 + 2 * number], validation.images[1])
    assert train.labels is not None
    assert validation.labels is not None
    assert train.labels[24:].tolist() == [int(validation.labels[4]), int(validation.labels[1])] * 3
    assert train.ids[25] == "copy 1 of tiny-25"


def test_groups_are_of_images_that_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(0, 256, (3, 1, 8, 8), generator=generator)
    of = torch.randint(0, 3, (60,), generator=generator)
    images = (kinds[of] + torch.randint(-9, 10, (60, 1, 8, 8), generator=generator)).clamp(0, 255).byte()
    groups = alike(images, 3, 5)
    assert sorted(len(set(group)) for group in groups) == [5, 5, 5]
    assert len({image for group in groups for image in group}) == 15
    assert sorted({tuple(sorted(set(of[group].tolist()))) for group in groups}) == [(0,), (1,), (2,)]
    with pytest.raises(UsageError, match="need 80 queries"):
        alike(images, 4, 20)


def test_means_over_a_group_and_over_the_others() -> None:
    values = torch.arange(2 * 1 * 1 * 4).double().reshape(2, 1, 1, 4)
    found = by_group(values, [[0, 1], [2, 3]])
    assert found.on_group == [[[0.5]], [[6.5]]]
    assert found.on_controls == [[[2.5]], [[4.5]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_removed": (24,)}, "would leave nothing of 24"),
        ({"num_groups": 3}, "more than the 5 generated images"),
        ({"asked": "class", "num_groups": 3}, "2 classes of tiny"),
        ({"asked": "copies", "num_groups": 4}, "more than the 6 validation queries"),
        ({"asked": "dreams"}, "is not one of"),
        ({"num_removed": (8, 4)}, "must ascend"),
        ({"num_groups": 1}, "at least 2"),
    ],
)
def test_wrong_calls(evaluate: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(ByQuery, **changes)


class Retrained(ByQuery):
    """Needs the losses of models retrained on subsets."""

    access = Access.RETRAINED

    def attribute(self, queries: Queries) -> Tensor:
        assert torch.isfinite(self.context.retrained_models().losses(queries)).all()
        return super().attribute(queries)


def test_a_method_that_is_given_retrained_models_has_them_trained(
    tiny_settings: Settings, runtime: Runtime, tmp_path: Path, trained: list[tuple[int, ...]]
) -> None:
    settings = replace(
        tiny_settings,
        training=replace(tiny_settings.training, epochs=1),
        ground_truth=replace(tiny_settings.ground_truth, num_subsets=8, num_seeds=1),
    )
    config = Config("tiny", "smoke", TinyData, {}, settings, [MethodConfig("Retrained", Retrained, {})], {})
    asked = RemovalSettings(num_groups=2, group_size=2, num_removed=(4,), num_seeds=1)
    outcome = run(config, asked, runtime, tmp_path / "results", silent_progress)
    assert not outcome.skipped
    assert outcome.records[-1].method == "Retrained"


def test_a_clip_model_that_is_none_is_known_before_anything_is_trained(
    tiny_settings: Settings, runtime: Runtime, tmp_path: Path, trained: list[tuple[int, ...]]
) -> None:
    config = Config("tiny", "smoke", TinyData, {}, tiny_settings, [MethodConfig("ByQuery", ByQuery, {})], {})
    asked = RemovalSettings(num_groups=2, group_size=2, num_removed=(4,), num_seeds=1)
    with pytest.raises(UsageError, match="ViT-B-23"):
        run(config, asked, runtime, tmp_path / "results", silent_progress, Clip("ViT-B-23"))
    assert len(trained) <= 1  # the target model, which the queries come from
