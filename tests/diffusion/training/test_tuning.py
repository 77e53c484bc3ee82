"""LoRA on a pretrained network: what it computes, what is trained of it, and that the base stays as it was."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from attribench.diffusion.network import build_network
from attribench.diffusion.training.loop import checkpoint_steps, load_lora, num_steps, train_network
from attribench.diffusion.training.tuning import begin_lora, fill_lora, lora_layers, trained_weights
from attribench.diffusion.training.unfinished import RESUME_FILE, checkpoint_name
from attribench.errors import ModelError, UsageError
from attribench.settings import ModelSettings, Settings, TrainingSettings

CPU = torch.device("cpu")
BASED = ModelSettings(base="some-base", dropout=0.1)


@pytest.fixture
def training(tiny_settings: Settings) -> TrainingSettings:
    return replace(tiny_settings.training, lora_rank=2, lora_alpha=3.0, lora_modules=["conv1", "to_q", "time_emb_proj"])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base(tiny_model: ModelSettings) -> nn.Module:
    torch.manual_seed(3)
    return build_network(tiny_model, (1, 8, 8)).eval()


class Loader:
    """Gives the same weights in another network at every call, and remembers these."""

    def __init__(self, base: nn.Module, model: ModelSettings) -> None:
        self._base, self._model = base, model
        self.given: list[nn.Module] = []

    def __call__(self) -> nn.Module:
        network = build_network(self._model, (1, 8, 8))
        network.load_state_dict(self._base.state_dict())
        self.given.append(network)
        return network.eval()


@pytest.fixture
def loader(base: nn.Module, tiny_model: ModelSettings) -> Loader:
    return Loader(base, tiny_model)


def test_a_layer_gives_w_x_and_alpha_over_rank_b_a_x(base: nn.Module, training: TrainingSettings) -> None:
    begin_lora(base, training)
    linear = base.get_submodule("mid_block.attentions.0.to_q")
    conv = base.get_submodule("down_blocks.1.resnets.0.conv1")
    for layer in (linear, conv):
        nn.init.normal_(layer.lora_B["default"].weight)
    a, b = (getattr(linear, f"lora_{x}")["default"].weight.double() for x in "AB")
    inputs = torch.randn(5, 16)
    expected = linear.base_layer.double()(inputs.double()) + 3 / 2 * inputs.double() @ a.T @ b.T
    linear.base_layer.float()
    torch.testing.assert_close(linear(inputs).double(), expected, rtol=1e-5, atol=1e-5)
    # A convolution's product is one kernel: Σ_r B[o, r] A[r, i, :, :].
    a, b = (getattr(conv, f"lora_{x}")["default"].weight.double() for x in "AB")
    kernel = conv.base_layer.weight.double() + 3 / 2 * torch.einsum("or,rixy->oixy", b[:, :, 0, 0], a)
    pixels = torch.randn(2, 8, 4, 4)
    expected = nn.functional.conv2d(pixels.double(), kernel, conv.base_layer.bias.double(), padding=1)
    torch.testing.assert_close(conv(pixels).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_new_lora_changes_nothing_and_all_else_is_frozen(
    base: nn.Module, loader: Loader, training: TrainingSettings
) -> None:
    noisy, timesteps = torch.randn(3, 1, 8, 8), torch.tensor([0, 400, 900])
    network = loader()
    begin_lora(network, training)
    with torch.no_grad():
        assert torch.equal(network(noisy, timesteps).sample, base(noisy, timesteps).sample)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if ".lora_" in name}
    layers = lora_layers(base, training.lora_modules)
    assert set(trained_weights(network)) == {f"{layer}.lora_{x}.weight" for layer in layers for x in "AB"}


def test_patterns_are_names_their_ends_or_stars(base: nn.Module) -> None:
    every = [name for name, module in base.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert lora_layers(base, ["*"]) == every
    assert lora_layers(base, ["conv_in"]) == ["conv_in"]
    assert lora_layers(base, ["to_q", "to_out.0"]) == ["mid_block.attentions.0.to_q", "mid_block.attentions.0.to_out.0"]
    assert lora_layers(base, ["mid_block.*.conv?"]) == [
        f"mid_block.resnets.{k}.conv{n}" for k in (0, 1) for n in (1, 2)
    ]
    with pytest.raises(UsageError, match=r"lora_modules: no linear.* called 'to_kk'\. Did you mean 'to_k'\?"):
        lora_layers(base, ["to_q", "to_kk"])


def copy(source: Path, name: str, sha256: str) -> None:
    """What a training kept, under its own name beside it."""
    content = source.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    (source.parent / name).write_bytes(content)


@pytest.mark.slow
def test_training_leaves_the_base_as_it_was_bit_for_bit(
    base: nn.Module, loader: Loader, training: TrainingSettings, images: torch.Tensor, tmp_path: Path
) -> None:
    network = train_network(images, BASED, training, 7, tmp_path, CPU, base=loader)
    before = base.state_dict()
    after = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(value.abs().max() > 0 for name, value in trained_weights(network).items() if ".lora_B." in name)
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.1}


@pytest.mark.slow
def test_a_base_keeps_its_own_dropout_where_none_is_given(
    loader: Loader, training: TrainingSettings, images: torch.Tensor, tmp_path: Path
) -> None:
    def begun() -> nn.Module:
        network = loader()
        for index, module in enumerate(dropouts(network)):
            module.p = (0.0, 0.25)[index % 2]
        return network

    def dropouts(network: nn.Module) -> list[nn.Dropout]:
        return [module for module in network.modules() if isinstance(module, nn.Dropout)]

    own = [module.p for module in dropouts(begun())]
    assert set(own) == {0.0, 0.25}
    network = train_network(images, ModelSettings(base="some-base"), training, 7, tmp_path, CPU, base=begun)
    assert [module.p for module in dropouts(network)] == own
    save_file(trained_weights(network), tmp_path / "lora.safetensors")
    again = load_lora(begun, ModelSettings(base="some-base"), training, tmp_path / "lora.safetensors")
    assert [module.p for module in dropouts(again)] == own
    given = load_lora(begun, BASED, training, tmp_path / "lora.safetensors")
    assert {module.p for module in dropouts(given)} == {0.1}


@pytest.mark.slow
def test_what_is_kept_is_the_lora_and_gives_the_same_network(
    loader: Loader, training: TrainingSettings, images: torch.Tensor, tmp_path: Path
) -> None:
    network = train_network(images, BASED, training, 7, tmp_path, CPU, base=loader, keep=copy)
    save_file(trained_weights(network), tmp_path / "lora.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = load_lora(loader, BASED, training, tmp_path / "lora.safetensors")
    assert torch.equal(torch.rand(1), expected), "loading took from the caller's generator"
    assert not again.training
    own, others = network.state_dict(), again.state_dict()
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name], others[name]) for name in own)
    last = load_file(tmp_path / checkpoint_name(num_steps(20, training)))
    assert last.keys() == trained_weights(network).keys()
    assert all(torch.equal(last[name], value) for name, value in trained_weights(network).items())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_lora_and_another_seed_another(
    loader: Loader, training: TrainingSettings, images: torch.Tensor, tmp_path: Path
) -> None:
    def train(seed: int, name: str) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir()
        return trained_weights(train_network(images, BASED, training, seed, tmp_path / name, CPU, base=loader))

    torch.manual_seed(123)
    first = train(7, "a")
    torch.manual_seed(321)  # the caller's generator must not matter
    again, other = train(7, "b"), train(8, "c")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


class Killed(BaseException):
    """Stands for a kill: nothing of the library may catch it."""


@pytest.mark.slow
def test_a_killed_training_goes_on_without_the_base_in_its_checkpoint(
    loader: Loader, training: TrainingSettings, images: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    arguments = (images, BASED, training, 7)
    whole = train_network(*arguments, tmp_path / "whole", CPU, keep=copy, base=loader)
    steps: list[float] = []

    def kill(amount: float) -> None:
        steps.append(amount)
        if len(steps) == 7:
            raise Killed

    options = {"keep": copy, "checkpoint_seconds": 0, "base": loader}
    with pytest.raises(Killed):
        train_network(*arguments, tmp_path / "killed", CPU, report=kill, **options)
    unfinished = torch.load(tmp_path / "killed" / RESUME_FILE, weights_only=True)["state_dict"]
    assert unfinished.keys() == {f"network.{n}" for n, v in whole.named_parameters() if v.requires_grad}

    reported: list[float] = []
    resumed = train_network(*arguments, tmp_path / "killed", CPU, report=reported.append, **options)
    assert len(reported) < num_steps(20, training), "the steps before the kill were not done again"
    own, others = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(own[name], others[name]) for name in own)
    for step in checkpoint_steps(num_steps(20, training), 2):
        name = checkpoint_name(step)
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_the_lora_of_another_base_is_refused(base: nn.Module, training: TrainingSettings) -> None:
    begin_lora(base, training)
    weights = trained_weights(base)
    name = "mid_block.attentions.0.to_q.lora_A.weight"
    with pytest.raises(ModelError, match=r"file is the LoRA of another base.*to_q\.lora_A\.weight is missing"):
        fill_lora(base, {key: value for key, value in weights.items() if key != name}, "file")
    with pytest.raises(ModelError, match=r"more\.lora_A\.weight is too much"):
        fill_lora(base, {**weights, "more.lora_A.weight": torch.zeros(1)}, "file")
    with pytest.raises(ModelError, match=r"to_q.lora_A.weight has \(3, 16\) in place of \(2, 16\)"):
        fill_lora(base, {**weights, name: torch.zeros(3, 16)}, "file")
