"""Gradients of models that predict something else than the noise, and of models that are told a class, one at a time."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.computing.seeding import derive_seed
from attribench.diffusion.digests import model_digest
from attribench.diffusion.inputs import PixelInputs
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.noise import NoiseSchedule, PredictionType, sample_noise
from attribench.errors import DataError
from attribench.gradients.features import GradientFeatures
from attribench.gradients.kronecker import kronecker_layers
from attribench.gradients.options import FeatureOptions
from attribench.gradients.per_sample import layerwise_bytes
from attribench.method import score, start
from attribench.methods.fine_tune import FineTune
from attribench.registry import METHODS
from attribench.store.artifacts import ArtifactStore

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
COSINE = torch.cos(torch.linspace(0.01, 1.5, 1000)) ** 2
PIXELS = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TRAIN = ImageSet(PIXELS[:4], tuple("abcd"), torch.tensor([0, 2, 1, 2]))
QUERIES = Queries(PIXELS[4:], ("x", "y"), labels=torch.tensor([1, 0]))


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    blocks: Mapping[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes: Mapping[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return UNet2DModel(8, 1, 1, **blocks, **sizes, **options).eval()


def context(model: DiffusionModel, folder: Path, access: Access = Access.CHECKPOINTS) -> AttributionContext:
    return AttributionContext(
        TRAIN, model.schedule, CPU, 42, ArtifactStore(folder), access, model, inputs=model.inputs
    )  # fmt: skip


def expected(model: DiffusionModel, timestep: int, weight: float = 1.0) -> Tensor:
    """The gradient of each train image's loss, from the definition of what is predicted."""
    kind, alpha_bar = model.schedule.prediction_type, model.schedule.alpha_bar[timestep]
    rows = []
    for number, name in enumerate(TRAIN.ids):
        clean = TRAIN.images[number] / 127.5 - 1
        noise = sample_noise(derive_seed(42, "gradients"), name, timestep, 0, clean.shape)
        noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        told = {"class_labels": TRAIN.labels[number, None]} if model.num_classes and TRAIN.labels is not None else {}
        predicted = model.network(noisy[None], torch.tensor([timestep]), **told).sample[0]
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean
        target = {"epsilon": noise, "sample": clean, "v_prediction": v}[kind]
        loss = weight * (predicted - target).square().mean()
        gradients = torch.autograd.grad(loss, list(model.network.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def close(found: Tensor, right: Tensor) -> bool:
    return bool((found - right).norm() < 1e-5 * right.norm())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_that_of_what_the_network_predicts(kind: PredictionType, tmp_path: Path) -> None:
    model = DiffusionModel("own", network(), NoiseSchedule(COSINE, kind))
    features = GradientFeatures(context(model, tmp_path), FeatureOptions("loss", 1, "identity"))
    assert close(features.of(model.network, TRAIN).load(), expected(model, 0))


def test_an_error_of_v_or_of_the_image_is_weighted_as_one_of_the_noise(tmp_path: Path) -> None:
    """Of one δ of the noise, the networks' errors differ by known factors; the weighted loss must not."""
    from attribench.gradients.outputs import loss_weights

    error, at = 0.7, torch.tensor([10, 500, 900])
    alpha_bar = COSINE[at]
    epsilon, v, image = (
        loss_weights(NoiseSchedule(COSINE, kind))[at] for kind in ("epsilon", "v_prediction", "sample")
    )  # type: ignore[arg-type]
    right = epsilon * error**2
    assert torch.allclose(v * (error / alpha_bar.sqrt()) ** 2, right)
    assert torch.allclose(image * (error * (1 - alpha_bar).sqrt() / alpha_bar.sqrt()) ** 2, right)


def test_weights_are_finite_without_any_signal_at_the_end() -> None:
    """As ``rescale_betas_zero_snr`` makes them, for models that predict v."""
    from attribench.gradients.outputs import loss_weights

    alpha_bar = COSINE.clone()
    alpha_bar[-1] = 0
    for kind in ("v_prediction", "sample"):
        weights = loss_weights(NoiseSchedule(alpha_bar, kind))  # type: ignore[arg-type]
        assert torch.isfinite(weights).all()
        assert weights[-1] == pytest.approx(0.5 * float(COSINE[-2]))


def test_a_class_is_told_and_layer_by_layer_works(tmp_path: Path) -> None:
    model = DiffusionModel("own", network(num_class_embeds=3), inputs=PixelInputs(3), num_classes=3)
    told = {"class_labels": torch.tensor([1])}
    assert layerwise_bytes(model.network, (1, 8, 8), CPU, told) is not None
    layers = kronecker_layers(model.network, (1, 8, 8), CPU, told)
    assert layers is not None
    assert "class_embedding.weight" not in [layer.name for layer in layers]
    features = GradientFeatures(context(model, tmp_path), FeatureOptions("loss", 1, "identity"))
    assert close(features.of(model.network, TRAIN).load(), expected(model, 0))
    other = ImageSet(TRAIN.images, TRAIN.ids, torch.tensor([0, 2, 1, 1]))
    changed = features.of(model.network, other).load()
    assert [bool((a == b).all()) for a, b in zip(changed, expected(model, 0), strict=True)][3] is False
    assert not close(changed[3], expected(model, 0)[3])


def test_without_layers_that_are_known_the_class_is_told_too(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = network(num_class_embeds=3), nn.Parameter(torch.tensor(2.0))

        def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Any:
            found = self.inner(noisy, timesteps, class_labels=class_labels)
            found.sample = found.sample * self.scale
            return found

    model = DiffusionModel("own", Scaled().eval(), inputs=PixelInputs(3), num_classes=3)
    assert layerwise_bytes(model.network, (1, 8, 8), CPU, {"class_labels": torch.tensor([1])}) is None
    features = GradientFeatures(context(model, tmp_path), FeatureOptions("loss", 1, "identity"))
    assert close(features.of(model.network, TRAIN).load(), expected(model, 0))


QUICK: dict[str, dict[str, Any]] = {
    "gradient": {}, "tracincp": {}, "gas": {}, "trak": {}, "dtrak": {}, "das": {}, "relative-influence": {},
    "renormalized-influence": {}, "ekfac": {}, "datainf": {}, "fine-tune": {"steps": 1, "fresh_noise": True, "noise_batch": 4},
    "unlearning": {"loss_timesteps": 1, "fisher_timesteps": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_every_method_takes_a_model_with_classes_that_predicts_v(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores depend on the query's class, and are of the right query."""
    monkeypatch.setattr(FineTune, "_null_loss", lambda *_: float("inf"))  # nobody trained the model
    unet = network(num_class_embeds=3)
    model = DiffusionModel(
        "own", unet, NoiseSchedule(COSINE, "v_prediction"), PixelInputs(3), num_classes=3, snapshots=[lambda: unet]
    )
    method = METHODS.load(name)(num_timesteps=1, **QUICK[name])
    given = context(model, tmp_path, type(method).access)
    assert method.skip_reason(given) is None
    start(method, given)
    found = score(method, QUERIES)
    told_otherwise = Queries(QUERIES.images, QUERIES.ids, labels=torch.tensor([1, 2]))
    other = score(method, told_otherwise)
    assert torch.allclose(found[0], other[0], rtol=1e-4)
    assert not torch.allclose(found[1], other[1], rtol=1e-3)
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_labels_that_a_model_does_not_know_are_refused() -> None:
    inputs = PixelInputs(2)
    with pytest.raises(DataError, match="There is no class 2: the model knows 2 classes"):
        inputs.seen(TRAIN)
    with pytest.raises(DataError, match="one subfolder a class"):
        inputs.seen(Queries(PIXELS[4:], ("x", "y")))
    assert PixelInputs().seen(TRAIN).labels is None


class Times(nn.Module):
    """A network that somebody wrote: all of its own that its outputs depend on is beside its weights."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.inner, self.factor = nn.Conv2d(1, 1, 1), factor
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Any:
        return self.inner(noisy) * self.factor + self.shift


def test_networks_of_the_same_weights_that_do_something_else_are_others(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom torch import nn\nclass Net(nn.Conv2d):\n    def forward(self, x, t):\n        return {}\n"
    )
    found = []
    for number, result in enumerate(("super().forward(x)", "-super().forward(x)", "super().forward(x)")):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "written.py").write_text(code.format(result))
        spec = importlib.util.spec_from_file_location("written", tmp_path / f"{number}" / "written.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["written"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        torch.manual_seed(0)
        found.append(model_digest(module.Net(1, 1, 1)))
    del sys.modules["written"]
    assert found[0] == found[2] != found[1]

    def digest(factor: float, shift: float = 0.0) -> str:
        torch.manual_seed(0)
        model = Times(factor)
        model.shift += shift
        return model_digest(model)

    assert digest(2.0) == digest(2.0)
    assert len({digest(2.0), digest(3.0), digest(2.0, 1.0)}) == 3
    network = Times()
    assert model_digest(network.train()) == model_digest(copy.deepcopy(network).eval())
