from __future__ import annotations

import inspect
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from attribench import Access, AttribenchError, AttributionContext, AttributionMethod, Queries
from attribench.diffusion.trajectory import ddim_trajectory, to_pixels
from attribench.registry import METHODS, load_method
from attribench.testing import ConformanceError, check_method


class Honest(AttributionMethod):
    """Mean brightness, compared: keeps every rule."""

    access: ClassVar[Access] = Access.DATA

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def attribute(self, queries: Queries) -> Tensor:
        train = self.context.train.unit_range().mean((1, 2, 3))
        return -self.scale * (queries.unit_range().mean((1, 2, 3))[:, None] - train).abs()


class WrongShape(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        return super().attribute(queries).T


class Integers(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        return (super().attribute(queries) * 100).long()


class NotANumber(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        return super().attribute(queries).log()


class NotATensor(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        return super().attribute(queries).numpy()  # type: ignore[return-value]


class GlobalNoise(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        scores = super().attribute(queries)
        return scores + 1e-3 * torch.randn(scores.shape)


class BatchCentred(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        scores = super().attribute(queries)
        return scores - scores.mean(0)


class ByPlaceInBatch(Honest):
    """Consistent one by one as far as the first query goes, but noise follows the place in the batch."""

    def attribute(self, queries: Queries) -> Tensor:
        scores = super().attribute(queries)
        return scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))


class ByPlaceButNotAlone(Honest):
    """Sees the order only: alone, a query is recognised by its id."""

    def attribute(self, queries: Queries) -> Tensor:
        scores = super().attribute(queries)
        places = [i if len(queries) > 1 else int(name[-1]) for i, name in enumerate(queries.ids)]
        return scores + torch.tensor(places)[:, None]


class WritesQueries(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        scores = super().attribute(queries)
        queries.images.clamp_(max=100)
        return scores


class WritesTrainImages(Honest):
    def prepare(self, context: AttributionContext) -> None:
        context.train_images[0, 0, 0, 0] += 1


class WritesLabels(Honest):
    def prepare(self, context: AttributionContext) -> None:
        assert context.train_labels is not None
        context.train_labels.zero_()


class AsksForTheModel(Honest):
    def prepare(self, context: AttributionContext) -> None:
        context.target_model()


class TakesTheModel(Honest):
    def attribute(self, queries: Queries) -> Tensor:
        assert self.context.models is not None
        self.context.models.target_model()
        return super().attribute(queries)


class TakesCheckpoints(Honest):
    access = Access.MODEL

    def attribute(self, queries: Queries) -> Tensor:
        assert self.context.models is not None
        next(self.context.models.checkpoints())
        return super().attribute(queries)


class NoAccess(Honest):
    access = "data"  # type: ignore[assignment]


class StaleStore(Honest):
    """Keeps its first scores' scale in the store under a specification that says too little."""

    def prepare(self, context: AttributionContext) -> None:
        found = context.store.find("scale", {})
        self.scale = 2.0 if found else 1.0
        context.store.get_or_create("scale", {}, lambda staging: staging.save_json("scale", 1.0))


class UndefinedWithoutReason(Honest):
    def undefined_on(self, queries: Queries) -> str | None:
        return "" if queries.sampling else None


class UndefinedInPart(Honest):
    def undefined_on(self, queries: Queries) -> str | None:
        return "too few" if len(queries) < 2 else None


class WrongOnSampled(Honest):
    """Keeps the rules on held-out queries alone."""

    def attribute(self, queries: Queries) -> Tensor:
        scores = super().attribute(queries)
        return scores.log() if queries.sampling else scores


class SeedsByPlace(Honest):
    """Forgets that a part of the queries has a part of the seeds."""

    def attribute(self, queries: Queries) -> Tensor:
        places = torch.arange(len(queries)) if queries.sampling else torch.zeros(len(queries))
        return super().attribute(queries) + places[:, None]


class SkipsWithoutReason(Honest):
    def skip_reason(self, context: AttributionContext) -> str | None:
        return ""


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (WrongShape, "shape"),
        (NotATensor, "shape"),
        (Integers, "dtype"),
        (NotANumber, "finite"),
        (GlobalNoise, "repeats"),
        (StaleStore, "repeats"),
        (BatchCentred, "batch"),
        (ByPlaceInBatch, "batch"),
        (ByPlaceButNotAlone, "batch"),
        (WritesQueries, "in place"),
        (WritesTrainImages, "in place"),
        (WritesLabels, "in place"),
        (AsksForTheModel, "access"),
        (TakesTheModel, "access"),
        (TakesCheckpoints, "access"),
        (NoAccess, "access"),
        (SkipsWithoutReason, "skip reason"),
        (UndefinedWithoutReason, "undefined"),
        (UndefinedInPart, "undefined"),
        (WrongOnSampled, "finite"),
        (SeedsByPlace, "batch"),
    ],
)
def test_rejects(method: type[AttributionMethod], check: str) -> None:
    with pytest.raises(ConformanceError, match=f"{method.__name__}.*check '{check}'") as caught:
        check_method(method)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, AttribenchError)


class UsesEverything(Honest):
    """A model method: needs the target model and the two checkpoints, and a store."""

    access = Access.CHECKPOINTS

    def prepare(self, context: AttributionContext) -> None:
        models = [context.target_model(), *context.checkpoints()]
        assert len(models) == 3
        image = context.train.unit_range()[:1]
        with torch.no_grad():
            outputs = [model(image, torch.tensor([10])).sample for model in models]
        assert outputs[0].shape == image.shape
        assert torch.equal(outputs[0], outputs[2])  # the last checkpoint is the target model
        assert not torch.equal(outputs[0], outputs[1])
        self._mean = float(outputs[0].mean())

    def attribute(self, queries: Queries) -> Tensor:
        return super().attribute(queries) * self._mean


@pytest.mark.parametrize("method", [Honest, UsesEverything])
def test_accepts(method: type[AttributionMethod]) -> None:
    assert check_method(method, scale=2.0) is None


class ColourOnly(Honest):
    runs: ClassVar[list[int]] = []

    def skip_reason(self, context: AttributionContext) -> str | None:
        return None if context.train.image_shape[0] == 3 else "needs colour images"

    def attribute(self, queries: Queries) -> Tensor:
        self.runs.append(queries.images.shape[1])
        return super().attribute(queries)


class NeverRuns(Honest):
    def skip_reason(self, context: AttributionContext) -> str | None:
        return "needs a package that is not installed"

    def attribute(self, queries: Queries) -> Tensor:
        raise AssertionError("a method that skips must not be run")


def test_a_method_that_skips_is_not_run() -> None:
    assert check_method(NeverRuns) == "needs a package that is not installed"
    assert check_method(ColourOnly) is None
    assert set(ColourOnly.runs) == {3}


class OnSampled(Honest):
    """Goes the way of each query again, which must lead to it."""

    access = Access.MODEL

    def undefined_on(self, queries: Queries) -> str | None:
        return None if queries.sampling else "nobody sampled them"

    def attribute(self, queries: Queries) -> Tensor:
        sampling = queries.sampling
        assert sampling is not None
        model, shape = self.context.target_model(), self.context.train.image_shape
        *_, end = ddim_trajectory(
            model, sampling.seeds, shape, sampling.num_inference_steps, sampling.eta, self.context.device
        )
        assert (to_pixels(end.sample).int() - queries.images.int()).abs().max() <= 1
        return super().attribute(queries)


class OnNothing(NeverRuns):
    def skip_reason(self, context: AttributionContext) -> str | None:
        return None

    def undefined_on(self, queries: Queries) -> str | None:
        return "there are no such queries"


def test_a_method_is_checked_on_what_it_is_defined_on() -> None:
    assert check_method(OnSampled) is None
    assert check_method(OnNothing) == "there are no such queries"


def test_global_state_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = torch.get_rng_state()
    check_method(UsesEverything)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names())
def test_every_built_in_method_conforms(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    method_class = load_method(name)
    # Gradients at fewer timesteps than by default: enough for an average, and several times quicker.
    quick = {"num_timesteps": 2} if "num_timesteps" in inspect.signature(method_class).parameters else {}
    reason = check_method(method_class, **quick)
    # The weights of image models are not here; with small checkpoints they are checked in tests of their own.
    assert (reason is None) == (name not in ("clip", "embedding")), reason
