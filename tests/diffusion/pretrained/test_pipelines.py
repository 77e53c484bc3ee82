"""Pipelines on latents, from folders and from memory, with LoRAs as diffusers writes them; one clear line for what is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_pipelines import TARGETS, adapt, autoencoder, pipeline, saved
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.parameters import trainable
from attribench.diffusion.pretrained.models import load_model
from attribench.errors import ModelError

pytestmark = pytest.mark.slow

FILE = "pytorch_lora_weights.safetensors"
NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
TOLD = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def output(network: nn.Module) -> Tensor:
    found: Tensor = network(NOISY, torch.tensor([10, 700]), encoder_hidden_states=TOLD).sample
    return found


@torch.no_grad()
def text(model: DiffusionModel) -> Tensor:
    assert model.text is not None
    return model.text.embed(model.text.tokens(["a cat"]), torch.device("cpu"))


def test_a_folder(tmp_path: Path) -> None:
    model, made = load_model(saved(tmp_path)), pipeline(tmp_path)
    assert torch.equal(output(model.network), output(made.unet))
    assert torch.allclose(text(model), made.encode_prompt("a cat", "cpu", 1, False)[0], atol=1e-6)
    assert model.autoencoder is not None
    assert all(
        torch.equal(a, b) for a, b in zip(model.autoencoder.module.parameters(), made.vae.parameters(), strict=True)
    )
    assert torch.equal(model.schedule.alpha_bar, made.scheduler.alphas_cumprod)
    assert (model.channels, model.image_size, model.num_classes) == (3, 16, 0)
    count = sum(value.numel() for value in made.unet.parameters())
    assert f"({count:,} parameters, predicts the noise of latents, 2 pixels each, told a text)" in model.description
    assert model.autoencoder.digest == load_model(made).autoencoder.digest  # type: ignore[union-attr]


def test_a_pipeline_in_memory_is_copied(tmp_path: Path) -> None:
    made = pipeline(tmp_path).to(dtype=torch.float16)
    model = load_model(made)
    assert model.text is not None
    assert model.autoencoder is not None
    for own, theirs in (
        (model.network, made.unet),
        (model.text.module, made.text_encoder),
        (model.autoencoder.module, made.vae),
    ):
        assert next(own.parameters()).dtype == torch.float32
        assert next(theirs.parameters()).dtype == torch.float16
    assert model.name == "StableDiffusionPipeline"


def test_a_denoiser_with_an_autoencoder_and_no_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    made = pipeline(tmp_path)
    unet = diffusers.UNet2DModel(8, 4, 4, num_class_embeds=5, **sizes, **blocks)

    class Bare:
        vae, scheduler = made.vae, made.scheduler

    Bare.unet = unet  # type: ignore[attr-defined]
    model = load_model(Bare())
    assert model.text is None
    assert (model.image_size, model.num_classes) == (16, 5)
    assert "predicts the noise of latents, 2 pixels each, 5 classes)" in model.description


def written(folder: Path, seed: int = 1, **options: Any) -> StableDiffusionPipeline:
    """A pipeline with a LoRA, and the file that diffusers' training scripts write of it."""
    made = pipeline(folder)
    adapt(made.unet, seed=seed, **options)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(made.unet))
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=state)
    return made


@pytest.mark.parametrize("how", ["script", "adapter", "load_lora_weights"])
def test_a_lora_as_diffusers_writes_it(how: str, tmp_path: Path) -> None:
    made = written(tmp_path, alpha=2 if how == "script" else 4)
    source: Any = saved(tmp_path)
    given: dict[str, Any] = {"lora": tmp_path / "lora"}
    if how == "adapter":
        made.unet.save_lora_adapter(tmp_path / "lora")
    if how == "load_lora_weights":
        made.unet.save_lora_adapter(tmp_path / "lora")
        source = StableDiffusionPipeline.from_pretrained(source, local_files_only=True)
        source.unet.load_lora_adapter(tmp_path / "lora", prefix=None, weight_name=FILE, local_files_only=True)
        given = {}
    model = load_model(source, **given)
    assert torch.allclose(output(model.network), output(made.unet), atol=1e-6)
    assert not torch.allclose(output(model.network), output(pipeline(tmp_path).unet), atol=1e-3)
    count = sum(value.numel() for name, value in made.unet.named_parameters() if "lora_" in name)
    assert sum(value.numel() for value in trainable(model.network).values()) == count
    assert f"{count:,} of them LoRA's" in model.description


def test_a_text_encoder_s_lora_changes_what_is_told(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    adapt(made.unet, alpha=2)
    adapt(made.text_encoder, alpha=2, targets=["q_proj", "v_proj"])
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(made.unet))
    encoder = get_peft_model_state_dict(made.text_encoder)
    base, plain = saved(tmp_path), text(load_model(saved(tmp_path)))
    for prefix in ("", "text_model."):  # as this version of transformers has it, and as older ones
        layers = {f"{prefix}{name}": value for name, value in encoder.items()}
        layers = convert_state_dict_to_diffusers(layers)
        StableDiffusionPipeline.save_lora_weights(
            tmp_path / "lora", unet_lora_layers=state, text_encoder_lora_layers=layers
        )
        model = load_model(base, lora=tmp_path / "lora")
        assert torch.allclose(text(model), made.encode_prompt("a cat", "cpu", 1, False)[0], atol=1e-6)
        assert not torch.allclose(text(model), plain, atol=1e-3)
        assert all("to_" in name for name in trainable(model.network))
        assert model.notes[1].endswith("of the text encoder: captions are told by it, and gradients are not of it.")


def test_kohya_s_names_are_converted(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    adapt(
        made.unet, rank=2, alpha=3, targets=[*TARGETS, "ff.net.2", "ff.net.0.proj", "proj_in", "conv1", "time_emb_proj"]
    )
    adapt(made.text_encoder, rank=2, alpha=5, targets=["q_proj", "v_proj", "out_proj", "fc1"])
    kohya = {}
    for root, network, alpha in (("lora_unet", made.unet, 3.0), ("lora_te_text_model", made.text_encoder, 5.0)):
        for name, value in get_peft_model_state_dict(network).items():
            module, _, kind = name.removesuffix(".weight").rpartition(".")
            own = f"{root}_{module.removeprefix('text_model.').replace('.', '_')}"
            kohya[f"{own}.{'lora_down' if kind == 'lora_A' else 'lora_up'}.weight"] = value.contiguous()
            kohya[f"{own}.alpha"] = torch.tensor(alpha)
    save_file(kohya, tmp_path / "kohya.safetensors")
    model = load_model(saved(tmp_path), lora=tmp_path / "kohya.safetensors")
    assert torch.allclose(output(model.network), output(made.unet), atol=1e-6)
    assert model.notes[0].endswith("rank 2, alpha 3.")
    assert "rank 2, alpha 5, of the text encoder" in model.notes[1]
    assert model.text is not None
    told = model.text.embed(model.text.tokens(["a cat"]), torch.device("cpu"))
    torch.testing.assert_close(told, made.encode_prompt("a cat", "cpu", 1, False)[0], rtol=1e-5, atol=1e-5)
    save_file({**kohya, "lora_unet_x.hada_w1_a": torch.ones(1)}, tmp_path / "kohya.safetensors")
    with pytest.raises(ModelError, match="names of kohya's scripts, and diffusers cannot convert them"):
        load_model(saved(tmp_path), lora=tmp_path / "kohya.safetensors")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("fuse_lora", r"StableDiffusionPipeline: its LoRA is merged into its weights.*unfuse_lora\(\)"),
        ("disable_adapters", r"StableDiffusionPipeline: its LoRA is switched off.*enable_adapters\(\)"),
    ],
)
def test_a_lora_in_memory_that_is_not_in_use(call: str, message: str, tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    adapt(made.unet)
    load_model(made)
    getattr(made.unet, call)()
    with pytest.raises(ModelError, match=message):
        load_model(made)


def test_the_lora_of_another_base(tmp_path: Path) -> None:
    made = pipeline(tmp_path, block_out_channels=(4, 16))
    adapt(made.unet)
    made.unet.save_lora_adapter(tmp_path / "lora")
    with pytest.raises(
        ModelError, match=r"LoRA of another base than .*: lora_A of .*to_\w+.* is for 16, and the layer there has 8"
    ):
        load_model(saved(tmp_path), lora=tmp_path / "lora")


def rewrite(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value != "gone"}))


def pickled(folder: Path, name: str) -> None:
    weights = next((folder).glob("*.safetensors"))
    weights.rename(folder / name)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another encoder": (
        lambda base: rewrite(base / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        r"with a text_encoder_2 \(CLIPTextModelWithProjection\), which is not supported; supported are models of pixels",
    ),
    "transformer": (
        lambda base: rewrite(base / "model_index.json", transformer=["diffusers", "FluxTransformer2DModel"], unet="gone"),
        r"a pipeline with a transformer \(FluxTransformer2DModel\)",
    ),
    "vq": (lambda base: rewrite(base / "model_index.json", vae=["diffusers", "VQModel"]), "has a VQModel as its vae"),
    "no unet": (lambda base: rewrite(base / "model_index.json", unet="gone"), "a pipeline without unet"),
    "no tokenizer": (lambda base: rewrite(base / "model_index.json", tokenizer="gone"), "a pipeline without tokenizer"),
    "no vae folder": (lambda base: shutil.rmtree(base / "vae"), "a pipeline without vae"),
    "no text encoder folder": (lambda base: shutil.rmtree(base / "text_encoder"), "without the folder text_encoder"),
    "no text encoder": (lambda base: rewrite(base / "model_index.json", text_encoder="gone"), "is told a text, and has no"),
    "no scheduler": (lambda base: shutil.rmtree(base / "scheduler"), "not how its noise was scheduled"),
    "pickled unet": (
        lambda base: pickled(base / "unet", "diffusion_pytorch_model.bin"),
        r"pickled and may run code .*from diffusers import UNet2DConditionModel as U",
    ),
    "pickled vae": (lambda base: pickled(base / "vae", "diffusion_pytorch_model.bin"), "import AutoencoderKL as U"),
    "pickled text encoder": (
        lambda base: pickled(base / "text_encoder", "pytorch_model.bin"), "from transformers import CLIPTextModel as U"
    ),
    "wrong weights": (lambda base: rewrite(base / "unet" / "config.json", in_channels=9), "The model in .* cannot be read"),
    "text encoder's weights": (
        lambda base: save_file({}, base / "text_encoder" / "model.safetensors"), r"text_encoder are not all there"
    ),
    "damaged text encoder": (
        lambda base: (base / "text_encoder" / "model.safetensors").write_bytes(b"x" * 64), "text encoder in .* cannot be read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_line_for_what_cannot_be_used(name: str, tmp_path: Path) -> None:
    base = saved(tmp_path)
    edit, message = WRONG[name]
    edit(base)
    with pytest.raises(ModelError, match=message) as found:
        load_model(base)
    assert "\n" not in str(found.value)


def test_weights_that_the_configuration_does_not_know_are_not_dropped(tmp_path: Path) -> None:
    base = saved(tmp_path)
    for part, file in (
        ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")
    ):  # fmt: skip
        path = base / part / f"{file}.safetensors"
        before = load_file(path)
        save_file({**before, "more.weight": torch.ones(1)}, path, {"format": "pt"})
        with pytest.raises(ModelError, match=r"are of another network.*more\.weight"):
            load_model(base)
        save_file(before, path, {"format": "pt"})
    load_model(base)


def test_a_part_of_a_pipeline_is_not_enough(tmp_path: Path) -> None:
    base = saved(tmp_path)
    with pytest.raises(ModelError, match="is a part of a pipeline that works on latents: name the pipeline's folder"):
        load_model(base / "unet")
    shutil.move(base / "unet", tmp_path / "alone")
    with pytest.raises(ModelError, match=r"is told a text.*give the pipeline that it belongs to"):
        load_model(tmp_path / "alone", "ddpm")
    with pytest.raises(ModelError, match="give the pipeline that it belongs to"):
        load_model(pipeline(tmp_path).unet, "ddpm")


def test_a_denoiser_and_encoders_that_do_not_fit_each_other(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes texts of width 8, and the text encoder gives 16"):
        load_model(pipeline(tmp_path, cross_attention_dim=8))
    with pytest.raises(ModelError, match="latents have 4 channels, and the denoiser takes 8"):
        load_model(pipeline(tmp_path, in_channels=8, out_channels=8))
    made = pipeline(tmp_path)
    made.register_modules(vae=autoencoder(in_channels=4, out_channels=4))
    with pytest.raises(
        ModelError, match=r"autoencoder takes images of 4 channels; attribench knows grey \(1\) and RGB \(3\)"
    ):
        load_model(made)
    with pytest.raises(ModelError, match=r"gives 4 channels for 9.* shown a part of the image"):
        load_model(pipeline(tmp_path, in_channels=9))
    with pytest.raises(ModelError, match="addition_embed_type='text'"):
        load_model(pipeline(tmp_path, addition_embed_type="text", addition_embed_type_num_heads=2))


def test_a_text_encoder_of_another_kind_in_memory(tmp_path: Path) -> None:
    made = pipeline(tmp_path)

    class Other(CLIPTextModel):
        pass

    made.text_encoder = Other(
        CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    with pytest.raises(ModelError, match="has a Other as its text_encoder"):
        load_model(made)


def test_without_transformers_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    base = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"need transformers: pip install attribench\[latent\]"):
        load_model(base)
