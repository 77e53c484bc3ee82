from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny_data import TinyData
from torch import Tensor

from attribench import Access, AttributionMethod, Queries, load_method
from attribench.computing.progress import silent_progress
from attribench.configuration.options import option_names
from attribench.configuration.protocol import ProtocolName
from attribench.configuration.resolution import Config, MethodConfig
from attribench.errors import UsageError
from attribench.methods.nda import NDA
from attribench.settings import Runtime, Settings
from attribench.workflows.benchmark import run
from attribench.workflows.opening import open_experiment
from attribench.workflows.tuning import tune

pytestmark = pytest.mark.slow


class Oracle(AttributionMethod):
    """Knows the ground truth, and tells it for one half of the queries and its opposite for the other.

    Args:
        right_for: the half it is right for.
    """

    access = Access.DATA
    search_space: ClassVar[Mapping[str, Any]] = {"right_for": ["reporting", "choosing"]}
    scores: ClassVar[dict[str, Tensor]] = {}
    half: ClassVar[dict[str, str]] = {}

    def __init__(self, right_for: str = "reporting") -> None:
        self.right_for = right_for

    def attribute(self, queries: Queries) -> Tensor:
        sign = [1.0 if self.half.get(i, self.right_for) == self.right_for else -1.0 for i in queries.ids]
        return torch.stack([self.scores[i] for i in queries.ids]) * torch.tensor(sign)[:, None]


class Learner(AttributionMethod):
    """Learns from retrained models.

    Args:
        sign: 1 to learn what they say, -1 for the opposite.
    """

    access = Access.RETRAINED
    search_space: ClassVar[Mapping[str, Any]] = {"sign": [-1.0, 1.0]}

    def __init__(self, sign: float = -1.0) -> None:
        self.sign = sign

    #: Masks of the models that it was given.
    given: ClassVar[list[Tensor]] = []

    def attribute(self, queries: Queries) -> Tensor:
        models = self.context.retrained_models()
        self.given.append(models.masks)
        masks = models.masks.double()
        losses = models.losses(queries)
        return -self.sign * (losses - losses.mean(0)).T @ (masks - masks.mean(0))


@pytest.fixture
def config(tiny_settings: Settings) -> Config:
    truth = replace(tiny_settings.ground_truth, num_subsets=8, num_seeds=1)
    settings = replace(tiny_settings, ground_truth=truth, training=replace(tiny_settings.training, epochs=1))
    method = MethodConfig("oracle", Oracle, {"right_for": "reporting"})
    return Config("tiny", "smoke", TinyData, {"seed": 0}, settings, [method], {})


@pytest.fixture
def planted(config: Config, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores whose sum over a subset is exactly minus its output, and the half each validation query is in."""
    experiment = open_experiment(config, runtime, silent_progress)
    experiment.prepare()
    scores: dict[str, Tensor] = {}
    for name in ("validation", "generation"):
        truth = experiment.ground_truth(name)
        solution = torch.linalg.lstsq(truth.masks.double(), -truth.outputs, driver="gelsd").solution
        scores.update(zip(experiment.queries(name).ids, solution.T, strict=True))
    ids = experiment.validation.ids
    half = {ids[i]: "choosing" for i in experiment.halves.choosing_queries}
    half |= {ids[i]: "reporting" for i in experiment.halves.reporting_queries}
    assert len(half) == len(ids), "the halves are disjoint and complete"
    monkeypatch.setattr(Oracle, "scores", scores)
    monkeypatch.setattr(Oracle, "half", half)


@pytest.mark.usefixtures("planted")
def test_the_strict_protocol_does_not_see_what_it_reports(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    choice, _ = tune(config, config.methods[0], runtime, tmp_path, "strict", silent_progress)
    by_option = {trial.options["right_for"]: trial.lds for trial in choice.trials}
    assert choice.options == {"right_for": "choosing"}
    assert by_option["choosing"] == pytest.approx(1.0)
    assert by_option["reporting"] == pytest.approx(-1.0)

    # Choosing on the reported half would have given the other option: there, the chosen one is wrong everywhere.
    (strict,) = run(config, runtime, tmp_path, silent_progress, protocol="strict", tuned=True).records
    (untuned,) = run(config, runtime, tmp_path, silent_progress, protocol="strict").records
    assert strict.results["validation"].lds == pytest.approx(-1.0)
    assert untuned.results["validation"].lds == pytest.approx(1.0)

    experiment = open_experiment(config, runtime, silent_progress)
    assert set(choice.query_ids).isdisjoint(strict.results["validation"].query_ids)
    assert set(choice.subsets) == set(experiment.halves.choosing_subsets)
    assert set(choice.subsets).isdisjoint(experiment.halves.reporting_subsets)
    assert len(strict.results["generation"].query_ids) == 5, "generated queries are all reported"
    assert (strict.protocol, strict.method) == ("strict", "oracle tuned")
    assert "a half: 3" in strict.tuned_on
    assert "a half: 4" in strict.tuned_on


@pytest.mark.usefixtures("planted")
def test_strict_begins_with_nothing_that_was_chosen(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    class Aided(Oracle):
        search_space: ClassVar[Mapping[str, Any]] = {"scale": [1.0]}

        def __init__(self, right_for: str = "reporting", scale: float = 2.0) -> None:
            super().__init__(right_for)

    chosen = {"right_for": "choosing", "scale": 2.0}
    method = MethodConfig(
        "aided", Aided, chosen, tuned_on="all", configured=chosen, unchosen={"right_for": "reporting"}
    )
    strict, _ = tune(config, method, runtime, tmp_path, "strict", silent_progress)
    assert strict.options == {"right_for": "reporting", "scale": 1.0}
    standard, _ = tune(config, method, runtime, tmp_path, "standard", silent_progress)
    assert standard.options == {"right_for": "choosing", "scale": 1.0}


@pytest.mark.usefixtures("planted")
def test_strict_skips_what_was_chosen_on_all_queries(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    tuned = replace(config.methods[0], name="aided", tuned_on="all validation queries")
    both = replace(config, methods=[config.methods[0], tuned])
    outcome = run(both, runtime, tmp_path, silent_progress, protocol="strict")
    assert [record.method for record in outcome.records] == ["oracle"]
    (reason,) = outcome.skipped.values()
    assert "chosen on all validation queries" in reason
    assert "attribench tune --method aided --dataset tiny --preset smoke --protocol strict" in reason
    assert "--protocol strict --tuned" in reason
    assert list(outcome.skipped) == ["aided"]
    assert len(run(both, runtime, tmp_path, silent_progress).records) == 2, "the standard protocol takes it"
    tune(config, tuned, runtime, tmp_path, "strict", silent_progress)
    untunable = replace(tuned, cls=type("Untunable", (Oracle,), {"search_space": {}}))
    (reason,) = run(
        replace(config, methods=[untunable]), runtime, tmp_path, silent_progress, protocol="strict"
    ).skipped.values()
    assert "tune" not in reason.replace("cannot be tuned", "")
    assert "all set by hand" in reason
    alone = replace(config, methods=[tuned])
    assert run(alone, runtime, tmp_path, silent_progress, protocol="strict", tuned=True).records


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("by_hand", [False, True])
def test_an_earlier_choice_does_not_limit_what_is_tried(
    config: Config, runtime: Runtime, tmp_path: Path, by_hand: bool
) -> None:
    shown: list[Mapping[str, Any]] = []

    class Listed(Oracle):
        search_space: ClassVar[Mapping[str, Any]] = {}
        search_from: ClassVar[Mapping[str, Any]] = {"halves": ("reporting", "choosing")}

        def __init__(self, right_for: str = "reporting", halves: list[str] | None = None) -> None:
            super().__init__((halves or [right_for])[0])

        @classmethod
        def search(cls, evaluate: Any, options: Mapping[str, Any]) -> dict[str, Any]:
            shown.append(options)
            return max(({"halves": [half]} for half in options["halves"]), key=evaluate)

    options = {"right_for": "reporting", "halves": ["reporting"]}
    method = MethodConfig("listed", Listed, options, fixed=("halves",) if by_hand else ())
    choice, _ = tune(config, method, runtime, tmp_path, "strict", silent_progress)
    assert [trial.options["halves"] for trial in choice.trials] == [[half] for half in shown[0]["halves"]]
    assert choice.options["halves"] == (["reporting"] if by_hand else ["choosing"])


@pytest.mark.usefixtures("planted")
def test_a_choice_is_bound_to_its_setting_and_protocol(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="attribench tune --method oracle"):
        run(config, runtime, tmp_path, silent_progress, tuned=True)
    choice, _ = tune(config, config.methods[0], runtime, tmp_path, "standard", silent_progress)
    assert len(choice.query_ids) == 6
    assert choice.subsets == list(range(8))
    (record,) = run(config, runtime, tmp_path, silent_progress, tuned=True).records
    assert "all: 6" in record.tuned_on
    with pytest.raises(UsageError, match="protocol strict"):
        run(config, runtime, tmp_path, silent_progress, tuned=True, protocol="strict")
    other = replace(config, data={"seed": 1})
    with pytest.raises(UsageError, match="other data or settings"):
        run(other, runtime, tmp_path, silent_progress, tuned=True)


@pytest.mark.usefixtures("planted")
def test_what_is_set_by_hand_wins_over_what_was_chosen_and_is_named(
    config: Config, runtime: Runtime, tmp_path: Path
) -> None:
    (method,) = config.methods
    choice, _ = tune(config, method, runtime, tmp_path, "standard", silent_progress)
    (chosen,) = choice.options
    other = next(value for value in method.cls.search_space[chosen] if value != choice.options[chosen])
    by_hand = replace(method, options={**method.options, chosen: other}, fixed=(chosen,))
    (record,) = run(replace(config, methods=(by_hand,)), runtime, tmp_path, silent_progress, tuned=True).records
    assert record.options[chosen] == other
    assert record.method == f"{method.name} tuned[{chosen}={other}]"
    assert not record.tuned_on  # nothing of what was chosen is left
    same = replace(method, fixed=(chosen,), options={**method.options, **choice.options})
    (record,) = run(replace(config, methods=(same,)), runtime, tmp_path, silent_progress, tuned=True).records
    assert record.method == f"{method.name} tuned"
    assert record.tuned_on == choice.tuned_on


@pytest.mark.usefixtures("planted")
def test_a_method_with_nothing_to_tune_runs_beside_tuned_ones(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    class Plain(Oracle):
        search_space: ClassVar[Mapping[str, Any]] = {}

    tune(config, config.methods[0], runtime, tmp_path, "standard", silent_progress)
    both = replace(config, methods=(*config.methods, MethodConfig("plain", Plain, {})))
    records = run(both, runtime, tmp_path, silent_progress, tuned=True).records
    assert {record.method: bool(record.tuned_on) for record in records} == {"oracle tuned": True, "plain": False}


def test_a_method_without_a_search_space_says_so(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    class Plain(Oracle):
        search_space: ClassVar[Mapping[str, Any]] = {}

    with pytest.raises(UsageError, match="nothing to tune"):
        tune(config, MethodConfig("plain", Plain, {}), runtime, tmp_path, "standard", silent_progress)


@pytest.mark.usefixtures("planted")
def test_what_the_caller_set_is_not_searched(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    class Two(Oracle):
        search_space: ClassVar[Mapping[str, Any]] = {"scale": [1.0, 2.0], **Oracle.search_space}

        def __init__(self, right_for: str = "reporting", scale: float = 1.0) -> None:
            super().__init__(right_for)

    free = MethodConfig("two", Two, {"right_for": "choosing", "scale": 2.0})
    choice, _ = tune(config, free, runtime, tmp_path, "strict", silent_progress)
    assert choice.options == {"right_for": "choosing", "scale": 1.0}
    assert len(choice.trials) == 4
    held = replace(free, options={"right_for": "reporting", "scale": 2.0}, fixed=("right_for",))
    choice, _ = tune(config, held, runtime, tmp_path, "strict", silent_progress)
    assert choice.options == {"right_for": "reporting", "scale": 1.0}
    assert [trial.options["scale"] for trial in choice.trials] == [1.0, 2.0]


def test_options_that_are_searched_together_cannot_be_held(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    options = {"timesteps": [100, 200], "patch_size": [3, 5], "low_resolution_patch_size": None}
    method = MethodConfig("nda", NDA, options, fixed=("patch_size",))
    with pytest.raises(UsageError, match=r"leave --method\.patch_size away"):
        tune(config, method, runtime, tmp_path, "standard", silent_progress)


def test_the_default_search_is_the_full_grid_and_takes_the_first_of_equals() -> None:
    class Gridded(Oracle):
        search_space: ClassVar[Mapping[str, Any]] = {"a": [1, 2, 3], "b": [10, 20]}

    seen: list[dict[str, Any]] = []

    def evaluate(options: Mapping[str, Any]) -> float:
        seen.append(dict(options))
        return float(options["a"] >= 2)

    assert Gridded.search(evaluate, {}) == {"a": 2, "b": 10}
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["nda", "score-machine", "nda-plus"])
def test_methods_by_timestep_have_a_list_of_them_to_try(name: str) -> None:
    cls = load_method(name)
    assert list(cls.search_from["timesteps"])[-1] >= 500
    for option, values in cls.search_from.items():
        assert len(values) >= 9
        assert option in option_names(cls)


def test_nda_searches_each_timestep_on_its_own_then_the_largest_then_top_k() -> None:
    from attribench.methods.nda import NDA

    best = {100: (5, 6, 0.5), 200: (9, 14, 1.0), 300: (3, 4, 0.0)}

    def evaluate(options: Mapping[str, Any]) -> float:
        NDA(**options)  # every candidate is valid
        total = 0.0
        columns = ("timesteps", "patch_size", "low_resolution_patch_size", "alpha")
        for t, size, low, alpha in zip(*(options[name] for name in columns), strict=True):
            p, q, a = best[t]
            total -= alpha * abs(size - p) + (1 - alpha) * abs(low - q) + 0.01 * abs(alpha - a)
            total += 100 if t <= 200 else -5
        return total - 0.001 * (options.get("top_k", 100) != 10)

    found = NDA.search(evaluate, {"timesteps": [300, 100, 200], "top_k": 100})
    assert found == {
        "timesteps": [100, 200],
        "patch_size": [5, 9],
        "low_resolution_patch_size": [6, 14],
        "alpha": [0.5, 1.0],
        "top_k": 10,
    }


@pytest.mark.parametrize("good", [[300], [200, 300], [100], [100, 200, 300], [200]])
def test_nda_is_never_tuned_to_less_than_what_it_tried(good: list[int]) -> None:
    """Small timesteps may mislead: then those from one on are taken, or one alone."""
    tried: list[tuple[float, dict[str, Any]]] = []

    def evaluate(options: Mapping[str, Any]) -> float:
        used = [t in good for t in options["timesteps"]]
        tried.append((sum(used) - 2.0 * (len(used) - sum(used)), dict(options)))
        return tried[-1][0]

    found = load_method("nda").search(evaluate, {"timesteps": [100, 200, 300], "top_k": 100})
    assert found["timesteps"] == good
    assert evaluate(found) == max(lds for lds, _ in tried)


@pytest.mark.parametrize("protocol", ["standard", "strict"])
def test_what_learns_from_retrained_models_is_tuned_on_those_it_is_not_given(
    protocol: ProtocolName, config: Config, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = replace(config.settings.ground_truth, num_subsets=16)
    config = replace(config, settings=replace(config.settings, ground_truth=truth))
    method = MethodConfig("learner", Learner, {"sign": -1.0})
    config = replace(config, methods=[method])
    monkeypatch.setattr(Learner, "given", [])
    choice, _ = tune(config, method, runtime, tmp_path, protocol, silent_progress)
    experiment = open_experiment(config, runtime, silent_progress)
    allowed = {tuple(mask) for mask in experiment.masks[choice.subsets].tolist()}
    assert len(allowed) == (16 if protocol == "standard" else 8)
    assert {tuple(mask) for masks in Learner.given for mask in masks.tolist()} == allowed
    by_sign = {trial.options["sign"]: trial.lds for trial in choice.trials}
    assert by_sign[1.0] == pytest.approx(-by_sign[-1.0])
    assert choice.lds == max(by_sign.values())
    (record,) = run(config, runtime, tmp_path, silent_progress, tuned=True, protocol=protocol).records
    if protocol == "standard":
        assert record.results["validation"].lds == pytest.approx(choice.lds)
