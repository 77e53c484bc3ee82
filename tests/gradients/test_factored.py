"""The factored projection against explicit Kronecker products of its matrices, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dense_gradients import moments
from torch import Tensor, nn
from toy_problem import SEED, Prediction, Small, problem

from attribench.configuration.resolution import resolve
from attribench.diffusion.network import build_network
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AttribenchError, UsageError
from attribench.gradients import per_sample
from attribench.gradients.factored import FactoredProjection
from attribench.gradients.features import GradientFeatures
from attribench.gradients.kronecker import KroneckerLayer, kronecker_layers
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import layerwise_bytes, num_parameters, summed_gradients
from attribench.methods.trak import TRAK
from attribench.testing import check_method

CPU = torch.device("cpu")
SHAPE = (2, 4, 4)
IMAGES = torch.randint(0, 256, (3, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IDS, TERMS = ("a", "b", "c"), [(0, 0), (700, 1), (999, 3)]


class Grouped(nn.Module):
    """A convolution in groups, which has no two factors."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.last = nn.Linear(4, 2)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        hidden = self.grouped(self.plain(noisy).tanh()).tanh()
        return Prediction(self.last(hidden.mean((2, 3)))[:, :, None, None] * noisy)


def double(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(4)
    return kind().double()


def found(model: nn.Module, projection: FactoredProjection | None, normalized: bool = False) -> Tensor:
    arguments = (IMAGES, IDS, TERMS, output_function("loss"), 7, NoiseSchedule(), CPU)
    row_bytes = layerwise_bytes(model, SHAPE, CPU)
    return summed_gradients(model, *arguments, row_bytes, normalized=normalized, reduction=projection)


def layers_of(model: nn.Module) -> list[KroneckerLayer]:
    layers = kronecker_layers(model, SHAPE, CPU)
    assert layers is not None
    return layers


def explicit(model: nn.Module, projection: FactoredProjection) -> Tensor:
    """The projection's matrix ``(dim, num_parameters)``, of Kronecker products of the two sides."""
    matrix = torch.zeros(projection.dim, num_parameters(model)).double()
    at, left_out = 0, torch.ones(num_parameters(model), dtype=torch.bool)
    for layer, _, left, right in projection._blocks.values():
        one = torch.eye(layer.outputs) if left is None else left
        other = torch.eye(layer.inputs) if right is None else right
        product = torch.kron(one.double(), other.double())
        places = torch.arange(layer.weight.start, layer.weight.stop).reshape(layer.outputs, -1)
        if layer.bias is not None:
            places = torch.cat([places, torch.arange(layer.bias.start, layer.bias.stop)[:, None]], 1)
        matrix[at : at + len(product), places.flatten()] = product
        left_out[places.flatten()] = False
        at += len(product)
    for (begin, end), (place, rest) in projection._rest.items():
        assert left_out[begin:end].all()
        assert place.start == at
        matrix[place, begin:end] = torch.eye(end - begin).double() if rest is None else rest.double()
        left_out[begin:end] = False
        at = place.stop
    assert not left_out.any()
    assert at == projection.dim
    return matrix


@pytest.mark.parametrize("kind", [Small, Grouped])
@pytest.mark.parametrize("dim", [12, 100, 150, 200, 10**6])
def test_features_equal_the_explicit_projection_of_gradients(
    kind: Callable[[], nn.Module], dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = double(kind)
    projection = FactoredProjection(layers_of(model), num_parameters(model), dim, 5, CPU)
    assert projection.dim <= dim
    matrix, gradients = explicit(model, projection), found(model, None)
    for rows in (1, 4, 100):
        monkeypatch.setattr(per_sample, "_LARGEST_PASS", rows)
        torch.testing.assert_close(found(model, projection), gradients @ matrix.T, rtol=1e-9, atol=1e-12)
    if dim == 10**6:  # nothing is projected
        torch.testing.assert_close(found(model, projection).norm(dim=1), gradients.norm(dim=1), rtol=1e-9, atol=0)


def test_the_width_is_the_largest_that_fits() -> None:
    model = Small()
    layers = layers_of(model)
    widths = [FactoredProjection(layers, num_parameters(model), dim, 5, CPU) for dim in range(20, 400, 7)]
    for projection, dim in zip(widths, range(20, 400, 7), strict=True):
        sizes = [
            8 + sum(min(layer.outputs, width) * min(layer.inputs, width) for layer in layers)
            for width in (projection.width, projection.width + 1)
        ]
        assert projection.dim == sizes[0] <= dim
        assert sizes[1] > dim or sizes[1] == sizes[0]
    with pytest.raises(UsageError, match="proj_dim must be at least 6 for a factored projection"):
        FactoredProjection(layers, num_parameters(model), 5, 5, CPU)


def test_norms_are_projected_where_they_would_take_most_of_the_features() -> None:
    model = Small()
    layers, size = layers_of(model), num_parameters(model)
    for dim in range(6, 16):  # the norm has 8 parameters
        projection = FactoredProjection(layers, size, dim, 5, CPU)
        sizes = [
            min(8, width) + sum(min(layer.outputs, width) * min(layer.inputs, width) for layer in layers)
            for width in (projection.width, projection.width + 1)
        ]
        assert projection.dim == sizes[0] <= dim < sizes[1]
        assert projection.spec["rest"] == "projected"
    assert "rest" not in FactoredProjection(layers, size, 16, 5, CPU).spec


def test_the_published_preset_s_model_fits_logra() -> None:
    """Of 38 million parameters 27,904 are those of norms, many more than LoGra has features."""
    config = resolve("cifar10", "paper", ["logra"], {})
    model = build_network(config.settings.model, (3, 32, 32))
    layers = kronecker_layers(model.eval(), (3, 32, 32), CPU)
    assert layers is not None
    (method,) = config.methods
    assert method.options["projection"] == "factored"
    projection = FactoredProjection(layers, num_parameters(model), method.options["proj_dim"], 5, CPU)
    assert 0.7 * 4096 < projection.dim <= 4096
    assert projection.matrix_bytes < 2**26


@pytest.mark.parametrize("dim", [14, 60])
def test_inner_products_are_those_of_gradients_in_expectation(dim: int) -> None:
    model = double(Small)
    gradients = found(model, None)
    layers, size = layers_of(model), num_parameters(model)
    products = []
    for seed in range(400):
        features = gradients @ explicit(model, FactoredProjection(layers, size, dim, seed, CPU)).T
        products.append(features @ features.T)
    mean, spread = torch.stack(products).mean(0), torch.stack(products).std(0)
    assert ((mean - gradients @ gradients.T).abs() < 4 * spread / 400**0.5).all()
    assert (spread > 0).all()


def test_normalised_features_have_length_1_after_the_projection() -> None:
    model = double(Small)
    projection = FactoredProjection(layers_of(model), num_parameters(model), 100, 5, CPU)
    matrix = explicit(model, projection)
    total = torch.zeros(3, projection.dim).double()
    for term in TERMS:
        arguments = (IMAGES, IDS, [term], output_function("loss"), 7, NoiseSchedule(), CPU)
        features = summed_gradients(model, *arguments, layerwise_bytes(model, SHAPE, CPU)) @ matrix.T
        total += features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found(model, projection, normalized=True), total, rtol=1e-9, atol=1e-12)


def test_stored_features_are_projected_means(tmp_path: Path) -> None:
    context, _ = problem(Small, tmp_path, SHAPE)
    model, train = context.target_model(), context.train

    def ask(dim: int) -> Tensor:
        return GradientFeatures(context, FeatureOptions("loss", 3, "factored", dim)).of(model, train).load()

    first = ask(100)
    moments_of = moments(model, train.images, train.ids, SEED, [0, 333, 666, 999])
    gradients = torch.stack(
        [torch.stack([m.gradient((m.predicted - m.noise).square().mean()) for m in own]).mean(0) for own in moments_of]
    )
    plan = GradientFeatures(context, FeatureOptions("loss", 3, "factored", 100)).plan(model, train)
    assert isinstance(plan.projection, FactoredProjection)
    expected = gradients @ explicit(model, plan.projection).T
    assert (first - expected).abs().max() < 1e-5 * expected.abs().max()
    count = len(list(context.shared_store().store.artifacts()))
    assert ask(plan.projection.dim).shape == first.shape  # another limit, the same width
    assert len(list(context.shared_store().store.artifacts())) == count
    assert plan.disk() == 0


def test_it_needs_less_memory_than_gradients(tmp_path: Path) -> None:
    context, _ = problem(Small, tmp_path, SHAPE)

    def needed(projection: str) -> int:
        options = FeatureOptions("loss", 1, projection, 30)  # type: ignore[arg-type]
        plan = GradientFeatures(context, options).plan(context.target_model(), context.train)
        plan.__dict__["row_bytes"] = 1
        return plan.memory()

    assert needed("factored") < needed("identity")


def test_what_cannot_be_factored_is_a_reason_to_skip(tmp_path: Path) -> None:
    context, _ = problem(Small, tmp_path, SHAPE)
    reason = TRAK(num_timesteps=1, projection="factored", proj_dim=5).skip_reason(context)
    assert reason == "proj_dim must be at least 6 for a factored projection of this network; got 5."

    class Scaled(Small):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
            return Prediction(super().forward(noisy, timesteps).sample * self.scale)

    other, _ = problem(Scaled, tmp_path, SHAPE)
    assert "no other parameters" in (TRAK(projection="factored").skip_reason(other) or "")
    with pytest.raises(AttribenchError, match="no other parameters"):
        GradientFeatures(other, FeatureOptions(projection="factored")).of(other.target_model(), other.train)


@pytest.mark.slow
def test_conforms() -> None:
    assert check_method(TRAK, num_timesteps=1, projection="factored", proj_dim=2000) is None
