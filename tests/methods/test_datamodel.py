"""Datamodels and empirical influence against refits one by one, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from attribench import Access, AttributionContext, AttributionMethod, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AccessError, UsageError
from attribench.method import RetrainedModels, start
from attribench.methods.datamodel import Datamodel
from attribench.methods.empirical_influence import EmpiricalInfluence
from attribench.methods.random import Random
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method

MODELS, TRAIN, QUERIES = 14, 20, 3


@pytest.fixture(scope="module")
def retrained() -> RetrainedModels:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(MODELS, TRAIN, generator=generator) < 0.5
    masks[:, 3], masks[:, 4] = True, False
    losses = torch.rand(MODELS, QUERIES, dtype=torch.float64, generator=generator)
    return RetrainedModels(masks, lambda queries: losses[:, [int(name) for name in queries.ids]])


def context(retrained: RetrainedModels | None, tmp_path: Path, access: Access = Access.RETRAINED) -> AttributionContext:
    train = ImageSet(torch.zeros(TRAIN, 1, 2, 2, dtype=torch.uint8), tuple(str(i) for i in range(TRAIN)))
    store = ArtifactStore(tmp_path)
    return AttributionContext(train, NoiseSchedule(), torch.device("cpu"), 0, store, access, retrained=retrained)


def scores(method: AttributionMethod, retrained: RetrainedModels, tmp_path: Path) -> torch.Tensor:
    start(method, context(retrained, tmp_path))
    queries = Queries(torch.zeros(QUERIES, 1, 2, 2, dtype=torch.uint8), tuple(str(i) for i in range(QUERIES)))
    return method.attribute(queries)


def queries() -> Queries:
    return Queries(torch.zeros(QUERIES, 1, 2, 2, dtype=torch.uint8), tuple(str(i) for i in range(QUERIES)))


def kernel_scale(members: np.ndarray) -> float:
    centred = members - members.mean(0)
    return float(np.trace(centred @ centred.T) / len(members))


@pytest.mark.parametrize("count", [None, 9])
def test_a_datamodel_is_a_ridge_regression_with_an_intercept(
    retrained: RetrainedModels, tmp_path: Path, count: int | None
) -> None:
    found = scores(Datamodel(count, 0.3), retrained, tmp_path)
    members, losses = retrained.masks[:count].double().numpy(), retrained.losses(queries())[:count].numpy()
    fitted = Ridge(alpha=0.3 * kernel_scale(members)).fit(members, -losses)
    assert np.allclose(found.numpy(), fitted.coef_, rtol=1e-9, atol=1e-12)


def test_a_query_s_regularization_is_what_predicts_best_a_model_that_is_left_out(
    retrained: RetrainedModels, tmp_path: Path
) -> None:
    choices = (1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    members, losses = retrained.masks.double().numpy(), retrained.losses(queries()).numpy()
    found = scores(Datamodel(), retrained, tmp_path)
    chosen = set()
    for query in range(QUERIES):
        errors = []
        for choice in choices:
            alpha, missed = choice * kernel_scale(members), []
            for left in range(MODELS):
                others = np.arange(MODELS) != left
                fitted = Ridge(alpha=alpha).fit(members[others], -losses[others, query])
                missed.append(float(fitted.predict(members[[left]])[0]) + losses[left, query])
            errors.append(np.mean(np.square(missed)))
        best = choices[int(np.argmin(errors))]
        chosen.add(best)
        fitted = Ridge(alpha=best * kernel_scale(members)).fit(members, -losses[:, query])
        assert np.allclose(found[query].numpy(), fitted.coef_, rtol=1e-9, atol=1e-12)
    assert chosen <= set(choices)


def test_empirical_influence_is_a_difference_of_means(retrained: RetrainedModels, tmp_path: Path) -> None:
    found = scores(EmpiricalInfluence(), retrained, tmp_path)
    losses = retrained.losses(queries())
    for query in range(QUERIES):
        for image in range(TRAIN):
            inside = [losses[m, query].item() for m in range(MODELS) if retrained.masks[m, image]]
            outside = [losses[m, query].item() for m in range(MODELS) if not retrained.masks[m, image]]
            expected = np.mean(outside) - np.mean(inside) if inside and outside else 0.0
            assert found[query, image].item() == pytest.approx(expected, abs=1e-12)
    assert found[:, 3:5].abs().max() == 0.0


@pytest.mark.parametrize("method", [Datamodel, EmpiricalInfluence])
def test_they_conform(method: type[AttributionMethod]) -> None:
    assert check_method(method) is None


def test_too_few_models_are_refused(retrained: RetrainedModels, tmp_path: Path) -> None:
    assert Datamodel(14).skip_reason(context(retrained, tmp_path)) is None
    assert Datamodel(15).skip_reason(context(retrained, tmp_path)) == "it needs 15 retrained models, and is given 14."
    with pytest.raises(UsageError, match="num_retrainings must be at least 4"):
        EmpiricalInfluence(3)
    with pytest.raises(UsageError, match="regularization must be positive"):
        Datamodel(regularization=0.0)


def test_a_method_that_declares_less_gets_no_retrained_models(retrained: RetrainedModels, tmp_path: Path) -> None:
    method = Random()
    start(method, context(retrained, tmp_path, Access.CHECKPOINTS))
    with pytest.raises(AccessError, match=r"retrained_models\(\) needs access = Access.RETRAINED"):
        method.context.retrained_models()
