"""Gradients of a LoRA, and of named layers alone, against plain autograd in float64; and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import adapted, base, save_with_peft
from torch import Tensor, nn

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.diffusion.parameters import choose, trainable
from attribench.diffusion.pretrained.models import load_model
from attribench.errors import UsageError
from attribench.gradients.ekfac import Curvature
from attribench.gradients.features import GradientFeatures
from attribench.gradients.kronecker import kronecker_layers
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import held_bytes, layerwise_bytes, num_parameters, summed_gradients
from attribench.method import score, start
from attribench.methods.datainf import layer_slices
from attribench.methods.fine_tune import FineTune
from attribench.registry import METHODS
from attribench.store.artifacts import ArtifactStore

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)
PIXELS = torch.randint(0, 256, (6, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TRAIN, QUERIES = ImageSet(PIXELS[:4], tuple("abcd")), Queries(PIXELS[4:], ("x", "y"))
TERMS = [(0, 0), (700, 1), (999, 3)]
SCHEDULE = NoiseSchedule()


def networks() -> dict[str, nn.Module]:
    frozen = base()
    frozen.mid_block.requires_grad_(False)
    return {
        "lora": adapted().double(),
        "attention": choose(base().double(), "to_q, to_out.*"),
        "norms and convolutions": choose(base().double(), "conv_norm_out,conv_in"),
        "of the LoRA, some": choose(adapted().double(), "conv1"),
        "frozen": frozen.double(),
    }


NETWORKS = networks()


def expected(network: nn.Module, f: str) -> Tensor:
    """The gradient of each sample, summed over terms, by one ordinary backward pass each."""
    rows = []
    for image, name in zip(TRAIN.images, TRAIN.ids, strict=True):
        total: Tensor | float = 0.0
        for timestep, draw in TERMS:
            noise = sample_noise(7, name, timestep, draw, SHAPE)
            noisy = SCHEDULE.add_noise(image / 127.5 - 1, noise, timestep).double()
            predicted = network(noisy[None], torch.tensor([timestep])).sample[0]
            value = output_function(f)(predicted, noise.double(), torch.tensor(1.0))
            found = torch.autograd.grad(value, list(trainable(network).values()))
            total = total + torch.cat([gradient.flatten() for gradient in found])
        rows.append(total)
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer_by_layer", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_autograd_s(name: str, layer_by_layer: bool) -> None:
    network = NETWORKS[name]
    flags = [value.requires_grad for value in network.parameters()]
    row_bytes = layerwise_bytes(network, SHAPE, CPU) if layer_by_layer else None
    assert (row_bytes is not None) == layer_by_layer
    for f in ("loss", "mean-squared-l2-norm"):
        found = summed_gradients(
            network, TRAIN.images, TRAIN.ids, TERMS, output_function(f), 7, SCHEDULE, CPU, row_bytes
        )
        right = expected(network, f)
        assert found.shape == (4, num_parameters(network))
        assert right.norm(dim=1).min() > 0
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-7)
    assert [value.requires_grad for value in network.parameters()] == flags
    assert all(value.grad is None for value in network.parameters())


@pytest.mark.parametrize("layers", ["", "lora_A, lora_B"])
def test_gradients_of_magnitudes_and_beside_them(layers: str) -> None:
    """DoRA's magnitudes are in no layer that is known, so that all gradients are taken one sample at a time."""
    network = choose(adapted(use_dora=True).double(), layers)
    assert any("lora_magnitude_vector" in name for name in trainable(network)) == (not layers)
    row_bytes = layerwise_bytes(network, SHAPE, CPU)
    assert (row_bytes is None) == (not layers)
    found = summed_gradients(
        network, TRAIN.images, TRAIN.ids, TERMS, output_function("loss"), 7, SCHEDULE, CPU, row_bytes
    )
    torch.testing.assert_close(found, expected(network, "loss"), rtol=1e-5, atol=1e-7)


def test_ek_fac_says_what_of_dora_it_cannot_take_and_takes_the_rest(tmp_path: Path) -> None:
    given = context(DiffusionModel("own", adapted(use_dora=True)), tmp_path)
    reason = METHODS.load("ekfac")(num_timesteps=1).skip_reason(given)
    assert reason is not None
    assert reason.startswith("the magnitudes of DoRA (lora_magnitude_vector) are no weights of a layer")
    assert "--method.layers 'lora_A, lora_B'" in reason
    method = METHODS.load("ekfac")(num_timesteps=1, layers="lora_A, lora_B")
    assert method.skip_reason(given) is None
    start(method, given)
    assert torch.isfinite(score(method, QUERIES)).all()


def test_some_parameters_have_the_entries_they_have_among_all() -> None:
    network = base().double()
    chosen = choose(network, "mid_block,conv_out")

    def gradients(of: nn.Module) -> Tensor:
        rows = layerwise_bytes(of, SHAPE, CPU)
        return summed_gradients(of, TRAIN.images, TRAIN.ids, TERMS, output_function("loss"), 7, SCHEDULE, CPU, rows)

    sizes = [value.numel() for value in trainable(network).values()]
    parts = dict(zip(trainable(network), torch.split(gradients(network), sizes, dim=1), strict=True))
    torch.testing.assert_close(gradients(chosen), torch.cat([parts[name] for name in trainable(chosen)], dim=1))


def test_the_graph_of_a_lora_holds_less_than_that_of_all() -> None:
    """What comes before the first layer that counts needs no gradient, and so is not held."""
    all_of_it, late = (held_bytes(network, SHAPE, CPU)[0] for network in (base(), choose(base(), "conv_out")))
    assert late < all_of_it / 4


def test_kronecker_factors_and_layers_are_the_lora_s_matrices() -> None:
    layers = kronecker_layers(NETWORKS["lora"], SHAPE, CPU)
    assert layers is not None
    assert [layer.name for layer in layers] == list(trainable(NETWORKS["lora"]))
    assert all(layer.bias is None for layer in layers)
    assert len(layer_slices(NETWORKS["lora"])) == len(layers)


def context(model: DiffusionModel, folder: Path, access: Access = Access.CHECKPOINTS) -> AttributionContext:
    return AttributionContext(TRAIN, model.schedule, CPU, 42, ArtifactStore(folder), access, model, inputs=model.inputs)


def test_features_are_found_again_by_what_they_are_of(tmp_path: Path) -> None:
    model = load_model(base(), "ddpm")
    given = context(model, tmp_path)

    def features(layers: str) -> Tensor:
        return GradientFeatures(given, FeatureOptions("loss", 1, layers=layers)).of(model.network, TRAIN).load()

    def kept() -> int:
        return len(list((tmp_path / "gradients").iterdir()))

    sizes = {}
    for number, layers in enumerate(("to_q", "to_v", "to_q,to_v", "to_v,to_q", "*", "")):
        sizes[layers] = features(layers).shape[1]
        assert kept() == min(number + 1, 3) + (number > 3)
    assert sizes["to_q"] + sizes["to_v"] == sizes["to_q,to_v"] == sizes["to_v,to_q"] < sizes["*"] == sizes[""]
    assert not torch.equal(features("to_q"), features("to_v"))


def test_projection_chunks_and_memory_are_those_of_the_lora(tmp_path: Path) -> None:
    model = load_model(adapted(), "ddpm")
    features = GradientFeatures(context(model, tmp_path), FeatureOptions("loss", 1, "auto", 64))
    length = num_parameters(model.network)
    assert length < 16 * 64 * 2 < sum(value.numel() for value in model.network.parameters())
    projected = GradientFeatures(context(model, tmp_path), FeatureOptions("loss", 1, "auto", length // 16 + 1))
    assert projected.layout(TRAIN) == (length, 4)
    needs = GradientFeatures(context(model, tmp_path), FeatureOptions("loss", 1, "identity")).needs(TRAIN, 0)
    assert 4 * length * 4 <= needs.disk < 4 * length * 4 + 3 * 4096
    assert features.layout(TRAIN)[0] in (length, 64)


def test_a_pattern_that_names_nothing_is_a_reason_to_skip(tmp_path: Path) -> None:
    model = load_model(base(), "ddpm")
    for name in ("dtrak", "unlearning", "ekfac", "journey-trak"):
        method = METHODS.load(name)(layers="nowhere")
        assert "'nowhere' names no parameter" in str(method.skip_reason(context(model, tmp_path)))
    with pytest.raises(UsageError, match="names no parameter"):
        METHODS.load("trak")(layers="nowhere").needs(context(model, tmp_path), 2)


QUICK: dict[str, dict[str, Any]] = {
    "gradient": {}, "tracincp": {}, "gas": {}, "trak": {}, "trak factored": {"projection": "factored", "proj_dim": 200},
    "dtrak": {}, "das": {}, "relative-influence": {}, "renormalized-influence": {}, "ekfac": {}, "datainf": {},
    "fine-tune": {"steps": 2, "fresh_noise": True, "noise_batch": 4},
    "unlearning": {"loss_timesteps": 1, "fisher_timesteps": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_every_method_looks_at_the_lora_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And at those parts of it that are named: scores are those of a network in which these alone are a LoRA."""
    monkeypatch.setattr(FineTune, "_null_loss", lambda *_: float("inf"))  # nobody trained the model

    def scores(network: nn.Module, layers: str, folder: str) -> Tensor:
        model = DiffusionModel("own", network, snapshots=[lambda: network])
        method = METHODS.load(name.split()[0])(num_timesteps=1, layers=layers, **QUICK[name])
        given = context(model, tmp_path / folder, type(method).access)
        assert method.skip_reason(given) is None
        assert method.needs(given, 2) is not None
        start(method, given)
        found = score(method, QUERIES)
        assert torch.isfinite(found).all()
        assert all(value.grad is None for value in network.parameters())
        return found

    everything, some = scores(adapted(), "", "all"), scores(adapted(), "conv1", "some")
    assert not torch.allclose(everything, some)
    merged = adapted()  # the same function, with all of the LoRA but conv1's in the weights that are frozen
    for key, module in merged.named_modules():
        if hasattr(module, "merge") and not key.endswith("conv1"):
            module.merge()
            module.requires_grad_(False)
    # Changes of a loss are differences of two numbers near 1, in float32.
    rounding = 1e-6 if name in ("fine-tune", "unlearning") else 0.0
    torch.testing.assert_close(
        scores(merged, "", "merged"), some, rtol=1e-2, atol=1e-4 * float(some.abs().max()) + rounding
    )


def test_the_whole_way_with_a_file(tmp_path: Path) -> None:
    """From files to the curvature of the LoRA, and what it is stored under depends on the LoRA's weights."""
    base().save_pretrained(tmp_path / "base")
    models = [
        load_model(tmp_path / "base", "ddpm", lora=save_with_peft(tmp_path / f"{seed}", seed=seed)) for seed in (1, 2)
    ]
    options = FeatureOptions("loss", 1, "identity")
    for model in models:
        given = context(model, tmp_path / "store")
        layers = Curvature(given, options).layers(model.network, TRAIN)
        assert [part.layer.name for part in layers] == list(trainable(model.network))
        features = GradientFeatures(given, options).of(model.network, TRAIN)
        assert features.load().shape == (4, num_parameters(model.network))
    assert len(list((tmp_path / "store" / "gradients").iterdir())) == 2
