"""The methods that share gradient features, each against NumPy on the features themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TinyModels
from torch import nn

from attribench import Access, AttributionContext, AttributionMethod, Queries
from attribench.configuration.resolution import resolve
from attribench.data import AttributionDataModule
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AccessError, AttribenchError, UsageError
from attribench.gradients.features import GradientFeatures
from attribench.gradients.options import FeatureOptions
from attribench.method import score, start
from attribench.methods.dtrak import DTRAK
from attribench.methods.gas import GAS
from attribench.methods.gradient import Gradient
from attribench.methods.relative_influence import RelativeInfluence
from attribench.methods.renormalized_influence import RenormalizedInfluence
from attribench.methods.tracincp import TracInCP
from attribench.methods.trak import TRAK
from attribench.settings import ModelSettings, Runtime, Settings
from attribench.store.artifacts import ArtifactStore
from attribench.store.shared import SharedStore
from attribench.testing import check_method
from attribench.truth.experiment import Experiment
from attribench.workflows.scoring import Scoring, make_context

pytestmark = pytest.mark.slow

METHODS = [Gradient, TracInCP, GAS, TRAK, DTRAK, RelativeInfluence, RenormalizedInfluence]
QUICK = {"num_timesteps": 1, "projection": "basic", "proj_dim": 16}


@pytest.fixture
def context(tiny_data: AttributionDataModule, tiny_model: ModelSettings, tmp_path: Path) -> AttributionContext:
    store = ArtifactStore(tmp_path)
    return AttributionContext(
        tiny_data.train, NoiseSchedule(), torch.device("cpu"), 42, store, Access.CHECKPOINTS, TinyModels(tiny_model)
    )


def scores_of(method: AttributionMethod, context: AttributionContext, queries: Queries) -> np.ndarray:
    start(method, replace(context, access=type(method).access))
    return score(method, queries).double().numpy()


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() < 1e-5 * np.abs(expected).max())


def test_every_method_equals_its_formula(context: AttributionContext, tiny_data: AttributionDataModule) -> None:
    queries = Queries.of(tiny_data.validation, "validation")

    def features(f: str, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        options = FeatureOptions(f, 1, "basic", 16)  # type: ignore[arg-type]
        found = GradientFeatures(context, options)
        sets = found.of(model, queries), found.of(model, context.train)
        return sets[0].load().double().numpy(), sets[1].load().double().numpy()

    def cosine(x: np.ndarray, phi: np.ndarray) -> np.ndarray:
        products: np.ndarray = x @ phi.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(phi, axis=1)
        return products

    def solved(phi: np.ndarray, share: float) -> np.ndarray:
        lam = share * np.mean(np.sum(phi**2, axis=1))
        result: np.ndarray = np.linalg.solve(phi.T @ phi + lam * np.eye(phi.shape[1]), phi.T)
        return result

    x, phi = features("loss", context.target_model())
    assert close(scores_of(Gradient("dot", **QUICK), context, queries), x @ phi.T)
    assert close(scores_of(Gradient("cosine", **QUICK), context, queries), cosine(x, phi))
    pairs = [features("loss", model) for model in context.checkpoints()]
    dots, cosines = [x @ phi.T for x, phi in pairs], [cosine(x, phi) for x, phi in pairs]
    assert close(scores_of(TracInCP(**QUICK), context, queries), np.mean(dots, axis=0))
    assert close(scores_of(GAS(**QUICK), context, queries), np.mean(cosines, axis=0))
    trak = x @ solved(phi, 0.3)
    assert close(scores_of(TRAK(regularization=0.3, **QUICK), context, queries), trak)
    relative = trak / np.linalg.norm(solved(phi, 0.3), axis=0)
    assert close(scores_of(RelativeInfluence(regularization=0.3, **QUICK), context, queries), relative)
    renormalized = trak / np.linalg.norm(phi, axis=1)
    assert close(scores_of(RenormalizedInfluence(regularization=0.3, **QUICK), context, queries), renormalized)
    x, phi = features("mean-squared-l2-norm", context.target_model())
    assert close(scores_of(DTRAK(regularization=0.3, **QUICK), context, queries), x @ solved(phi, 0.3))


@pytest.mark.parametrize("method", METHODS)
def test_conforms(method: type[AttributionMethod]) -> None:
    options = {"num_timesteps": 1} if method is DTRAK else QUICK  # without projection, and with
    assert check_method(method, **options) is None


def test_a_train_image_as_a_query_finds_itself(context: AttributionContext) -> None:
    queries = Queries(context.train.images[3:6], context.train.ids[3:6])
    for method in (Gradient(**QUICK), GAS(**QUICK), RelativeInfluence(**QUICK)):
        assert scores_of(method, context, queries).argmax(1).tolist() == [3, 4, 5]


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_fit_is_a_reason_to_skip(
    method: type[AttributionMethod], context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert method(**QUICK).skip_reason(context) is None  # type: ignore[call-arg]
    monkeypatch.setattr("attribench.gradients.budget.available_memory", lambda device: 10)
    reason = method(**QUICK).skip_reason(context)  # type: ignore[call-arg]
    assert reason is not None
    assert "(10 bytes) are available" in reason
    assert "trained model" in (method(**QUICK).skip_reason(replace(context, models=None)) or "")  # type: ignore[call-arg]


class Curious(AttributionMethod):
    """Declares that it needs no model, and asks for what was made from one."""

    access = Access.DATA

    def attribute(self, queries: Queries) -> torch.Tensor:
        self.context.shared_store()
        return torch.zeros(len(queries), len(self.context.train))


def test_a_data_method_cannot_reach_shared_features(
    tiny_data: AttributionDataModule, tiny_settings: Settings, runtime: Runtime
) -> None:
    with pytest.raises(AssertionError, match=r"access.*shared_store\(\) needs access = Access.MODEL"):
        check_method(Curious)
    config = resolve("digits", "smoke", ["pixel", "trak"], {}).methods
    experiment = Experiment(tiny_data, tiny_settings, runtime)
    assert make_context(experiment, Curious(), config[0]).shared is None
    assert make_context(experiment, TRAK(), config[1]).shared is not None
    with pytest.raises(AccessError):
        make_context(experiment, Curious(), config[0]).shared_store()


def test_features_that_another_method_paid_for_are_in_the_cost(
    tiny_data: AttributionDataModule, tiny_settings: Settings, runtime: Runtime
) -> None:
    experiment = Experiment(tiny_data, tiny_settings, runtime)
    queries = {"validation": experiment.queries("validation"), "generation": experiment.queries("generation")}

    def run(name: str) -> Scoring:
        [config] = resolve("digits", "smoke", [name], {"method": dict(QUICK)}).methods
        method = config.cls(**config.options)
        scoring = Scoring.of(experiment, method, config, make_context(experiment, method, config))
        scoring.scores(queries)
        return scoring

    first = run("trak").cost
    features = list(experiment.store.scoped("shared").artifacts())
    seconds = {artifact.key: artifact.info["seconds"] for artifact in features}
    size = sum(artifact.num_bytes for artifact in features)
    second = run("relative-influence").cost
    assert len(list(experiment.store.scoped("shared").artifacts())) == len(features) == 3  # train, two query sets
    assert first.stored_bytes == second.stored_bytes == size
    assert second.prepare_seconds + 11 * second.seconds_per_query >= sum(seconds.values())
    assert second.prepare_seconds >= min(seconds.values())
    assert second.peak_bytes >= max(artifact.info["peak_bytes"] for artifact in features)
    assert run("relative-influence").cost == second  # read from the store


@pytest.mark.parametrize("method", METHODS)
def test_bad_options_are_refused(method: type[AttributionMethod]) -> None:
    with pytest.raises(UsageError):
        method(num_timesteps=0)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="noise_draws must be at least 1; got 0"):
        method(noise_draws=0)  # type: ignore[call-arg]


def test_bad_options_of_single_methods() -> None:
    with pytest.raises(UsageError, match="'dot' or 'cosine'"):
        Gradient("euclid")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="positive"):
        DTRAK(regularization=-1.0)
    with pytest.raises(UsageError, match="Did you mean 'loss'"):
        TRAK(f="los")  # type: ignore[arg-type]


def test_an_unprepared_method_says_so(tiny_data: AttributionDataModule) -> None:
    with pytest.raises(AttribenchError, match="not prepared"):
        TRAK().attribute(Queries.of(tiny_data.validation, "validation"))


def test_the_shared_store_serves_several_methods(context: AttributionContext, tiny_data: AttributionDataModule) -> None:
    shared = replace(context, shared=SharedStore(context.store.scoped("shared")))
    queries = Queries.of(tiny_data.validation, "validation")
    for method in (TRAK(**QUICK), RenormalizedInfluence(**QUICK), Gradient(**QUICK), GAS(**QUICK)):
        scores_of(method, shared, queries)
    # Train images and queries at the target model, which is the last checkpoint, and at the other one.
    assert len(list(context.store.artifacts())) == 4
