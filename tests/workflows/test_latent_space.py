"""Methods that compare images, given latents: on the pipeline's own noise, and shown in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from tiny_pipelines import pipeline
from torch import Tensor

import attribench
from attribench import Access, AttributionContext, AttributionMethod, ImageSet, Match, Queries, SpatialEvidence
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError
from attribench.method import score, start
from attribench.registry import METHODS
from attribench.store.artifacts import ArtifactStore
from attribench.workflows.model_space import in_pixels

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (9, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TRAIN, QUERIES = PIXELS[:7], PIXELS[[2, 8]]

OPTIONS: dict[str, dict[str, Any]] = {
    "pixel": {}, "random": {},
    "nda": {"timesteps": [100, 400], "patch_size": [3, 5], "low_resolution_patch_size": [4, 6]},
    "score-machine": {"timesteps": [300], "patch_size": 5},
    "nda-plus": {
        "timesteps": [100], "patch_size": 3, "downsample": 1, "influence_timesteps": [300], "influence_patch_size": 3,
        "keep_terms": True,
    },
}  # fmt: skip


def made(folder: Path, **options: Any) -> Any:
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return pipeline(
        folder, scheduler=DDPMScheduler(**{**schedule, **options}, steps_offset=1, clip_sample=False), scaling=6
    )


def attributed(folder: Path, method: Any, model: Any, **options: Any) -> attribench.Attribution:
    given: dict[str, Any] = {"workdir": folder / "runs", "accelerator": "cpu", "space": "latent", "model": model}
    if isinstance(method, str):
        given["options"] = OPTIONS.get(method, {})
    return attribench.attribute(TRAIN, QUERIES, method=method, **{**given, **options})


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_are_those_of_the_latents_under_the_pipeline_s_noise(name: str, tmp_path: Path) -> None:
    model = made(tmp_path)
    found = attributed(tmp_path, name, model)
    with torch.no_grad():
        latents = model.vae.encode(PIXELS / 127.5 - 1).latent_dist.mean * 6
    ids = tuple(map(str, range(7)))
    train = ImageSet(latents[:7].contiguous(), ids, latent=True)
    schedule = NoiseSchedule(model.scheduler.alphas_cumprod)
    method = METHODS.load(name)(**OPTIONS[name])
    start(method, AttributionContext(train, schedule, CPU, 42, ArtifactStore(tmp_path / "own"), Access.DATA))
    expected = score(method, Queries(latents[[2, 8]].contiguous(), ("0", "1"), latent=True))
    torch.testing.assert_close(found.scores.double(), expected.double(), rtol=1e-3, atol=1e-4)
    if name != "random":
        assert int(found.scores[0].argmax()) == 2, "the copy"
        assert not torch.allclose(found.scores, attributed(tmp_path, name, model, space="pixel").scores, rtol=1e-2)


def test_pixel_is_the_cosine_of_latents(tmp_path: Path) -> None:
    model = made(tmp_path)
    with torch.no_grad():
        flat = (model.vae.encode(PIXELS / 127.5 - 1).latent_dist.mean * 6).double().flatten(1)
    expected = torch.nn.functional.cosine_similarity(flat[[2, 8]][:, None], flat[None, :7], dim=2)
    torch.testing.assert_close(attributed(tmp_path, "pixel", model).scores.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nda", "score-machine"])
def test_the_fast_engine_and_the_readable_one_agree_on_latents(name: str, tmp_path: Path) -> None:
    model = made(tmp_path)
    slow = {"nda": "convolution", "score-machine": "reference"}[name]
    found = [
        attributed(tmp_path, name, model, options={**OPTIONS[name], "engine": engine}).scores
        for engine in ("fast", slow)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_another_noise_schedule_makes_other_scores(tmp_path: Path) -> None:
    """Also where those of the first one are in the store."""
    for name in ("nda", "nda-plus"):
        found = [attributed(tmp_path, name, made(tmp_path, beta_end=end)).scores for end in (0.012, 0.03, 0.012)]
        assert torch.equal(found[0], found[2])
        assert not torch.allclose(found[0], found[1], rtol=1e-3)


def test_heat_maps_and_pictures_are_of_pixels(tmp_path: Path) -> None:
    found = attributed(tmp_path, "nda", made(tmp_path), heat_maps=2)
    for number, ranking in enumerate(found.answer.rankings):
        assert ranking.explanation is not None
        assert torch.equal(ranking.explanation.query, QUERIES[number])
        for shown in ranking.explanation.images:
            assert torch.equal(shown.image, TRAIN[shown.index])
            assert shown.evidence.query_map.shape == shown.evidence.train_map.shape == (16, 16)
            assert float(shown.evidence.query_map.sum()) == pytest.approx(shown.score, rel=1e-3)
            assert all(max(match.query_box[:2]) < 16 for match in shown.evidence.matches)
    assert found.answer.model.startswith("latents and noise schedule of StableDiffusionPipeline")
    assert "latents and noise schedule" in found.to_html(tmp_path / "page.html").read_text()


def test_evidence_in_latents_as_evidence_in_pixels() -> None:
    values = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    shown = in_pixels(SpatialEvidence(values, values.flip(0), (Match((0, 1, 2, 1), (1, 0, 1, 3), 0.5, "t"),)), 4)
    assert shown.query_map.shape == (8, 12)
    sums = shown.query_map.reshape(2, 4, 3, 4).sum((1, 3))
    torch.testing.assert_close(sums, values)
    assert (shown.matches[0].query_box, shown.matches[0].train_box) == ((0, 4, 8, 4), (4, 0, 4, 12))
    assert (shown.matches[0].weight, shown.matches[0].label) == (0.5, "t")


class Pictures(AttributionMethod):
    """Compares pictures."""

    access = Access.DATA

    def attribute(self, queries: Queries) -> Tensor:
        assert queries.images.dtype == torch.uint8
        return torch.zeros(len(queries), len(self.context.train))


def test_what_makes_no_sense(tmp_path: Path) -> None:
    model = made(tmp_path)
    with pytest.raises(UsageError, match="compares pictures, and cannot be given latents"):
        attributed(tmp_path, Pictures, model)
    assert attributed(tmp_path, Pictures, model, space="pixel").scores.shape == (2, 7)
    with pytest.raises(UsageError, match="latents are those of a model's autoencoder"):
        attributed(tmp_path, "nda", None)
    with pytest.raises(UsageError, match="--space must be pixel or latent"):
        attributed(tmp_path, "nda", model, space="pixels")


def test_a_model_of_pixels_has_none(tmp_path: Path) -> None:
    from lora_files import base

    with pytest.raises(UsageError, match="--space latent: UNet2DModel works on pixels"):
        attributed(tmp_path, "nda", base(3), scheduler="ddpm")


def test_nothing_is_encoded_for_methods_that_compare_pixels(tmp_path: Path) -> None:
    attributed(tmp_path, "pixel", made(tmp_path), space="pixel")
    assert not (tmp_path / "runs" / "shared" / "latents").exists()
