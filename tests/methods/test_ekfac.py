"""EK-FAC against dense matrices in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense_gradients import moments
from torch import Tensor, nn
from toy_problem import SEED, Prediction, Small, problem

from attribench import AttributionContext, Queries
from attribench.computing.seeding import derive_seed
from attribench.diffusion.noise import sample_noise
from attribench.errors import AttribenchError, UsageError
from attribench.gradients import budget
from attribench.gradients.ekfac import Curvature
from attribench.gradients.kronecker import kronecker_layers
from attribench.gradients.options import FeatureOptions
from attribench.method import score, start
from attribench.methods.ekfac import EKFAC
from attribench.testing import check_method

CPU = torch.device("cpu")
TIMESTEPS = [0, 333, 666, 999]


class Affine(nn.Module):
    """ε_θ = WSx + b on images of one pixel: its loss is quadratic, and its curvature one Kronecker product."""

    stretch = (5.0, 1.0, 0.2)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        return Prediction(self.layer(noisy * torch.tensor(self.stretch).to(noisy)[:, None, None]))


class Scaled(Affine):
    """A parameter that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Prediction:
        return Prediction(super().forward(noisy, timesteps).sample * self.scale)


def scores_of(method: EKFAC, context: AttributionContext, queries: Queries) -> Tensor:
    start(method, context)
    return score(method, queries)


@dataclass
class Dense:
    """What one module's gradients are made of, gathered with hooks and autograd in float64."""

    rows: slice  # the weight's and the bias's entries, which lie side by side
    samples: list[Tensor]  # gradients of pseudo-targets' losses, (outputs, inputs)
    a: Tensor  # Σ a·aᵀ
    b: Tensor  # Σ g·gᵀ

    def eigenbasis(self) -> Tensor:
        """U_B ⊗ U_A, for a matrix's entries row by row."""
        return torch.kron(torch.linalg.eigh(self.b)[1], torch.linalg.eigh(self.a)[1])

    def curvature(self) -> Tensor:
        flat = torch.stack(self.samples).flatten(1)
        return flat.T @ flat / len(flat)


def dense_layers(context: AttributionContext, draws: int) -> dict[str, Dense]:
    model = context.target_model().double()
    calls: list[tuple[str, Tensor, Tensor]] = []
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    handles = [
        module.register_forward_hook(lambda _, given, output, name=name: calls.append((name, given[0], output)))
        for name, module in layers.items()
    ]
    place, at = {}, 0
    for name, parameter in model.named_parameters():
        place[name] = at
        at += parameter.numel()
    found: dict[str, Dense] = {}
    for image, identifier in zip(context.train.images, context.train.ids, strict=True):
        for timestep in TIMESTEPS:
            for draw in range(draws):
                calls.clear()
                clean, alpha_bar = image.double() / 127.5 - 1, context.schedule.alpha_bar[timestep].double()
                shape = clean.shape
                noise = sample_noise(derive_seed(SEED, "gradients"), identifier, timestep, draw, shape).double()
                noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
                predicted = model(noisy[None], torch.tensor([timestep])).sample[0]
                pseudo = sample_noise(derive_seed(SEED, "pseudo-targets"), identifier, timestep, draw, shape).double()
                # The loss at the target ε_θ − √(D/2)·z, of which the gradient is that of √(2/D)·⟨z, ε_θ⟩.
                target = (predicted - (shape.numel() / 2) ** 0.5 * pseudo).detach()
                loss = (predicted - target).square().mean()
                outputs = torch.autograd.grad(loss, [output for _, _, output in calls])
                total: dict[str, Tensor] = {}
                for (name, given, _), gradient in zip(calls, outputs, strict=True):
                    module = layers[name]
                    if isinstance(module, nn.Conv2d):
                        size, more = module.kernel_size, (module.dilation, module.padding, module.stride)
                        seen, g = F.unfold(given, size, *more)[0].T, gradient[0].flatten(1).T  # type: ignore[arg-type]
                    else:
                        seen, g = given.reshape(-1, given.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
                    if module.bias is not None:
                        seen = torch.cat([seen, torch.ones(len(seen), 1).double()], 1)
                    seen, begin = seen.detach(), place[f"{name}.weight"]
                    width = g.shape[1] * seen.shape[1]
                    entry = found.setdefault(
                        name, Dense(slice(begin, begin + width), [], seen.T @ seen * 0, g.T @ g * 0)
                    )
                    entry.a, entry.b = entry.a + seen.T @ seen, entry.b + g.T @ g
                    total[name] = total.get(name, torch.zeros(1).double()) + g.T @ seen
                for name, gradient in total.items():
                    found[name].samples.append(gradient)
    for handle in handles:
        handle.remove()
    model.float()
    return found


def mean_gradients(context: AttributionContext, images: Tensor, ids: tuple[str, ...], draws: int) -> Tensor:
    found = moments(context.target_model(), images, ids, SEED, TIMESTEPS, draws)
    return torch.stack(
        [torch.stack([m.gradient((m.predicted - m.noise).square().mean()) for m in own]).mean(0) for own in found]
    )


def as_matrix(layer: Dense, gradients: Tensor) -> Tensor:
    """Entries of a layer as its matrix has them, row by row, the bias at the end of each row: ``(n, entries)``."""
    own, outputs = gradients[:, layer.rows], len(layer.b)
    if own.shape[1] == outputs * len(layer.a) and layer.a[-1, -1] != layer.a[-1, -1].round():
        return own
    weight, bias = own[:, : own.shape[1] - outputs], own[:, own.shape[1] - outputs :]
    return torch.cat([weight.reshape(len(own), outputs, -1), bias[:, :, None]], 2).flatten(1)


def test_scores_and_eigenvalues_equal_the_dense_ones(tmp_path: Path) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    layers = dense_layers(context, draws=2)
    assert len(layers) == 5
    x = mean_gradients(context, queries.images, queries.ids, 2)
    phi = mean_gradients(context, context.train.images, context.train.ids, 2)
    found = Curvature(context, FeatureOptions("loss", 3, noise_draws=2)).layers(context.target_model(), context.train)
    by_name = {part.layer.name.removesuffix(".weight"): part for part in found}
    assert by_name.keys() == layers.keys()
    expected = torch.zeros(3, 8).double()
    for name, layer in layers.items():
        assert by_name[name].layer.inputs == len(layer.a)
        basis, curvature = layer.eigenbasis(), layer.curvature()
        values = (basis.T @ curvature @ basis).diagonal()
        assert (by_name[name].eigenvalues.flatten() - values).abs().max() < 1e-4 * values.max()
        damped = basis @ torch.diag(values + 0.03 * values.mean()) @ basis.T
        expected += as_matrix(layer, x) @ torch.linalg.solve(damped, as_matrix(layer, phi).T)
    scores = scores_of(EKFAC(num_timesteps=3, noise_draws=2, damping=0.03), context, queries)
    assert (scores - expected).abs().max() < 1e-4 * expected.abs().max()


def test_where_the_curvature_is_a_kronecker_product_scores_are_exact_influence(tmp_path: Path) -> None:
    """As draws grow: with one position, a quadratic loss, and an output gradient that does not depend on the input."""
    context, queries = problem(Affine, tmp_path, (3, 1, 1))
    draws = 100
    inputs = [
        torch.cat([(alpha_bar.sqrt() * (image.double().flatten() / 127.5 - 1) + (1 - alpha_bar).sqrt() * noise), one])
        for image, name in zip(context.train.images, context.train.ids, strict=True)
        for timestep in TIMESTEPS
        for draw in range(draws)
        for alpha_bar, one in [(context.schedule.alpha_bar[timestep].double(), torch.ones(1).double())]
        for noise in [sample_noise(derive_seed(SEED, "gradients"), name, timestep, draw, (3,)).double()]
    ]
    a = torch.stack(inputs) * torch.tensor([*Affine.stretch, 1.0])
    dense = torch.kron(torch.eye(3).double() * 2 / 3, a.T @ a / len(a))  # of mean((WSx + b − ε)²)
    damped = dense + 0.01 * dense.diagonal().mean() * torch.eye(12).double()

    def rows(images: Tensor, ids: tuple[str, ...]) -> Tensor:
        gradients = mean_gradients(context, images, ids, draws)
        return torch.cat([gradients[:, :9].reshape(-1, 3, 3), gradients[:, 9:, None]], 2).flatten(1)

    x, phi = rows(queries.images, queries.ids), rows(context.train.images, context.train.ids)
    expected = x @ torch.linalg.solve(damped, phi.T)
    scores = scores_of(EKFAC(num_timesteps=3, noise_draws=draws, damping=0.01), context, queries)

    def common_removed(values: Tensor) -> Tensor:  # what all pairs have in common is most of it
        values = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
        return values / values.norm()

    assert (scores - expected).norm() < 0.05 * expected.norm()
    assert (common_removed(scores) * common_removed(expected)).sum() > 0.99
    assert (common_removed(x @ phi.T) * common_removed(expected)).sum() < 0.9  # the curvature makes the difference


def test_layers_are_found_and_matrices_put_back() -> None:
    layers = kronecker_layers(Small(), (2, 4, 4), CPU)
    assert layers is not None
    assert [layer.name for layer in layers] == [f"{n}.weight" for n in ("first", "twice", "time", "mix", "last")]
    assert [layer.positions for layer in layers] == [16, 32, 1, 16, 16]
    gradients = torch.randn(2, sum(p.numel() for p in Small().parameters()))
    copy = torch.zeros_like(gradients)
    for layer in layers:
        layer.put(layer.matrices(gradients), copy)
    assert (copy == gradients).sum() == 2 * (copy.shape[1] - 8)  # all but the norm's
    assert kronecker_layers(Scaled(), (3, 1, 1), CPU) is None


def test_passes_do_not_change_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rows in (1, 3, 100):
        monkeypatch.setattr("attribench.gradients.per_sample._LARGEST_PASS", rows)
        found.append(scores_of(EKFAC(num_timesteps=3), *problem(Small, tmp_path / str(rows), (2, 4, 4))))
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-4 * found[0].abs().max()


def test_the_damping_and_the_output_of_queries_use_what_is_there(tmp_path: Path) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    scores_of(EKFAC(num_timesteps=3), context, queries)
    count = len(list(context.shared_store().store.artifacts()))
    assert count == 4  # gradients of train images and queries, bases, eigenvalues
    scores_of(EKFAC(num_timesteps=3, damping=1.0), context, queries)
    assert len(list(context.shared_store().store.artifacts())) == count
    scores_of(EKFAC("mean", num_timesteps=3), context, queries)
    assert len(list(context.shared_store().store.artifacts())) == count + 1


@pytest.mark.slow
def test_conforms() -> None:
    assert check_method(EKFAC, num_timesteps=1) is None


def test_what_cannot_be_had_is_a_reason_to_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = problem(Small, tmp_path, (2, 4, 4))
    assert EKFAC(num_timesteps=1).skip_reason(context) is None
    assert "trained model" in (EKFAC().skip_reason(replace(context, models=None)) or "")
    other, _ = problem(Scaled, tmp_path, (3, 1, 1))
    assert "no other parameters" in (EKFAC().skip_reason(other) or "")
    with pytest.raises(AttribenchError, match="no other parameters"):
        Curvature(other, FeatureOptions()).layers(other.target_model(), other.train)
    curvature = Curvature(context, FeatureOptions(num_timesteps=1))
    with monkeypatch.context() as patch:
        patch.setattr(budget, "available_memory", lambda device: 10)
        assert "(10 bytes) are available" in (curvature.refusal(context.target_model(), context.train) or "")
        with pytest.raises(AttribenchError, match="EK-FAC's curvature of"):
            curvature.layers(context.target_model(), context.train)
    with monkeypatch.context() as patch:
        patch.setattr(budget.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
        assert "on disk" in (curvature.refusal(context.target_model(), context.train) or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping must be positive and finite; got 0.0"),
        ({"damping": float("inf")}, "damping must be positive and finite; got inf"),
        ({"num_timesteps": 0}, "num_timesteps must lie in 1..1000; got 0"),
        ({"noise_draws": 0}, "noise_draws must be at least 1; got 0"),
        ({"f": "los"}, "Did you mean 'loss'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EKFAC(**options)  # type: ignore[arg-type]


def test_an_unprepared_method_says_so() -> None:
    with pytest.raises(AttribenchError, match="not prepared"):
        EKFAC().attribute(Queries(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), ("a",)))
