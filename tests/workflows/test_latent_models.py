"""One's own model on latents: the whole way from folders, captions and a LoRA to scores."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from PIL import Image
from tiny_pipelines import adapt, saved
from torch import Tensor

import attribench
from attribench.cli import main
from attribench.computing.progress import Progress
from attribench.diffusion.latents import Autoencoder
from attribench.diffusion.pretrained.models import load_model
from attribench.diffusion.texts import TextEncoder
from attribench.errors import DataError, ModelError, UsageError
from attribench.workflows import model_space

pytestmark = pytest.mark.slow

CAPTIONS = ("a red cat", "a blue dog", "a green bird")
NUM_TRAIN = 12
COPIES = (3, 7)


def pictures() -> Tensor:
    """Coarse patterns: what an autoencoder that nobody trained passes on."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(NUM_TRAIN, 3, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, 16, mode="bilinear") * 255).to(torch.uint8)


def caption(number: int) -> str:
    return CAPTIONS[number % 3]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, ``lora``, ``train`` and ``queries``: copies of two train images among the queries.

    The LoRA is tuned as diffusers' scripts do it: peft, the posterior's mean, the captions' last hidden states.
    """
    folder = tmp_path_factory.mktemp("tuned")
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    base = saved(folder, scheduler=DDPMScheduler(**schedule, steps_offset=1, clip_sample=False), scaling=6)
    made = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    images = pictures()
    for name, numbers in (("train", range(NUM_TRAIN)), ("queries", COPIES)):
        (folder / name).mkdir()
        for number in numbers:
            Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text(caption(number))
    adapt(made.unet, rank=4, alpha=4, targets=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "ff.net.2"])
    with torch.no_grad():
        latents = made.vae.encode(images / 127.5 - 1).latent_dist.mean * made.vae.config.scaling_factor
        told = torch.cat([made.encode_prompt(caption(number), "cpu", 1, False)[0] for number in range(NUM_TRAIN)])
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([value for value in made.unet.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(200):
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (NUM_TRAIN,))
        noisy = made.scheduler.add_noise(latents, noise, timesteps)
        torch.nn.functional.mse_loss(made.unet(noisy, timesteps, told).sample, noise).backward()
        optimizer.step()
        optimizer.zero_grad()
    made.unet.save_lora_adapter(folder / "lora")
    for number in (1, 2):
        made.unet.save_lora_adapter(folder / "checkpoints" / f"checkpoint-{number}")
    return folder


def attributed(tuned: Path, workdir: Path, method: str = "dtrak", **options: Any) -> attribench.Attribution:
    given: dict[str, Any] = {
        "model": tuned / "base", "lora": tuned / "lora", "workdir": workdir, "accelerator": "cpu", "method": method,
        "options": {"num_timesteps": 5}, "train": tuned / "train", "queries": tuned / "queries",
    }  # fmt: skip
    return attribench.attribute(**{**given, **options})


#: Noise is most of a single gradient: averages over many timesteps show what they are of.
AVERAGED = (
    "gradient", "tracincp", "gas", "trak", "dtrak", "das", "ekfac", "datainf", "relative-influence",
    "renormalized-influence",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"num_timesteps": 50} for name in AVERAGED},
    "unlearning": {"num_timesteps": 10, "loss_timesteps": 10, "fisher_timesteps": 2},
    "fine-tune": {"num_timesteps": 10, "steps": 3, "learning_rate": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("method", OPTIONS)
def test_duplicates_of_train_images_rank_first(method: str, tuned: Path, workdir: Path) -> None:
    extra: dict[str, Any] = {"checkpoints": tuned / "checkpoints"} if method in ("tracincp", "gas") else {}
    result = attributed(tuned, workdir, method, options=OPTIONS[method], **extra)
    assert result.scores.shape == (2, NUM_TRAIN)
    best = [result.train[int(row.argmax())] for row in result.scores]
    assert best == [f"{number}.png" for number in COPIES]


class Said(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_what_is_said_and_kept(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Said()
    attributed(tuned, tmp_path, progress=first)
    text = "\n".join(first.lines)
    assert "rank 4, alpha 4" in text
    assert "Captions of 12 train images, 3 of them different" in text
    assert "Encoding 14 images of 16×16 takes about" in text
    assert "Passed over" not in text
    assert text.index("Encoding") < text.index("dtrak[num_timesteps=5] takes about")

    def never(*_: object) -> Any:
        raise AssertionError("it is in the store")

    monkeypatch.setattr(Autoencoder, "encode", never)
    monkeypatch.setattr(TextEncoder, "embed", never)
    second = Said()
    result = attributed(tuned, tmp_path, "trak", progress=second)
    assert result.scores.shape == (2, NUM_TRAIN)
    assert "Encoding" not in "\n".join(second.lines)


def test_scores_depend_on_captions(tuned: Path, tmp_path: Path) -> None:
    own = attributed(tuned, tmp_path).scores
    same = attributed(tuned, tmp_path, captions=[caption(number) for number in range(NUM_TRAIN)]).scores
    # The folder's order is natural: 0.png, 1.png, 2.png, …
    assert torch.equal(own, same)
    other = attributed(tuned, tmp_path, query_captions=["a dog", caption(COPIES[1])]).scores
    assert not torch.allclose(own[0], other[0], rtol=1e-3)
    assert torch.allclose(own[1], other[1], rtol=1e-3)


def test_captions_from_one_file_for_train_images_and_queries(tuned: Path, tmp_path: Path) -> None:
    rows = [{"file_name": f"train/{number}.png", "caption": caption(number)} for number in range(NUM_TRAIN)]
    rows += [{"file_name": f"queries/{number}.png", "caption": caption(number)} for number in COPIES]
    file = tuned / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert torch.equal(attributed(tuned, tmp_path, captions=file).scores, attributed(tuned, tmp_path).scores)
    file.write_text("\n".join(map(json.dumps, rows[1:])))
    with pytest.raises(DataError, match=r"1 of 12 train images have no caption \(0\.png\)"):
        attributed(tuned, tmp_path, captions=file)
    file.unlink()


def images(folder: Path, count: int, captioned: int = 0) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
        if number < captioned:
            (folder / f"{number}.txt").write_text("a cat")
    return folder


def test_no_captions_at_all_is_said(tuned: Path, tmp_path: Path) -> None:
    train, queries, said = images(tmp_path / "train", 4), images(tmp_path / "queries", 2), Said()
    found = attributed(tuned, tmp_path / "runs", train=train, queries=queries, progress=said)
    assert "No captions: the model is told the empty text, for train images and queries." in said.lines
    empty = attributed(
        tuned, tmp_path / "runs", train=train, queries=queries, captions=[""] * 4, query_captions=["", ""]
    )
    assert torch.equal(found.scores, empty.scores)


def test_queries_may_have_none(tuned: Path, tmp_path: Path) -> None:
    said = Said()
    attributed(tuned, tmp_path / "runs", queries=images(tmp_path / "queries", 2), progress=said)
    assert "The queries have no captions: the model is told the empty text for them." in said.lines


def test_some_captions_are_one_clear_error(tuned: Path, tmp_path: Path) -> None:
    train, queries = images(tmp_path / "train", 6, 2), images(tmp_path / "queries", 3, 1)
    with pytest.raises(
        DataError, match=r"4 of 6 train images have no caption \(2\.png, 3\.png, 4\.png, …\): give every one"
    ):
        attributed(tuned, tmp_path / "runs", train=train)
    with pytest.raises(DataError, match=r"2 of 3 queries have no caption \(1\.png, 2\.png\)"):
        attributed(tuned, tmp_path / "runs", queries=queries)
    items = [
        {"image": picture.permute(1, 2, 0).numpy(), "text": text}
        for picture, text in zip(pictures(), ["a", None] * 6, strict=True)
    ]
    items = [{**item, "image": Image.fromarray(item["image"])} for item in items]
    with pytest.raises(DataError, match=r"6 of 12 train images have no caption \(1, 3, 5, …\)"):
        attributed(tuned, tmp_path / "runs", train=items)
    with pytest.raises(DataError, match="2 captions for 12 train images"):
        attributed(tuned, tmp_path / "runs", captions=["a", "b"])


def test_decoys_are_told_what_train_images_are(tuned: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    decoys = tmp_path / "decoys"
    decoys.mkdir()
    for number in range(50):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(decoys / f"{number}.png")
    with pytest.raises(DataError, match="The train images have captions and the decoys have none"):
        attributed(tuned, tmp_path / "runs", decoys=decoys)
    for number in range(50):
        (decoys / f"{number}.txt").write_text(caption(number))
    result = attributed(tuned, tmp_path / "runs", decoys=decoys)
    assert result.scores.shape == (2, NUM_TRAIN)
    assert result.answer.judgement is not None


def test_from_memory_as_from_files(tuned: Path, tmp_path: Path) -> None:
    made = StableDiffusionPipeline.from_pretrained(tuned / "base", local_files_only=True)
    items = [
        {"image": Image.open(tuned / "train" / f"{number}.png"), "text": caption(number)} for number in range(NUM_TRAIN)
    ]
    asked = [
        {"image": Image.open(tuned / "queries" / f"{number}.png"), "caption": caption(number)} for number in COPIES
    ]
    found = attributed(tuned, tmp_path, model=made, train=items, queries=asked)
    assert found.train == tuple(map(str, range(NUM_TRAIN)))
    assert [int(row.argmax()) for row in found.scores] == list(COPIES)
    assert all(value.requires_grad for value in made.unet.parameters())


def test_images_of_another_size_than_the_base_was_made_for(tuned: Path, tmp_path: Path) -> None:
    assert attributed(tuned, tmp_path, image_size=24).scores.shape == (2, NUM_TRAIN)
    with pytest.raises(UsageError, match="--image-size 17: the model takes multiples of 2"):
        attributed(tuned, tmp_path, image_size=17)


def test_named_layers_without_a_lora(tuned: Path, tmp_path: Path) -> None:
    options = {"num_timesteps": 2, "layers": "attn2.to_k, attn2.to_v"}
    result = attributed(tuned, tmp_path, "gradient", lora=None, options=options)
    assert torch.isfinite(result.scores).all()
    with pytest.raises(UsageError, match="'conv3' names no parameter"):
        attributed(tuned, tmp_path, "gradient", options={"layers": "conv3"})


def test_methods_that_compare_images_are_not_given_latents_or_captions(tuned: Path, tmp_path: Path) -> None:
    with_model = attributed(tuned, tmp_path, "pixel", options={})
    without = attributed(tuned, tmp_path, "pixel", options={}, model=None, lora=None, image_size=16)
    assert torch.equal(with_model.scores, without.scores)


def test_what_makes_no_sense_together(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--lora belongs to a model"):
        attributed(tuned, tmp_path, "pixel", model=None)
    with pytest.raises(UsageError, match="--captions belongs to a model"):
        attributed(tuned, tmp_path, "pixel", model=None, lora=None, captions=["a"] * 12)
    with pytest.raises(UsageError, match="a file names images in a folder"):
        attributed(tuned, tmp_path, train=pictures(), captions=tuned / "none.csv")
    with pytest.raises(ModelError, match="There is no LoRA at"):
        attributed(tuned, tmp_path, lora=tuned / "nowhere.safetensors")
    with pytest.raises(UsageError, match="journey-trak"):
        attributed(tuned, tmp_path, "journey-trak")


def test_what_does_not_fit_is_refused_before_anything_is_encoded(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what, message in (
        ("Encoding", r"Encoding 14 images of 16×16, with an eighth .* a smaller --image-size"),
        ("Embedding", r"Embedding 3 captions, with an eighth to spare, needs .* Fewer images, or captions, take less"),
    ):
        refused = partial(lambda refused, what, *_: f"{what} needs more." if what.startswith(refused) else None, what)
        monkeypatch.setattr(model_space, "shortage", refused)
        with pytest.raises(UsageError, match=message):
            attributed(tuned, tmp_path)
        assert not (tmp_path / "shared" / "latents").exists()
        assert not (tmp_path / "shared" / "captions").exists()


def test_another_tokenizer_has_other_scores(tuned: Path, tmp_path: Path) -> None:
    made, found = StableDiffusionPipeline.from_pretrained(tuned / "base", local_files_only=True), []
    for length in (12, 4, 12):
        made.tokenizer.model_max_length = length
        found.append(attributed(tuned, tmp_path, "gradient", model=made).scores)
    fresh = attributed(tuned, tmp_path / "fresh", "gradient", model=made).scores
    assert torch.equal(found[0], found[2])
    torch.testing.assert_close(found[2], fresh, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(found[0], found[1], rtol=1e-3)


def test_a_lora_of_the_text_encoder_counts_where_the_model_was_used_before(tuned: Path, tmp_path: Path) -> None:
    made = StableDiffusionPipeline.from_pretrained(tuned / "base", local_files_only=True)
    adapt(made.unet, alpha=2)
    adapt(made.text_encoder, alpha=8, targets=["q_proj", "v_proj"])
    parts = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(getattr(made, name)))
        for name in ("unet", "text_encoder")
    }
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", **parts)
    used = load_model(tuned / "base")
    attributed(tuned, tmp_path / "runs", "gradient", model=used, lora=None, options={"num_timesteps": 1})
    found = attributed(tuned, tmp_path / "runs", "gradient", model=used, lora=tmp_path / "lora").scores
    fresh = attributed(tuned, tmp_path / "fresh", "gradient", lora=tmp_path / "lora").scores
    torch.testing.assert_close(found, fresh, rtol=1e-4, atol=1e-9)


def test_the_command_line(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "attribute", "--train", str(tuned / "train"), "--queries", str(tuned / "queries"), "--out", str(tmp_path / "out"),
        "--model", str(tuned / "base"), "--lora", str(tuned / "lora" / "pytorch_lora_weights.safetensors"), "--method", "dtrak",
        "--method.num_timesteps", "5", "--workdir", str(tmp_path / "runs"), "--accelerator", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert table[table["rank"] == 1]["train"].tolist() == [f"{number}.png" for number in COPIES]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of them LoRA" in page
    assert "of latents, 2 pixels each, told a text" in page
    assert main([*arguments, "--captions", str(tmp_path / "none.csv")]) != 0
    assert "There is no file of captions" in capsys.readouterr().err
