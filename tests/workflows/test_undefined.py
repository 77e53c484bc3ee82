"""Methods that are defined on some queries only: missing cells with their reason, and the other cells as ever."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from tiny_data import TinyData
from torch import Tensor

from attribench import Access, AttributionMethod, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.errors import UsageError
from attribench.records.lds import load_record
from attribench.reporting.collection import Collection, Draughtsman
from attribench.reporting.formats import render
from attribench.reporting.pages.report import report_page
from attribench.reporting.paper import paper_tables
from attribench.reporting.tables import leaderboards
from attribench.settings import Runtime, Settings
from attribench.workflows import counterfactual as moving
from attribench.workflows.attribution import attribute
from attribench.workflows.benchmark import run
from attribench.workflows.explanation import explain_query
from attribench.workflows.own_images import Request
from attribench.workflows.sweep import Axis, sweep
from attribench.workflows.tuning import tune

REASON = "nobody sampled them"


class Alike(AttributionMethod):
    """Products of pixels."""

    access = Access.DATA
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"sign": [1.0, -1.0]}
    asked: ClassVar[list[str]] = []

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def attribute(self, queries: Queries) -> Tensor:
        self.asked.append(queries.name)
        first, second = (images.unit_range().double().flatten(1) for images in (queries, self.context.train))
        return self.sign * first @ second.T

    def explain(self, query: Queries, indices: Sequence[int]) -> list[Any]:
        raise NotImplementedError


class Own(Alike):
    """Defined on what the model sampled."""

    def undefined_on(self, queries: Queries) -> str | None:
        return None if queries.sampling else REASON


class HeldOut(Alike):
    """Defined on the rest."""

    def undefined_on(self, queries: Queries) -> str | None:
        return "somebody sampled them" if queries.sampling else None


class Nowhere(Alike):
    """Defined on nothing."""

    def undefined_on(self, queries: Queries) -> str | None:
        return "never"


def methods(*classes: type[Alike]) -> list[MethodConfig]:
    return [MethodConfig(cls.__name__.lower(), cls, {"sign": 1.0}) for cls in classes]


@pytest.fixture
def config(tiny_settings: Settings) -> Config:
    truth = replace(tiny_settings.ground_truth, num_subsets=4, num_seeds=1, num_noise_draws=1)
    training = replace(tiny_settings.training, epochs=1)
    moved = replace(tiny_settings.counterfactual, num_queries=2, num_removed=2, num_seeds=1)
    settings = replace(tiny_settings, ground_truth=truth, training=training, counterfactual=moved)
    return Config("tiny", "smoke", TinyData, {}, settings, methods(Own), {})


@pytest.mark.slow
def test_a_run_leaves_the_cell_missing_and_says_why(
    config: Config, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, methods=methods(Alike, Own, HeldOut, Nowhere))
    outcome = run(config, runtime, tmp_path, silent_progress)
    records = {record.method: record for record in outcome.records}
    assert {name: set(record.results) for name, record in records.items()} == {
        "alike": {"validation", "generation"},
        "own": {"generation"},
        "heldout": {"validation"},
    }
    assert records["own"].undefined == {"validation": REASON}
    assert records["alike"].undefined == {}
    assert records["own"].results["generation"].lds == records["alike"].results["generation"].lds
    assert outcome.skipped == {"nowhere": "validation queries: never; generation queries: never"}
    assert load_record(tmp_path / records["own"].path) == records["own"]

    (table,) = leaderboards(outcome.records, tmp_path)
    assert [row[0] for row in table.rows[:3]] == ["alike", "own", "heldout"]
    assert table.rows[1][1:3] == ["—", "—"]
    note = f"No cell on validation queries, on which it is not defined: own: {REASON}."
    for style in ("terminal", "markdown", "latex"):
        assert note in " ".join(render([table], style).split())  # type: ignore[arg-type]
    collection = Collection(tmp_path, None, None)
    (paper,) = paper_tables(collection.boards)
    assert note in paper.notes
    page = report_page(collection, tmp_path / "report.html", Draughtsman())
    assert f'class="absent" title="{REASON}">not defined</td>' in page
    assert note in page
    assert all(drawing.draw() is not None for drawing in collection.drawings())

    monkeypatch.setattr(Alike, "asked", [])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json") if "runs" not in path.parts}
    run(config, runtime, tmp_path, silent_progress)
    assert Alike.asked == []  # nothing is scored again
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_a_sweep_has_points_where_it_is_defined(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    record, _ = sweep(config, runtime, tmp_path, silent_progress, Axis("sign", [1.0, -1.0]))
    assert [set(point.results) for point in record.points] == [{"generation"}] * 2
    assert record.undefined == {"validation": REASON}
    assert record.num_queries == {"generation": 5}
    assert all(drawing.draw() is not None for drawing in Collection(tmp_path).drawings())
    with pytest.raises(UsageError, match="nowhere cannot run here: never"):
        sweep(replace(config, methods=methods(Nowhere)), runtime, tmp_path, silent_progress, Axis("sign", [1.0]))


@pytest.mark.slow
def test_options_are_chosen_on_the_queries_it_is_defined_on(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    choice, path = tune(config, config.methods[0], runtime, tmp_path, "standard", silent_progress)
    assert choice.tuned_on == "generation queries (all: 5) and subsets (all: 4)"
    assert choice.query_ids == [f"generation-{i}" for i in range(5)]
    assert choice.lds == max(trial.lds for trial in choice.trials)
    (tuned,) = run(config, runtime, tmp_path, silent_progress, tuned=True).records
    assert tuned.tuned_on == choice.tuned_on
    assert tuned.results["generation"].lds == pytest.approx(choice.lds)
    content = json.loads(path.read_text())
    del content["query_set"]  # as choices were filed before
    path.write_text(json.dumps(content))
    (old,) = run(config, runtime, tmp_path, silent_progress, tuned=True).records
    assert old.tuned_on.startswith("validation queries (all")
    with pytest.raises(UsageError, match="nowhere is not defined on the query set 'generation': never"):
        tune(config, methods(Nowhere)[0], runtime, tmp_path, "standard", silent_progress)


def test_the_strict_protocol_chooses_on_validation_queries_alone(
    config: Config, runtime: Runtime, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="own is not defined on them: nobody sampled them"):
        tune(config, config.methods[0], runtime, tmp_path, "strict", silent_progress)
    assert not list(Path(runtime.workdir).rglob("models"))


def test_what_it_is_not_defined_on_is_not_explained(config: Config, runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="own is not defined on the query set 'validation': nobody sampled them"):
        explain_query(config, runtime, "validation", "0", 1, silent_progress)


def test_own_folders_are_refused_with_the_reason(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    for folder in ("train", "queries"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / folder / "a.png")
    request = Request(tmp_path / "train", tmp_path / "queries", image_size=8)
    with pytest.raises(UsageError, match="own is not defined on the query set 'queries': nobody sampled them"):
        list(attribute(request, config.methods[:1], runtime, silent_progress))


@pytest.mark.slow
def test_a_counterfactual_skips_what_is_not_defined_on_generated_queries(
    config: Config, runtime: Runtime, tmp_path: Path
) -> None:
    outcome = moving.run(replace(config, methods=methods(Own, HeldOut)), runtime, tmp_path, silent_progress)
    assert [record.method for record in outcome.records] == ["control", "own"]
    assert outcome.skipped == {"heldout": "somebody sampled them"}
