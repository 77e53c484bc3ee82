"""What is known to be wrong is said before any model is trained."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_data import TinyData
from torch import Tensor

from attribench import Access, AttributionMethod, ImageSet, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.errors import AttribenchError, UsageError
from attribench.records.lds import load_records
from attribench.reporting.collection import Collection, Draughtsman
from attribench.reporting.formats import FORMATS, render
from attribench.reporting.pages.report import report_page
from attribench.reporting.paper import paper_tables
from attribench.reporting.tables import leaderboards
from attribench.settings import Runtime, Settings
from attribench.truth.experiment import Experiment
from attribench.workflows.attribution import attribute
from attribench.workflows.benchmark import run
from attribench.workflows.counterfactual import run as counterfactual
from attribench.workflows.explanation import explain_query
from attribench.workflows.own_images import Request
from attribench.workflows.sweep import Axis, sweep
from attribench.workflows.tuning import tune


class Norm(enum.Enum):
    FIRST = 1.0
    SECOND = 2.0


class Alike(AttributionMethod):
    """Minus a distance of pixels.

    Args:
        norm: of the difference.
        folder: not used.
        kept: not used.
        dtype: to compute in.
        limit: larger distances count as this one.
    """

    access = Access.DATA
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"limit": [float("inf"), 3.0], "norm": [Norm.FIRST]}

    def __init__(
        self,
        norm: Norm = Norm.SECOND,
        folder: Path = Path("here"),
        kept: frozenset[int] = frozenset({2, 1}),
        dtype: torch.dtype = torch.float64,
        limit: float = float("inf"),
    ) -> None:
        if limit <= 0:
            raise UsageError("limit must be positive.")
        self.options = (norm, folder, kept, dtype, limit)

    def attribute(self, queries: Queries) -> Tensor:
        norm, _, _, dtype, limit = self.options
        first, second = (images.unit_range().flatten(1).to(dtype) for images in (queries, self.context.train))
        return -torch.cdist(first, second, p=norm.value).clamp(max=limit)


class Other(Alike):
    """Refuses to run here, like a method without its weights."""

    def skip_reason(self, context: Any) -> str | None:
        return "there are no weights"


class BadGrid(Alike):
    """Has a search space it does not take."""

    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"limit": [1.0, -1.0]}


class Undeclared(Alike):
    """Does not say what it looks at."""

    access = None  # type: ignore[assignment]


class OneQuery(TinyData):
    """Has one validation query."""

    def load(self) -> tuple[ImageSet, ImageSet]:
        train, validation = super().load()
        return train, validation.select([0])


@pytest.fixture
def config(tiny_settings: Settings) -> Config:
    truth = replace(tiny_settings.ground_truth, num_subsets=4, num_seeds=2, num_noise_draws=1)
    training = replace(tiny_settings.training, epochs=1)
    moved = replace(tiny_settings.counterfactual, num_queries=2, num_removed=2, num_seeds=1)
    settings = replace(tiny_settings, ground_truth=truth, training=training, counterfactual=moved)
    return Config("tiny", "smoke", TinyData, {}, settings, [method()], {})


def method(cls: type[AttributionMethod] = Alike, **changed: Any) -> MethodConfig:
    defaults = dict(zip(("norm", "folder", "kept", "dtype", "limit"), Alike().options, strict=True))
    return MethodConfig("alike", cls, {**defaults, **changed}, changed)


def test_one_query_and_every_type_of_option_make_a_record_that_everything_reads(
    config: Config, runtime: Runtime, tmp_path: Path
) -> None:
    generation = replace(config.settings.generation, num_images=1)
    config = replace(config, data_class=OneQuery, settings=replace(config.settings, generation=generation))
    choice, _ = tune(config, config.methods[0], runtime, tmp_path, "standard", silent_progress)
    assert choice.options["norm"] == "FIRST"
    assert choice.options["limit"] in (".inf", 3.0)
    (tuned,) = run(config, runtime, tmp_path, silent_progress, tuned=True).records
    assert tuned.options == choice.options
    options = {"folder": Path("x"), "dtype": torch.float32, "kept": frozenset({3}), "limit": 2.0, "norm": Norm.FIRST}
    (changed,) = run(replace(config, methods=[method(**options)]), runtime, tmp_path, silent_progress).records
    record, _ = sweep(config, runtime, tmp_path, silent_progress, Axis("limit", [float("inf"), 3.0]))
    assert [point.value for point in record.points] == [".inf", 3.0]

    assert {found.method: found for found in load_records(tmp_path)} == {tuned.method: tuned, changed.method: changed}
    for found in (tuned, changed):
        for result in found.results.values():
            assert (result.interval, result.standard_error, len(result.per_query)) == (None, None, 1)
            assert result.ceiling is not None
            assert result.ceiling.interval is None
            assert result.text == f"{100 * result.lds:.1f}"
    tables = leaderboards([tuned, changed], tmp_path)
    assert "One validation and one generation query alone" in render(tables, "markdown")
    collection = Collection(tmp_path, None, None)
    for style in FORMATS:
        assert render([*tables, *paper_tables(collection.boards)], style)
    assert all(drawing.draw() is not None for drawing in collection.drawings())
    assert "alike" in report_page(collection, tmp_path / "report.html", Draughtsman())


Act = Callable[[Config, Runtime, Path], object]


def benchmark(config: Config, runtime: Runtime, folder: Path, **how: Any) -> object:
    return run(config, runtime, folder, silent_progress, **how)


def tuning(config: Config, runtime: Runtime, folder: Path, protocol: Any = "standard") -> object:
    return tune(config, config.methods[0], runtime, folder, protocol, silent_progress)


def sweeping(config: Config, runtime: Runtime, folder: Path) -> object:
    return sweep(config, runtime, folder, silent_progress, Axis("dtype", ["torch.float32", "torch.float64"]))


def moving(config: Config, runtime: Runtime, folder: Path) -> object:
    return counterfactual(config, runtime, folder, silent_progress)


def own_folders(config: Config, runtime: Runtime, folder: Path) -> object:
    return list(attribute(Request(folder, folder), config.methods[:1], runtime, silent_progress))


def explaining(
    config: Config, runtime: Runtime, folder: Path, query_set: str = "generation", query: str = "0"
) -> object:
    return explain_query(config, runtime, query_set, query, 1, silent_progress)


class Explains(Alike):
    """Knows where."""

    def explain(self, query: Queries, indices: Sequence[int]) -> list[Any]:
        raise NotImplementedError


def with_settings(config: Config, section: str, **changes: Any) -> Config:
    return replace(
        config, settings=replace(config.settings, **{section: replace(getattr(config.settings, section), **changes)})
    )


@pytest.mark.parametrize("act", [benchmark, tuning, sweeping, moving, own_folders, explaining])
@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([method(Explains, folder=len)], r"method\.folder.* builtin_function_or_method"),
        ([method(Explains, limit=-1.0)], "limit must be positive"),
        ([method(Undeclared)], "must declare"),
    ],
)
def test_bad_methods_are_refused_before_any_work(
    config: Config, runtime: Runtime, tmp_path: Path, act: Act, methods: list[MethodConfig], message: str
) -> None:
    with pytest.raises(AttribenchError, match=message):
        act(replace(config, methods=methods), runtime, tmp_path)
    assert not Path(runtime.workdir).exists()


@pytest.mark.parametrize(
    ("act", "change", "message"),
    [
        (benchmark, lambda c: replace(c, methods=[method(), method(Other)]), "2 methods are called 'alike'"),
        (moving, lambda c: replace(c, methods=[method(), method(Other)]), "2 methods are called 'alike'"),
        (benchmark, lambda c: replace(c, data={"seed": len}), r"--data\.seed is a"),
        (tuning, lambda c: replace(c, methods=[method(BadGrid)]), "limit must be positive"),
        (tuning, lambda c: replace(c, methods=[method(Other)]), "there are no weights"),
        (sweeping, lambda c: replace(c, methods=[method(Other)]), "there are no weights"),
        (explaining, lambda c: replace(c, methods=[method()]), "no evidence by region"),
        (lambda *a: tuning(*a, protocol="strict"), lambda c: replace(c, data_class=OneQuery), "strict protocol halves 1"),
        (lambda *a: benchmark(*a, protocol="strict"), lambda c: replace(c, data_class=OneQuery), "strict protocol halves 1"),
        (benchmark, lambda c: with_settings(c, "ground_truth", num_subsets=16_001), "at most 16000"),
        (moving, lambda c: with_settings(c, "generation", num_images=1), "more than the 1 generated"),
        (moving, lambda c: with_settings(c, "counterfactual", num_removed=24), "would leave nothing of 24"),
        *(
            (lambda *a, q=q: explaining(*a, query=q), lambda c: replace(c, methods=[method(Explains)]), "no query")
            for q in ("5", "-1", "generation-5", "tiny-24")
        ),
        (lambda *a: explaining(*a, query_set="valdation"), lambda c: replace(c, methods=[method(Explains)]), "Did you mean"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(
    config: Config, runtime: Runtime, tmp_path: Path, act: Act, change: Callable[[Config], Config], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        act(change(config), runtime, tmp_path)
    assert not Path(runtime.workdir).exists()


@pytest.mark.parametrize("act", [benchmark, moving])
def test_nothing_is_trained_where_no_method_can_run(config: Config, runtime: Runtime, tmp_path: Path, act: Act) -> None:
    outcome: Any = act(replace(config, methods=[method(Other)]), runtime, tmp_path)
    assert (outcome.records, outcome.skipped) == ([], {"alike": "there are no weights"})
    assert not Path(runtime.workdir).exists()


def test_generated_queries_have_the_ids_that_are_announced(config: Config, runtime: Runtime) -> None:
    experiment = Experiment(TinyData(), config.settings, runtime)
    assert experiment.query_ids("validation") == experiment.validation.ids
    assert experiment.query_ids("generation") == tuple(f"generation-{i}" for i in range(5))
