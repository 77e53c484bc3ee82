"""LoRA of a pipeline on latents in the benchmark, from images to a table, against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines
import torch
from artbench_files import write_artbench
from diffusers import DDIMScheduler, StableDiffusionPipeline

from attribench.cli import main
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import resolve
from attribench.diffusion.noise import sample_noise
from attribench.errors import ModelError
from attribench.records.lds import load_records
from attribench.settings import Runtime
from attribench.truth.experiment import Experiment
from attribench.truth.generation import GenerateJob, prompts_of
from attribench.workflows.opening import open_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and base."""
    folder = tmp_path_factory.mktemp("files")
    write_artbench(folder)
    tiny_pipelines.saved(folder)
    return folder


def opened(folder: Path, workdir: Path, workers: int = 1, **data: object) -> Experiment:
    options = {"model": {"base": str(folder / "base")}, "data": {"root": str(folder), **data}}
    runtime = Runtime(workdir=str(workdir), accelerator="cpu", workers=workers, evaluation_batch=3)
    return open_experiment(resolve("artbench2", "smoke", [], options), runtime, silent_progress)


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    experiment = opened(folder, tmp_path_factory.mktemp("runs"))
    experiment.prepare()
    return experiment


@pytest.fixture
def pipeline(folder: Path, made: Experiment) -> StableDiffusionPipeline:
    """diffusers' own, with the target model's LoRA."""
    artifact = made.target.find(made.store)
    assert artifact is not None
    found = StableDiffusionPipeline.from_pretrained(folder / "base", safety_checker=None, local_files_only=True)
    state = {f"unet.{name}": value for name, value in artifact.load_tensors("model").items()}
    found.load_lora_weights(state)
    found.set_progress_bar_config(disable=True)
    return found


def test_generated_images_are_those_of_diffusers_pipeline(made: Experiment, pipeline: StableDiffusionPipeline) -> None:
    generation = made.settings.generation
    assert generation.guidance == 7.5
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    queries = made.query_images("generation")
    words = ["a ukiyo e painting"] * 2 + ["a post impressionism painting"] * 2
    assert queries.captions == tuple(words)
    for seed, caption in enumerate(words):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
        steps, guidance = generation.num_inference_steps, generation.guidance
        image = pipeline(
            caption,
            height=16,
            width=16,
            latents=noise,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="np",
        ).images[0]
        expected = (255 * image).round().astype(np.int16).transpose(2, 0, 1)
        assert np.abs(expected - queries.images[seed].numpy().astype(np.int16)).max() <= 1


def test_losses_are_those_of_latents_and_captions(made: Experiment, pipeline: StableDiffusionPipeline) -> None:
    """Brute force with the pipeline's parts, of the subset model whose LoRA is put into its denoiser."""
    job = made.loss_jobs(made.validation)[1][0]
    artifact = job.trained.find(made.store)
    assert artifact is not None
    pipeline.unload_lora_weights()
    state = {f"unet.{name}": value for name, value in artifact.load_tensors("model").items()}
    pipeline.load_lora_weights(state)
    losses = job.load(made.store)
    queries, alpha_bar = made.validation, pipeline.scheduler.alphas_cumprod.double()
    assert queries.captions is not None
    with torch.no_grad():
        for q, caption in enumerate(queries.captions):
            pixels = queries.images[q : q + 1].float() / 127.5 - 1
            latent = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
            tokens = pipeline.tokenizer(
                caption, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
            ).input_ids
            told = pipeline.text_encoder(tokens)[0]
            for t, timestep in enumerate(job.timesteps):
                noise = sample_noise(job.seed, queries.ids[q], timestep, 0, (4, 8, 8))[None]
                noisy = alpha_bar[timestep].sqrt() * latent.double() + (1 - alpha_bar[timestep]).sqrt() * noise.double()
                predicted = pipeline.unet(noisy.float(), timestep, told).sample
                expected = (predicted.double() - noise.double()).square().mean()
                assert losses[0, t, q] == pytest.approx(float(expected), rel=1e-4)


def test_worker_processes_give_the_same_ground_truth_bit_for_bit(
    made: Experiment, folder: Path, tmp_path: Path
) -> None:
    beside = opened(folder, tmp_path, workers=2)
    beside.prepare()
    for name in ("validation", "generation"):
        assert torch.equal(beside.ground_truth(name).losses, made.ground_truth(name).losses)


def test_the_lora_is_of_attention_and_its_base_is_not_kept_with_it(made: Experiment) -> None:
    artifact = made.retrainings[0][0].find(made.store)
    assert artifact is not None
    layers = {name.rpartition(".lora_")[0] for name in artifact.load_tensors("model")}
    assert layers
    assert all(name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) for name in layers)
    assert len({artifact.folder.parent / folder.name for folder in (made.store.root / "bases").iterdir()}) == 2


def test_mirrored_latents_are_those_of_mirrored_images(made: Experiment) -> None:
    space = made.space
    plain, mirrored = space.examples(made.train), space.examples(made.train, mirrored=True)
    assert plain.mirrored is None
    assert torch.equal(plain.clean, mirrored.clean)
    assert mirrored.mirrored is not None
    assert not torch.equal(mirrored.mirrored, mirrored.clean.flip(-1))  # an autoencoder is not symmetric
    autoencoder = space.autoencoder  # type: ignore[attr-defined]
    expected = autoencoder.encode(made.train.images.flip(-1), torch.device("cpu"))
    torch.testing.assert_close(mirrored.mirrored, expected, rtol=1e-5, atol=1e-6)


def test_regenerated_images_are_the_queries(made: Experiment) -> None:
    job = GenerateJob(made.target, (3, 1), made.settings.generation)
    job.run(made.store, made.runtime, lambda units: None)
    queries = made.query_images("generation")
    assert (job.load(made.store).short() - queries.images[[3, 1]].short()).abs().max() <= 1


def test_prompts_take_blocks_of_the_images() -> None:
    assert prompts_of(range(5), ("a", "b"), 5) == ["a", "a", "a", "b", "b"]
    assert prompts_of((4, 0), ("a", "b"), 5) == ["b", "a"]
    assert prompts_of(range(2), (), 2) == ["", ""]


def test_a_base_of_other_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes images whose sides are multiples of 4, not 18×18"):
        opened(folder, tmp_path, image_size=18).base  # noqa: B018


def test_every_kind_of_method_gets_its_row(made: Experiment, folder: Path, tmp_path: Path) -> None:
    base = ("--model.base", str(folder / "base"), "--data.root", str(folder))
    call = ["run", "--dataset", "artbench2", "--preset", "smoke", *base, "--workdir", str(made.store.root)]
    methods = "pixel-cosine,random,trak,dtrak,gradient-cosine,gas,ekfac,journey-trak"
    assert main([*call, "--method", methods, "--results", str(tmp_path)]) == 0
    records = {record.method: record for record in load_records(tmp_path)}
    assert set(records) == set(methods.split(",")) - {"journey-trak"}
    assert all(set(record.results) == {"validation", "generation"} for record in records.values())
    assert records["trak"].settings["model"] == {"base": "base", "dropout": 0.1}
    assert not list(tmp_path.rglob("*.png"))


def test_a_changed_text_encoder_is_another_base(made: Experiment, tmp_path: Path, folder: Path) -> None:
    other = tiny_pipelines.pipeline(tmp_path)
    with torch.no_grad():
        next(other.text_encoder.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "base")
    changed = opened_at(tmp_path / "base", folder, made.store.root)
    assert changed.base is not None
    assert made.base is not None
    assert changed.base.content != made.base.content
    assert changed.target.find(made.store) is None


def opened_at(base: Path, data: Path, workdir: Path) -> Experiment:
    options = {"model": {"base": str(base)}, "data": {"root": str(data)}}
    runtime = Runtime(workdir=str(workdir), accelerator="cpu", workers=1)
    return open_experiment(resolve("artbench2", "smoke", [], options), runtime, silent_progress)
