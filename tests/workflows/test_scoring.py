"""A method that is given retrained models never sees those it is judged on."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from scipy.stats import spearmanr

from attribench import Access, AttributionMethod, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import MethodConfig, resolve
from attribench.method import RetrainedModels
from attribench.settings import QUERY_SETS, Runtime
from attribench.truth import folds
from attribench.truth.experiment import Experiment
from attribench.workflows.evaluation import Evaluation
from attribench.workflows.opening import open_experiment
from attribench.workflows.scoring import Scoring, make_context, of_all_folds
from attribench.workflows.truths import with_shipped


class Spy(AttributionMethod):
    """Notes what it is given; its scores say what losses it has seen."""

    access = Access.RETRAINED
    given: ClassVar[list[RetrainedModels]] = []

    def attribute(self, queries: Queries) -> torch.Tensor:
        models = self.context.retrained_models()
        Spy.given.append(models)
        return -models.losses(queries).T @ models.masks.double()


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    config = with_shipped(resolve("digits", None, [], {}), silent_progress)
    return open_experiment(config, Runtime(workdir=str(tmp_path), accelerator="cpu"), silent_progress)


def test_each_fold_is_scored_without_its_own_models(experiment: Experiment) -> None:
    experiment.prepare()
    Spy.given.clear()
    config, method = MethodConfig("spy", Spy, {}), Spy()
    context = make_context(experiment, method, config)
    queries = {name: experiment.queries(name) for name in QUERY_SETS}
    scoring = Scoring.of(experiment, method, config, context)
    assert not scoring.complete(queries)
    scores = scoring.scores(queries)
    assert scoring.complete(queries)
    fold_of = torch.arange(64) % 4
    for name, found in scores.items():
        truth = experiment.ground_truth(name)
        assert found.shape == (4, 100, 500)
        for fold in range(4):
            others = fold_of != fold
            expected = -truth.outputs[others].T @ truth.masks[others].double()
            assert torch.allclose(found[fold], expected, rtol=1e-12)
        evaluation = Evaluation.of(experiment, name)
        per_query = evaluation.evaluate(found).per_query
        predicted = [found[fold] @ truth.masks[fold_of == fold].double().T for fold in range(4)]
        expected_lds = [
            sum(
                spearmanr(predicted[fold][query], -truth.outputs[fold_of == fold, query]).statistic for fold in range(4)
            )
            / 4
            for query in range(100)
        ]
        assert per_query == pytest.approx(expected_lds, abs=1e-9)
        assert torch.equal(of_all_folds(found), found.mean(0))
    for models in Spy.given:
        assert len(models) == 48
    seen = {tuple(map(tuple, models.masks.tolist())) for models in Spy.given}
    assert seen == {tuple(map(tuple, experiment.masks[fold_of != fold].tolist())) for fold in range(4)}


def test_scores_by_another_rule_of_folds_are_not_taken(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.prepare()
    queries = {name: experiment.queries(name) for name in QUERY_SETS}
    config, method = MethodConfig("spy", Spy, {}), Spy()
    Scoring.of(experiment, method, config, make_context(experiment, method, config)).scores(queries)
    monkeypatch.setattr(folds, "fold_of", lambda subset, count: subset * count // 64)
    again = Scoring.of(experiment, method, config, make_context(experiment, method, config))
    assert not again.complete(queries)
