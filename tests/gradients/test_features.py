from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import psutil
import pytest
import torch
from tiny_models import TinyModels
from torch import Tensor, nn

from attribench import Access, AttribenchError, AttributionContext, ImageSet
from attribench.computing.seeding import derive_seed
from attribench.diffusion.digests import model_digest
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.errors import AccessError, UsageError
from attribench.gradients import budget, features, per_sample
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.features import GradientFeatures
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.projection import Projection
from attribench.settings import ModelSettings
from attribench.store.artifacts import ArtifactStore

pytestmark = pytest.mark.slow

SEED = 42
MakeContext = Callable[..., AttributionContext]
OUTPUTS = get_args(ModelOutput)


def image_set(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"image-{i}" for i in range(count)))


@pytest.fixture
def attention_model() -> ModelSettings:
    return ModelSettings(
        block_out_channels=[4, 8],
        down_block_types=["DownBlock2D", "AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=2,
    )


@pytest.fixture
def make_context(tmp_path: Path, tiny_model: ModelSettings) -> MakeContext:
    def make(
        num_train: int = 5, access: Access = Access.MODEL, store: Path | None = None, model: ModelSettings = tiny_model
    ) -> AttributionContext:
        return AttributionContext(
            train=image_set(num_train),
            schedule=NoiseSchedule(),
            device=torch.device("cpu"),
            seed=SEED,
            store=ArtifactStore(store or tmp_path / "store"),
            access=access,
            models=TinyModels(model),
        )

    return make


def published(f: str, predicted: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """The outputs written down once more, in float64, from the formulas."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32).double()
    alpha_bar = (1 - beta).cumprod(0)
    count = predicted.numel()
    squared = ((predicted - noise) ** 2).sum() / count
    return {
        "loss": squared,
        "weighted-loss": squared * beta[timestep] / (2 * (1 - beta[timestep]) * (1 - alpha_bar[timestep])),
        "mean-squared-l2-norm": (predicted**2).sum() / count,
        "mean": predicted.sum() / count,
        "l1-norm": torch.norm(predicted.flatten(), p=1),
        "l2-norm": torch.norm(predicted.flatten(), p=2),
        "linf-norm": torch.norm(predicted.flatten(), p=float("inf")),
    }[f]


def brute_force(
    context: AttributionContext, model: nn.Module, images: ImageSet, f: str, timesteps: Sequence[int], draws: int = 1
) -> Tensor:
    """One backward pass a sample, timestep and draw, in float64."""
    model = copy.deepcopy(model).double()
    rows = []
    for image, name in zip(images.images, images.ids, strict=True):
        total = 0.0
        for timestep, draw in itertools.product(timesteps, range(draws)):
            clean = image.double() / 127.5 - 1
            noise = sample_noise(derive_seed(context.seed, "gradients"), name, timestep, draw, clean.shape).double()
            alpha_bar = context.schedule.alpha_bar[timestep].double()
            noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
            predicted = model(noisy[None], torch.tensor([timestep])).sample[0]
            gradients = torch.autograd.grad(published(f, predicted, noise, timestep), list(model.parameters()))
            total = total + torch.cat([gradient.flatten() for gradient in gradients])
        rows.append(total / (len(timesteps) * draws))
    return torch.stack(rows)


def explicit_matrix(projection: Projection, num_parameters: int) -> Tensor:
    """The matrix of a projection: what it makes of the unit vectors."""
    parts = []
    for begin in range(0, num_parameters, 4000):
        unit = torch.zeros(min(4000, num_parameters - begin), num_parameters)
        unit[range(len(unit)), range(begin, begin + len(unit))] = 1
        parts.append(projection(unit))
    return torch.cat(parts).double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("f", OUTPUTS)
def test_features_equal_one_backward_pass_a_sample_and_timestep(
    make_context: MakeContext, attention_model: ModelSettings, f: ModelOutput
) -> None:
    context = make_context(num_train=3, model=attention_model)
    model = context.target_model()
    expected = brute_force(context, model, context.train, f, [0, 333, 666, 999])
    identity = GradientFeatures(context, FeatureOptions(f, 3, "identity")).of(model, context.train).load()
    assert relative_error(identity, expected) < 1e-5

    options = FeatureOptions(f, 3, "basic", 24)
    projected = GradientFeatures(context, options).of(model, context.train).load()
    seed = derive_seed(context.seed, "projection") % 2**31
    matrix = explicit_matrix(Projection("basic", expected.shape[1], 24, seed, torch.device("cpu")), expected.shape[1])
    assert matrix.std().item() == pytest.approx(1, abs=0.02)
    assert relative_error(projected, expected @ matrix) < 1e-5


def test_the_timesteps_are_the_published_ones() -> None:
    assert FeatureOptions(num_timesteps=10).timesteps == list(range(0, 1000, 100))
    assert FeatureOptions(num_timesteps=1).timesteps == [0]


def terms_of(options: FeatureOptions) -> list[tuple[int, int]]:
    return [term for stage in options.stages for term in stage]


@pytest.mark.parametrize("number", [1, 3, 10, 20, 50, 99, 100, 200, 1000])
@pytest.mark.parametrize("draws", [1, 3])
def test_stages_are_every_timestep_and_draw_once(number: int, draws: int) -> None:
    options = FeatureOptions(num_timesteps=number, noise_draws=draws)
    assert sorted(terms_of(options)) == list(itertools.product(range(0, 1000, 1000 // number), range(draws)))


@pytest.mark.parametrize(
    ("fewer", "more"), [((10, 1), (100, 1)), ((10, 2), (20, 3)), ((100, 1), (1000, 1)), ((3, 1), (3, 4))]
)
def test_stages_of_fewer_timesteps_and_draws_are_among_those_of_more(
    fewer: tuple[int, int], more: tuple[int, int]
) -> None:
    small, large = (FeatureOptions(num_timesteps=number, noise_draws=draws).stages for number, draws in (fewer, more))
    assert all(stage in large for stage in small)


def test_more_timesteps_and_draws_add_to_what_is_there(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(num_train=1)
    model = context.target_model()
    asked: list[tuple[int, int]] = []
    original = features.summed_gradients

    def noting(model: nn.Module, images: Tensor, ids: object, terms: list[tuple[int, int]], *others: object) -> Tensor:
        asked.extend(terms)
        return original(model, images, ids, terms, *others)  # type: ignore[arg-type]

    def ask(number: int, draws: int) -> Tensor:
        options = FeatureOptions("loss", number, "identity", noise_draws=draws)
        return GradientFeatures(context, options).of(model, context.train).load()

    monkeypatch.setattr(features, "summed_gradients", noting)
    ten = ask(10, 1)
    assert asked == [(timestep, 0) for timestep in range(0, 1000, 100)]
    asked.clear()
    twenty = ask(20, 2)
    assert sorted(asked) == sorted(
        {*itertools.product(range(0, 1000, 50), (0, 1))} - {(t, 0) for t in range(0, 1000, 100)}
    )
    asked.clear()
    ask(20, 1)
    doubled = ask(10, 2)
    assert not asked  # every prefix is there
    for found, number, draws in ((ten, 10, 1), (twenty, 20, 2), (doubled, 10, 2)):
        expected = brute_force(context, model, context.train, "loss", range(0, 1000, 1000 // number), draws)
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("projection", ["identity", "basic"])
def test_chunks_and_batches_do_not_change_features(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, projection: str
) -> None:
    options = FeatureOptions("loss", 2, projection, 16)  # type: ignore[arg-type]
    found = []
    for size in (1, 3, 100):
        monkeypatch.setattr(features, "_LARGEST_CHUNK", size)
        monkeypatch.setattr(per_sample, "_LARGEST_BATCH", (size + 1) // 2)
        monkeypatch.setattr(per_sample, "_LARGEST_PASS", size)
        context = make_context(num_train=7, store=tmp_path / str(size))
        feature_set = GradientFeatures(context, options).of(context.target_model(), context.train)
        found.append(feature_set.load())
        assert torch.equal(torch.cat(list(feature_set.blocks(1))), found[-1])
        assert [len(block) for block in feature_set.blocks(2**30)] == [7]
    for other in found[1:]:
        assert relative_error(other, found[0].double()) < 1e-5


def test_the_random_matrix_is_made_in_blocks_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cifar, paper = 35_746_307, 32768
    projection = Projection("basic", cifar, paper, 0, torch.device("cpu"))
    assert 4 * cifar * paper > 4e12  # all of the matrix: terabytes
    assert projection.matrix_bytes <= 512 * 2**20


def test_auto_keeps_small_gradients_and_projects_large_ones() -> None:
    cpu = torch.device("cpu")
    assert Projection("auto", 16 * 64, 64, 0, cpu).name == "identity"
    assert Projection("auto", 16 * 64 + 1, 64, 0, cpu).name == "basic"
    with pytest.raises(AttribenchError, match="use basic or auto"):
        Projection("cuda", 100, 512, 0, cpu)


def test_a_killed_computation_goes_on_at_its_chunk(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_LARGEST_CHUNK", 2)
    context = make_context(num_train=7)
    options = FeatureOptions("loss", 1, "identity")
    done: list[int] = []
    original = features.summed_gradients

    def counting(model: nn.Module, images: Tensor, *arguments: object) -> Tensor:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(images))
        return original(model, images, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "summed_gradients", counting)
    with pytest.raises(KeyboardInterrupt):
        GradientFeatures(context, options).of(context.target_model(), context.train)
    done[:] = [0]
    with pytest.raises(KeyboardInterrupt):  # one more chunk, the third
        GradientFeatures(context, options).of(context.target_model(), context.train)
    assert done == [0, 2]
    done[:] = [0]
    resumed = GradientFeatures(context, options).of(context.target_model(), context.train)
    assert done == [0, 1]  # the fourth holds one image
    monkeypatch.setattr(features, "summed_gradients", original)
    whole = make_context(num_train=7, store=context.store.root.parent / "whole")
    assert torch.equal(resumed.load(), GradientFeatures(whole, options).of(context.target_model(), whole.train).load())


def test_what_cannot_fit_is_refused_before_any_work(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context()
    model = context.target_model()
    asked = GradientFeatures(context, FeatureOptions("loss", 1, "identity"))

    def work(*_: object) -> Tensor:
        raise AssertionError("work was done")

    monkeypatch.setattr(features, "summed_gradients", work)
    size = sum(parameter.numel() for parameter in model.parameters())
    disk = 5 * (4 * size) + 4096
    with monkeypatch.context() as patch:
        patch.setattr(budget.shutil, "disk_usage", lambda _: type("Usage", (), {"free": disk - 1}))
        with pytest.raises(AttribenchError, match=rf"\({disk} bytes\) on disk; .*\({disk - 1} bytes\) are free"):
            asked.of(model, context.train)
        assert "on disk" in (asked.refusal(context.train) or "")
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
        with pytest.raises(AttribenchError, match=r"bytes\) of memory; .*\(1000 bytes\) are available"):
            asked.of(model, context.train)
    assert not list(context.store.artifacts())
    assert asked.refusal(context.train) is None


def test_gradients_that_are_normalised_need_more_memory(make_context: MakeContext) -> None:
    context = make_context(num_train=2)

    def needed(normalized: bool, row_bytes: int | None) -> int:
        options = FeatureOptions("mean", 10, "identity", normalized=normalized)
        plan = GradientFeatures(context, options).plan(context.target_model(), context.train)
        plan.__dict__["row_bytes"] = row_bytes
        return plan.memory()

    assert needed(True, 2**10) > needed(False, 2**10)
    assert needed(True, None) > needed(False, None)


def test_the_disk_for_all_checkpoints_is_asked_for_at_once(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(access=Access.CHECKPOINTS)
    asked = GradientFeatures(context, FeatureOptions("loss", 1, "identity"))
    size = sum(parameter.numel() for parameter in context.target_model().parameters())
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 30 * size}))
    assert asked.refusal(context.train) is None
    assert "on disk" in (asked.refusal(context.train, checkpoints=True) or "")


def test_features_are_known_by_weights_options_seed_and_images(make_context: MakeContext) -> None:
    context = make_context(num_train=3, access=Access.CHECKPOINTS)

    def ask(model: nn.Module, images: ImageSet = context.train, **options: object) -> int:
        chosen = FeatureOptions(**{"num_timesteps": 1, "projection": "identity", **options})  # type: ignore[arg-type]
        GradientFeatures(context, chosen).of(model, images)
        return len(list(context.store.artifacts()))

    first, last = context.checkpoints()
    assert ask(context.target_model()) == 1
    assert ask(last) == 1  # the last checkpoint is the target model
    assert ask(first) == 2
    assert ask(last, f="mean") == 3
    assert ask(last, num_timesteps=2) == 4
    assert ask(last, projection="basic", proj_dim=8) == 5
    assert ask(last, projection="auto", proj_dim=2**20) == 5  # which is identity
    assert ask(last, images=context.train.select([0, 1])) == 6
    assert ask(last, noise_draws=2) == 7  # the second draw
    labelled = ImageSet(context.train.images, context.train.ids, torch.zeros(3, dtype=torch.int64))
    assert ask(last, images=labelled) == 7
    assert ask(last, normalized=True) == 8


def test_the_digest_sees_configuration_and_weights(tiny_model: ModelSettings, make_context: MakeContext) -> None:
    model = make_context().target_model()
    digest = model_digest(model)
    assert digest == model_digest(make_context().target_model())
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    other = make_context(model=replace(tiny_model, norm_eps=1e-3)).target_model()
    assert len({digest, model_digest(changed), model_digest(other)}) == 3


def test_a_method_without_access_to_the_model_gets_no_features(make_context: MakeContext) -> None:
    with pytest.raises(AccessError, match="MODEL"):
        GradientFeatures(make_context(access=Access.DATA), FeatureOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"f": "los"},
        {"num_timesteps": 0},
        {"num_timesteps": 1001},
        {"projection": "gaussian"},
        {"proj_dim": 0},
        {"noise_draws": 0},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        FeatureOptions(**options)  # type: ignore[arg-type]


def test_features_that_are_in_memory() -> None:
    chunks = [torch.ones(2, 3), torch.zeros(1, 3)]
    feature_set = FeatureSet.of(chunks)
    assert (feature_set.num_samples, feature_set.dimensions) == (3, 3)
    assert torch.equal(feature_set.load(), torch.cat(chunks))
    assert [len(block) for block in feature_set.blocks(1)] == [2, 1]


def test_gradients_far_too_large_are_refused_before_the_store_is_searched(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of images whose gradients are kept one by one, in no time."""
    context = make_context(num_train=3)
    asked = GradientFeatures(context, FeatureOptions("loss", 1, "identity"))
    asked.of(context.target_model(), context.train)
    size = sum(parameter.numel() for parameter in context.target_model().parameters())
    many = image_set(5000)

    def never(*_: object) -> Tensor:
        raise AssertionError("the store was searched")

    monkeypatch.setattr(features, "_CHUNK_BYTES", 4 * size)
    with monkeypatch.context() as patch:
        patch.setattr(GradientFeatures, "plan", never)
        needed = (5000 - 1) * (4 * size + 4096)  # one artifact there is, which may be of one of these
        patch.setattr(budget.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 1}))
        assert f"({needed} bytes) on disk" in (asked.refusal(many) or "")
    # Where what is in the store may be enough, it decides.
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    monkeypatch.setattr(features, "_CHUNK_BYTES", 64 * 2**20)
    assert asked.refusal(context.train) is None
    assert "on disk" in (GradientFeatures(context, FeatureOptions("mean", 1, "identity")).refusal(context.train) or "")
