"""Models that somebody brings: what is read of them, and one clear line for each thing that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.pretrained.models import load_model
from attribench.diffusion.pretrained.schedulers import read_schedule
from attribench.diffusion.training.module import DiffusionModule
from attribench.errors import ModelError
from attribench.settings import TrainingSettings

WEIGHTS = "diffusion_pytorch_model"


def unet(seed: int = 0, channels: int = 3, **options: Any) -> diffusers.UNet2DModel:
    torch.manual_seed(seed)
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    given = {"sample_size": 8, "in_channels": channels, "out_channels": channels, **blocks, **sizes, **options}
    return diffusers.UNet2DModel(**given)


def pipeline(folder: Path, scheduler: Any = None, **options: Any) -> Path:
    diffusers.DDPMPipeline(unet(**options), scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def same(network: nn.Module, other: nn.Module) -> bool:
    ours, theirs = network.state_dict(), other.state_dict()
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pipeline_s_folder(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    model = load_model(str(pipeline(tmp_path / "mine", scheduler)))
    assert same(model.network, unet())
    assert not model.network.training
    assert torch.equal(model.schedule.alpha_bar, scheduler.alphas_cumprod)
    assert model.schedule.prediction_type == "v_prediction"
    assert (model.channels, model.image_size, model.num_classes) == (3, 8, 0)
    count = sum(parameter.numel() for parameter in unet().parameters())
    assert model.description == f"{tmp_path / 'mine'} ({count:,} parameters, predicts v)"


SCHEDULERS = ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "EulerDiscrete")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_usual_schedule_is_the_benchmark_s_own(name: str, tmp_path: Path) -> None:
    getattr(diffusers, f"{name}Scheduler")().save_pretrained(tmp_path)
    assert read_schedule(tmp_path).spec == NoiseSchedule().spec == {}


def test_a_network_s_own_folder_beside_or_with_a_scheduler(tmp_path: Path) -> None:
    pipeline(tmp_path / "mine", diffusers.DDPMScheduler(prediction_type="sample"))
    assert load_model(tmp_path / "mine" / "unet").schedule.prediction_type == "sample"
    shutil.move(tmp_path / "mine" / "unet", tmp_path / "bare")
    scheduler = tmp_path / "mine" / "scheduler"
    for place in (scheduler, scheduler / "scheduler_config.json", str(scheduler)):
        assert load_model(tmp_path / "bare", place).schedule.prediction_type == "sample"
    assert load_model(tmp_path / "bare", "ddpm").schedule.spec == {}


def test_classes_grey_images_and_half_precision(tmp_path: Path) -> None:
    half = unet(channels=1, num_class_embeds=10, sample_size=(8, 8)).half()
    half.save_pretrained(tmp_path, variant="fp16")
    model = load_model(tmp_path, "ddpm")
    assert (model.channels, model.image_size, model.num_classes) == (1, 8, 10)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    assert "10 classes" in model.description


def test_shards_are_joined(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(load_model(tmp_path, "ddpm").network, unet())


def test_objects_are_copied(tmp_path: Path) -> None:
    network = unet().half().train()
    pipe = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler())
    for given, scheduler in ((pipe, None), (network, diffusers.DDPMScheduler()), (network, "ddpm")):
        model = load_model(given, scheduler)
        assert model.network is not network
        assert not model.network.training
        assert next(model.network.parameters()).dtype == torch.float32
        assert model.schedule.spec == {}
    assert network.training
    assert network.dtype == torch.float16
    assert load_model(model) is model
    network.enable_gradient_checkpointing()
    assert not load_model(network, "ddpm").network.is_gradient_checkpointing
    assert network.is_gradient_checkpointing


def test_a_lightning_checkpoint_of_ours(tmp_path: Path) -> None:
    network = unet(channels=1, num_class_embeds=None)
    module = DiffusionModule(network, TrainingSettings(), 1, 0)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    pixels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    trainer.fit(module, torch.utils.data.DataLoader(pixels, batch_size=2))  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    model = load_model(tmp_path / "mine.ckpt")
    assert same(model.network, module.network)
    assert not same(model.network, unet(channels=1))
    assert (model.channels, model.image_size, model.schedule.spec) == (1, 8, {})
    old = torch.load(tmp_path / "mine.ckpt", weights_only=True)
    del old["network_config"]
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(ModelError, match="does not say how its network is built"):
        load_model(tmp_path / "old.ckpt")


def test_checkpoints_in_natural_order(tmp_path: Path) -> None:
    model, folder = load_model(unet(), "ddpm"), tmp_path / "course"
    for seed in (2, 10, 1):
        unet(seed).save_pretrained(folder / f"checkpoint-{seed}" / "unet")
    pipeline(folder)  # the trained model lies beside, as scripts leave it
    found = list(load_model(model, checkpoints=folder).checkpoints())
    assert [same(network, unet(seed)) for network, seed in zip(found, (1, 2, 10), strict=True)] == [True] * 3
    files = tmp_path / "files"
    files.mkdir()
    for seed in (3, 20):
        save_file(unet(seed).state_dict(), files / f"step{seed}.safetensors")
    found = list(load_model(model, checkpoints=files).checkpoints())
    assert [same(network, unet(seed)) for network, seed in zip(found, (3, 20), strict=True)] == [True] * 2
    with pytest.raises(ModelError, match="--checkpoints"):
        model.checkpoints()


def pickled(folder: Path) -> None:
    unet().save_pretrained(folder, safe_serialization=False)


def without_weights(folder: Path) -> None:
    unet().save_config(folder)


def truncated(folder: Path) -> None:
    unet().save_pretrained(folder)
    file = folder / f"{WEIGHTS}.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def too_few(folder: Path) -> None:
    unet().save_pretrained(folder)
    weights = load_file(folder / f"{WEIGHTS}.safetensors")
    del weights["conv_in.weight"]
    save_file(weights, folder / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def of_another_size(folder: Path) -> None:
    unet().save_pretrained(folder)
    edit(folder / "config.json", in_channels=1, out_channels=1)


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def with_vae(folder: Path) -> None:
    pipeline(folder)
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])


def of_text(folder: Path) -> None:
    unet().save_pretrained(folder)
    edit(folder / "config.json", _class_name="UNet2DConditionModel")


def flow_matching(folder: Path) -> None:
    pipeline(folder)
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")


def few_steps(folder: Path) -> None:
    pipeline(folder, diffusers.DDPMScheduler(num_train_timesteps=100))


def no_scheduler(folder: Path) -> None:
    unet().save_pretrained(folder)


def unknown_scheduler(folder: Path) -> None:
    pipeline(folder)
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="MyScheduler")


def unknown_prediction(folder: Path) -> None:
    pipeline(folder)
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="flow")


def nonsense_schedule(folder: Path) -> None:
    pipeline(folder)
    edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="steep")


def flow_sigmas(folder: Path) -> None:
    pipeline(folder, diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True))


def too_many(folder: Path) -> None:
    unet(num_class_embeds=3).save_pretrained(folder)
    edit(folder / "config.json", num_class_embeds=None)


def latents(folder: Path) -> None:
    """Of three channels, as pixels have."""
    latent_diffusion().save_pretrained(folder)


def latent_diffusion() -> diffusers.LDMPipeline:
    autoencoder = diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2, latent_channels=3)
    return diffusers.LDMPipeline(autoencoder, unet(), diffusers.DDIMScheduler())


def damaged_config(folder: Path) -> None:
    unet().save_pretrained(folder)
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "There is no model at"),
        (Path.mkdir, "is no diffusers folder: neither config.json nor unet/config.json is in it, but nothing"),
        (pickled, f"{WEIGHTS}.bin is pickled and may run code when it is read, so it is refused; if you trust it, convert"),
        (without_weights, f"holds no weights: {WEIGHTS}.safetensors is missing"),
        (truncated, "cannot be read|are damaged"),
        (too_few, "are not all there: conv_in.weight of the network config.json describes"),
        (of_another_size, "cannot be read: "),
        (with_vae, "is a pipeline without vae; supported are"),
        (of_text, "holds a UNet2DConditionModel, which is told a text: give the pipeline that it belongs to"),
        (flow_matching, "FlowMatchEulerDiscreteScheduler has no noise schedule of the kind"),
        (few_steps, "has 100 train timesteps; attribench works with models of 1000"),
        (no_scheduler, "holds a model, but not how its noise was scheduled.*--scheduler ddpm"),
        (unknown_scheduler, "_class_name is 'MyScheduler'"),
        (unknown_prediction, "'flow'"),
        (nonsense_schedule, "scheduler_config.json cannot be used: steep is not implemented"),
        (flow_sigmas, "DPMSolverMultistepScheduler has no noise schedule of the kind.*flow matching"),
        (too_many, "are of another network than config.json describes: it has no class_embedding.weight"),
        (latents, r"is a pipeline with a vqvae \(VQModel\), which is not supported; supported are"),
        (damaged_config, "config.json cannot be read"),
        (lambda folder: pipeline(folder, in_channels=4, out_channels=4), "takes images of 4 channels"),
        (lambda folder: pipeline(folder, out_channels=6), "models that predict their variance too"),
        (lambda folder: pipeline(folder, sample_size=(8, 16)), "takes images of 8×16; attribench knows square ones"),
        (lambda folder: pipeline(folder, class_embed_type="timestep"), "class_embed_type='timestep'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "model")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path / "model")
    assert len(str(caught.value).splitlines()) == 1


def test_the_network_of_a_pipeline_on_latents_is_refused_too(tmp_path: Path) -> None:
    latents(tmp_path)
    for source in (tmp_path / "unet", latent_diffusion()):
        with pytest.raises(ModelError, match=r"with a vqvae|works on latents"):
            load_model(source)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("somebody/unet", "does not say how its network is built"),  # and no hub is asked
        ({"block_out_channels": (4,)}, "describes no network: Must provide the same number"),
        ({**unet().config, "norm_num_groups": 3}, "describes no network: num_channels .4. must be divisible"),
    ],
)
def test_a_checkpoint_s_description_is_not_trusted(config: object, message: str, tmp_path: Path) -> None:
    state = {f"network.{name}": value for name, value in unet().state_dict().items()}
    config = {key: value for key, value in config.items() if key[0] != "_"} if isinstance(config, dict) else config
    torch.save({"state_dict": state, "network_config": config}, tmp_path / "own.ckpt")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / "own.ckpt")


def test_files_beside_numbered_checkpoints_are_none(tmp_path: Path) -> None:
    """The trained model, in shards, and what a training script keeps."""
    unet().save_pretrained(tmp_path, max_shard_size="10KB")
    unet(1).save_pretrained(tmp_path / "checkpoint-1" / "unet")
    (tmp_path / "optimizer.bin").write_bytes(b"pickled")
    (network,) = load_model(tmp_path, "ddpm", tmp_path).checkpoints()
    assert same(network, unet(1))


def test_the_conversion_that_is_named_works(tmp_path: Path) -> None:
    pickled(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path, "ddpm")
    command = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    exec(command)
    assert same(load_model(tmp_path, "ddpm").network, unet())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.bin", "pickled"), ("a.pt", "pickled.*save_pretrained"), ("a.safetensors", "weights alone: name the folder"),
        ("a.ckpt", "is no Lightning checkpoint of attribench"), ("a.txt", "is no model"),
    ],
)  # fmt: skip
def test_files_of_other_kinds(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path / name)


def test_a_checkpoint_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ModelError, match="no Lightning checkpoint"):
        load_model(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "There is no folder of checkpoints"),
        (Path.mkdir, "holds no checkpoints"),
        (lambda folder: unet(block_out_channels=(4, 4)).save_pretrained(folder / "one"), "is of another network"),
        (lambda folder: unet(layers_per_block=2).save_pretrained(folder / "one"), "is of another network"),
        (lambda folder: unet(num_class_embeds=2).save_pretrained(folder / "one"), "is of another network"),
    ],
)
def test_checkpoints_that_do_not_belong(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "course")
    with pytest.raises(ModelError, match=message):
        list(load_model(unet(), "ddpm", tmp_path / "course").checkpoints())


def test_objects_that_are_no_model() -> None:
    with pytest.raises(ModelError, match="A dict is no diffusion model"):
        load_model({})
    with pytest.raises(ModelError, match="A Identity has no parameters"):
        load_model(nn.Identity(), "ddpm")
    with pytest.raises(ModelError, match="give its scheduler too"):
        load_model(unet())
    with pytest.raises(ModelError, match="There is no scheduler at nowhere"):
        load_model(unet(), "nowhere")


def test_any_module_that_is_called_likewise_will_do() -> None:
    model = load_model(nn.Conv2d(3, 3, 1), "ddpm")
    assert isinstance(model, DiffusionModel)
    assert (model.channels, model.image_size) == (None, None)
