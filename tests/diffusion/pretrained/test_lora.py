"""LoRA files: what is read of them does what peft does, and one clear line for each that cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import adapted, base, filled, save_plain, save_with_peft
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attribench.diffusion.digests import model_digest
from attribench.diffusion.parameters import trainable
from attribench.diffusion.pretrained.models import load_model
from attribench.errors import ModelError

NOISY = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def output(network: nn.Module) -> Tensor:
    found: Tensor = network(NOISY, torch.tensor([10, 700])).sample
    return found


def test_peft_s_folder_is_read_with_its_ranks_and_alphas(tmp_path: Path) -> None:
    file = save_with_peft(tmp_path / "lora")
    model = load_model(base(), "ddpm", lora=file)
    assert torch.allclose(output(model.network), output(adapted()), atol=1e-6)
    assert not torch.allclose(output(model.network), output(base()), atol=1e-3)
    assert torch.equal(output(load_model(base(), "ddpm", lora=tmp_path / "lora").network), output(model.network))
    names = set(trainable(model.network))
    assert names == {name for name, _ in adapted().named_parameters() if "lora_" in name}
    modules = [name for name, _ in base().named_modules() if name.endswith(("to_q", "to_v", "conv1", "conv_shortcut"))]
    assert model.notes == [f"LoRA {file}: {len(modules)} modules, rank 2–3, alpha 2–7."]
    count = sum(value.numel() for value in trainable(model.network).values())
    assert f", {count:,} of them LoRA's, predicts the noise)" in model.description


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}])
def test_variants_of_lora(options: dict[str, bool], tmp_path: Path) -> None:
    model = load_model(base(), "ddpm", lora=save_with_peft(tmp_path, **options))
    expected = filled(get_peft_model(base(), LoraConfig(**{**config_of(tmp_path), **options})))
    assert torch.allclose(output(model.network), output(expected), atol=1e-6)


def config_of(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return {key: config[key] for key in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")}


def test_weights_alone_take_alpha_for_the_rank_and_say_so(tmp_path: Path) -> None:
    file = save_plain(tmp_path / "weights.safetensors", adapted(r=2, rank_pattern={}, lora_alpha=2, alpha_pattern={}))
    model = load_model(base(), "ddpm", lora=file)
    assert torch.allclose(output(model.network), output(adapted(r=2, rank_pattern={}, alpha_pattern={})), atol=1e-6)
    assert model.notes[0].endswith("rank 2, alpha 2, which nothing says: taken as the rank, as diffusers does.")


def test_alphas_in_the_file_itself(tmp_path: Path) -> None:
    state = load_file(save_plain(tmp_path / "plain.safetensors", adapted(rank_pattern={}, alpha_pattern={})))
    modules = {name.rpartition(".lora_")[0] for name in state}
    save_file({**state, **{f"{module}.alpha": torch.tensor(6.0) for module in modules}}, tmp_path / "own.safetensors")
    model = load_model(base(), "ddpm", lora=tmp_path / "own.safetensors")
    expected = adapted(rank_pattern={}, alpha_pattern={}, lora_alpha=6)
    assert torch.allclose(output(model.network), output(expected), atol=1e-6)


def test_names_with_the_unet_s_prefix_and_of_an_adapter(tmp_path: Path) -> None:
    own = {"rank_pattern": {}, "alpha_pattern": {}}
    as_the_rank = adapted(r=2, lora_alpha=2, **own)  # what is taken where nothing says it
    state = load_file(save_plain(tmp_path / "plain.safetensors", as_the_rank))
    assert not torch.allclose(output(as_the_rank), output(base()), atol=1e-3)
    for number, rename in enumerate(
        (
            lambda name: f"unet.{name}",
            lambda name: name.replace("lora_A.weight", "lora_A.mine.weight").replace(
                "lora_B.weight", "lora_B.mine.weight"
            ),
            lambda name: (
                "unet." + name.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight")
            ),
        )
    ):
        save_file({rename(name): value for name, value in state.items()}, tmp_path / f"{number}.safetensors")
        model = load_model(base(), "ddpm", lora=tmp_path / f"{number}.safetensors")
        assert len(trainable(model.network)) == len(state)
        assert torch.allclose(output(model.network), output(as_the_rank), atol=1e-6)


def test_a_network_in_memory_that_carries_a_lora(tmp_path: Path) -> None:
    for network in (adapted(), filled(get_peft_model(base(), LoraConfig(r=2, target_modules=["to_q"])))):
        model = load_model(network, "ddpm")
        assert list(trainable(model.network)) == list(trainable(network))
        assert torch.equal(output(model.network), output(network))


def test_the_same_weights_with_another_alpha_are_another_model() -> None:
    found = [adapted(lora_alpha=alpha) for alpha in (2, 2, 4)]
    digests = [model_digest(network) for network in found]
    assert digests[0] == digests[1] != digests[2]


def test_loras_of_the_course_of_the_training(tmp_path: Path) -> None:
    for number in (500, 1000):
        save_with_peft(tmp_path / "run" / f"checkpoint-{number}", seed=number)
    save_with_peft(tmp_path / "run", seed=3)
    for given in ({"lora": tmp_path / "run"}, {}):
        model = load_model(base() if given else adapted(seed=3), "ddpm", tmp_path / "run", **given)
        found = list(model.checkpoints())
        assert len(found) == 2
        for network, number in zip(found, (500, 1000), strict=True):
            assert torch.allclose(output(network), output(adapted(seed=number)), atol=1e-6)
            assert network.conv_in.weight.data_ptr() == model.network.conv_in.weight.data_ptr()
        assert torch.allclose(output(model.network), output(adapted(seed=3)), atol=1e-6)
    save_with_peft(tmp_path / "run" / "checkpoint-500", target_modules=["to_q"], rank_pattern={}, alpha_pattern={})
    model = load_model(base(), "ddpm", tmp_path / "run", tmp_path / "run")
    with pytest.raises(ModelError, match=r"is another LoRA: .* is missing"):
        next(model.checkpoints())


def test_checkpoints_with_magnitudes(tmp_path: Path) -> None:
    for name, seed in (("lora", 1), ("run/checkpoint-1", 5)):
        save_with_peft(tmp_path / name, seed, use_dora=True)
    model = load_model(base(), "ddpm", tmp_path / "run", tmp_path / "lora")
    other = load_model(base(), "ddpm", lora=tmp_path / "run" / "checkpoint-1")
    assert torch.allclose(output(next(model.checkpoints())), output(other.network), atol=1e-6)
    assert not torch.allclose(output(model.network), output(other.network), atol=1e-3)
    assert any("lora_magnitude_vector" in name for name in trainable(model.network))


#: How a checkpoint counts that was saved with other options than the LoRA it is compared with.
OTHERS: dict[str, tuple[dict[str, object], str]] = {
    "alpha": (
        {"lora_alpha": 20},
        r"with its alpha of 20, B·A of .* counts 6\.66667 times, and that of the model 0\.666667 times",
    ),
    "pattern": ({"alpha_pattern": {"conv1": 7, "to_v": 50}}, r"with its alpha of 50, B·A of .*to_v"),
    "rank's root": ({"use_rslora": True}, r"with its alpha of \d, B·A of .* counts .* times"),
    "magnitudes": ({"use_dora": True}, r"another LoRA: .*lora_magnitude_vector is too much"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoints_that_count_otherwise_are_refused(name: str, tmp_path: Path) -> None:
    options, message = OTHERS[name]
    save_with_peft(tmp_path / "lora")
    save_with_peft(tmp_path / "run" / "checkpoint-1", 5, **options)
    for network, lora in ((base(), tmp_path / "lora"), (adapted(), None)):
        model = load_model(network, "ddpm", tmp_path / "run", lora)
        with pytest.raises(ModelError, match=message):
            next(model.checkpoints())


def test_checkpoints_that_began_otherwise_are_refused(tmp_path: Path) -> None:
    save_with_peft(tmp_path / "run" / "checkpoint-1", 5)
    config = tmp_path / "run" / "checkpoint-1" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": "pissa"}))
    with pytest.raises(ModelError, match="was begun with init_lora_weights='pissa'"):
        next(load_model(adapted(), "ddpm", tmp_path / "run").checkpoints())


def test_checkpoints_that_do_not_say_how_much_they_count_do_so_as_the_model(tmp_path: Path) -> None:
    save_with_peft(tmp_path / "lora")
    save_plain(tmp_path / "run" / "1.safetensors", adapted(seed=5))
    model = load_model(base(), "ddpm", tmp_path / "run", tmp_path / "lora")
    assert model.notes == [model.notes[0]]
    assert torch.allclose(output(next(model.checkpoints())), output(adapted(seed=5)), atol=1e-6)


def test_loras_of_a_text_encoder_among_checkpoints_are_spoken_of(tmp_path: Path) -> None:
    file = save_plain(tmp_path / "run" / "1.safetensors")
    state = {f"unet.{name}": value for name, value in load_file(file).items()}
    save_file({**state, **pair("text_encoder.layers.0.q_proj", 8)}, file)
    model = load_model(adapted(), "ddpm", tmp_path / "run")
    assert model.notes == [
        "LoRAs of the text encoder among the checkpoints are left out: captions are told by the model's own text encoder."
    ]
    assert torch.equal(output(next(model.checkpoints())), output(adapted()))


def edited(tmp_path: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    state = load_file(save_plain(tmp_path / "plain.safetensors"))
    edit(state)
    save_file(state, tmp_path / "edited.safetensors")
    return tmp_path / "edited.safetensors"


def pair(module: str, size: int) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(1, size), f"{module}.lora_B.weight": torch.ones(size, 1)}


TO_Q = "mid_block.attentions.0.to_q"

WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "module": (
        lambda state: state.update(pair("new.to_q", 8)),
        r"is the LoRA of another base than UNet2DModel: that has no new\.to_q",
    ),
    "shape": (
        lambda state: state.update({f"{TO_Q}.lora_A.weight": torch.ones(3, 16)}),
        rf"another base than UNet2DModel: lora_A of {TO_Q} is for 16, and the layer there has 8",
    ),
    "rank": (lambda state: state.update({f"{TO_Q}.lora_A.weight": torch.ones(2, 8)}), "have other ranks"),
    "half": (lambda state: state.pop(f"{TO_Q}.lora_B.weight"), f"not complete: lora_B of {TO_Q} is missing"),
    "norm": (
        lambda state: state.update(pair("conv_norm_out", 4)),
        "conv_norm_out is a GroupNorm, no linear layer or convolution",
    ),
    "foreign": (lambda state: state.update({"conv_in.hada_w1_a": torch.ones(2)}), "hada_w1_a, which is no weight of a LoRA"),
    "kohya": (
        lambda state: (state.clear(), state.update({"lora_unet_mid_block_to_q.lora_down.weight": torch.ones(2, 8)})),
        "names of kohya's scripts, and diffusers cannot convert them",
    ),
    "some of kohya's names": (
        lambda state: state.update({"lora_unet_mid_block_attentions_0_to_q.lora_down.weight": torch.ones(2, 8)}),
        "holds lora_unet_mid_block_attentions_0_to_q.lora_down.weight, which is no weight of a LoRA",
    ),
    "transformer": (
        lambda state: state.update({"transformer.blocks.0.to_q.lora_A.weight": torch.ones(2, 8)}), "weights of a transformer"
    ),
    "text encoder": (
        lambda state: state.update(pair("text_encoder.q", 8)),
        "LoRA of a text encoder, and UNet2DModel has none",
    ),
    "empty": (lambda state: state.clear(), "holds no weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_line_for_what_does_not_fit(name: str, tmp_path: Path) -> None:
    edit, message = WRONG[name]
    with pytest.raises(ModelError, match=message):
        load_model(base(), "ddpm", lora=edited(tmp_path, edit))


def test_one_line_for_files_that_are_none(tmp_path: Path) -> None:
    cases: list[tuple[str, str]] = [
        ("nowhere", "There is no LoRA at"),
        ("empty", "holds no LoRA"),
        ("old", r"is pickled and may"),
    ]
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_lora_weights.bin").write_bytes(b"x")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 20)
    (tmp_path / "text.txt").write_text("x")
    cases += [("old/pytorch_lora_weights.bin", "is pickled"), ("damaged.safetensors", "is no safetensors file")]
    cases += [("text.txt", "is no safetensors file")]
    for path, message in cases:
        with pytest.raises(ModelError, match=message):
            load_model(base(), "ddpm", lora=tmp_path / path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "LOHA", "is a LOHA, no LoRA"),
        ("modules_to_save", ["conv_in"], r"modules_to_save=\['conv_in'\] is not"),
        *(
            (
                "init_lora_weights",
                beginning,
                f"begun with init_lora_weights='{beginning}'.*path_initial_model_for_weight",
            )
            for beginning in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
        ),
    ],
)
def test_what_the_configuration_says_and_is_not_known(key: str, value: object, message: str, tmp_path: Path) -> None:
    file = save_with_peft(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(ModelError, match=message):
        load_model(base(), "ddpm", lora=file)


@pytest.mark.parametrize("beginning", [True, False, "gaussian", "orthogonal", "eva"])
def test_beginnings_that_leave_the_base_as_it_is(beginning: object, tmp_path: Path) -> None:
    file = save_with_peft(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": beginning}))
    assert torch.allclose(output(load_model(base(), "ddpm", lora=file).network), output(adapted()), atol=1e-6)


def test_what_peft_makes_of_pissa_is_refused_and_read_once_it_is_converted(tmp_path: Path) -> None:
    """PiSSA moves the largest singular values of the base into the LoRA; peft can say the result as a LoRA of the base."""
    options = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_v"], "init_lora_weights": "pissa"}
    model = get_peft_model(base(), LoraConfig(**options))
    begun = tmp_path / "begun"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(begun)
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.mul_(1.1)
    model.eval().save_pretrained(tmp_path / "pissa")
    with pytest.raises(ModelError, match="was begun with init_lora_weights='pissa'"):
        load_model(base(), "ddpm", lora=tmp_path / "pissa")
    expected = output(model)
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(begun))
    converted = load_model(base(), "ddpm", lora=tmp_path / "converted")
    assert torch.allclose(output(converted.network), expected, atol=1e-5)
    assert not torch.allclose(expected, output(base()), atol=1e-3)


def changed_by_peft(how: str) -> nn.Module:
    model = filled(get_peft_model(base(), LoraConfig(r=2, target_modules=["to_q"])))
    getattr(model.base_model, how)()  # type: ignore[union-attr]
    return model


NOT_IN_USE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "merged": (lambda: changed_by_peft("merge_adapter"), r"its LoRA is merged.*unmerge_adapter\(\)"),
    "disabled": (lambda: changed_by_peft("disable_adapter_layers"), r"switched off.*enable_adapter_layers\(\)"),
}


@pytest.mark.parametrize("name", NOT_IN_USE)
def test_a_lora_that_is_not_in_use_is_refused_with_what_to_call(name: str) -> None:
    make, message = NOT_IN_USE[name]
    with pytest.raises(ModelError, match=message):
        load_model(make(), "ddpm")


def test_a_second_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="carries a LoRA already"):
        load_model(adapted(), "ddpm", lora=save_with_peft(tmp_path))


def test_a_model_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    model, network = load_model(base(), "ddpm"), base()
    before = output(network)
    load_model(network, "ddpm", lora=save_with_peft(tmp_path))
    load_model(model, lora=save_with_peft(tmp_path))
    for given in (network, model.network):
        assert torch.equal(output(given), before)
        assert all(value.requires_grad for value in given.parameters())


def test_without_peft_the_error_says_what_to_install(tmp_path: Path) -> None:
    """And the command line does not import it."""
    base().save_pretrained(tmp_path / "base")
    file = save_with_peft(tmp_path / "lora")
    shutil.rmtree(tmp_path / "lora" / "README.md", ignore_errors=True)
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from attribench.diffusion.pretrained.models import load_model\n"
        f"load_model({str(tmp_path / 'base')!r}, 'ddpm', lora={str(file)!r})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "LoRA needs peft: pip install attribench[latent]" in found.stderr
    code = "import sys, attribench.cli as cli; cli.main(['--help']); assert not {'peft', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
