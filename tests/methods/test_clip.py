from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import TINY, reference_model, write_tiny_clip

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.cli import main
from attribench.diffusion.noise import NoiseSchedule
from attribench.embeddings import clip_models
from attribench.embeddings import image_embedder as embeddings
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.embeddings.weights import fetch
from attribench.errors import AttribenchError, UsageError
from attribench.method import score, start
from attribench.methods.clip import CLIP
from attribench.records.lds import load_records
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny architecture and its weights in both formats, as files; the model for reference."""
    folder = tmp_path_factory.mktemp("tiny")
    files = write_tiny_clip(folder)
    weights = reference_model().state_dict()
    torch.save(weights, folder / "tiny.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, folder / "run.pt"
    )
    return files


def reference_embeddings(images: torch.Tensor) -> np.ndarray[Any, Any]:
    """One image at a time, in float64, with the published pre-processing written out."""
    model = reference_model().double()
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    rows = []
    for image in images.numpy():
        picture = Image.fromarray(image.repeat(3 // len(image), 0).transpose(1, 2, 0))
        short = min(picture.size)
        size = (int(16 * picture.width / short), int(16 * picture.height / short))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) / 255.0
        top, left = round((size[1] - 16) / 2), round((size[0] - 16) / 2)
        pixels = (pixels[top : top + 16, left : left + 16] - mean) / deviation
        with torch.no_grad():
            rows.append(model.encode_image(torch.from_numpy(pixels.transpose(2, 0, 1))[None])[0].numpy())
    return np.stack(rows)


def embedder(model: str, checkpoint: str) -> ImageEmbedder:
    return ImageEmbedder(clip_models.find_model(model, "openai", own_weights=True), checkpoint)


def images(count: int, seed: int, channels: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, 8, 12), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{seed}-{i}" for i in range(count)))


def make_context(train: ImageSet, folder: Path) -> AttributionContext:
    return AttributionContext(train, NoiseSchedule(), torch.device("cpu"), 0, ArtifactStore(folder), access=Access.DATA)


def started(train: ImageSet, folder: Path, **options: Any) -> CLIP:
    method = CLIP(**options)
    context = make_context(train, folder)
    assert method.skip_reason(context) is None
    start(method, context)
    return method


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache and no network, whatever this machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    fetch.cache_clear()
    yield
    fetch.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_equals_float64_on_embeddings_made_one_by_one(
    kind: str, channels: int, tiny: dict[str, Any], tmp_path: Path
) -> None:
    train, queries = images(11, 0, channels), Queries.of(images(4, 1, channels), "queries")
    scores = score(started(train, tmp_path, similarity=kind, batch_size=3, **tiny), queries).numpy()
    a, b = reference_embeddings(queries.images), reference_embeddings(train.images)
    expected = a @ b.T
    if kind == "cosine":
        expected = expected / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    assert np.abs(scores - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.ptp(expected) > 0.01 * np.abs(expected).max()  # the reference tells images apart


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_conforms(kind: str, tiny: dict[str, Any]) -> None:
    assert CLIP.access is Access.DATA
    assert check_method(CLIP, similarity=kind, **tiny) is None


@pytest.mark.parametrize("file", ["tiny.pt", "run.pt"])
def test_a_state_dict_gives_what_safetensors_give(file: str, tiny: dict[str, Any]) -> None:
    pixels, device = images(3, 0).images, torch.device("cpu")
    other = Path(tiny["checkpoint"]).with_name(file)
    expected = embedder(**tiny).embed(pixels, device)
    assert torch.equal(embedder(tiny["model"], checkpoint=str(other)).embed(pixels, device), expected)
    # and by a name that open_clip knows
    assert torch.equal(embedder("tiny-clip", checkpoint=str(other)).embed(pixels, device), expected)


def test_pre_processing_of_a_hub_configuration_is_used(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "open_clip_config.json"
    plain = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config.write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": plain}))
    transform = embedder(str(config), checkpoint=tiny["checkpoint"])._loaded[1]
    grey = Image.new("RGB", (8, 12), (255, 0, 51))
    assert torch.allclose(transform(grey)[:, 0, 0], torch.tensor([2.0, -2.0, -1.2]))


def test_the_tag_decides_activation_and_pre_processing() -> None:
    openai = clip_models.find_model("ViT-B/32", "openai", own_weights=True)
    laion = clip_models.find_model("ViT-B-32", "laion2b_s34b_b79k", own_weights=False)
    assert (openai.quick_gelu, laion.quick_gelu) == (True, False)
    assert openai.spec != laion.spec
    assert openai.repository == "timm/vit_base_patch32_clip_224.openai"
    assert openai.files == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def test_the_activation_of_the_tag_is_built(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "gelu.json"
    config.write_text(json.dumps({**TINY, "quick_gelu": False}))
    gelu = clip_models.find_model(str(config), "openai", own_weights=True)
    quick = clip_models.find_model(tiny["model"], "openai", own_weights=True)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, forced, expected = (
            model.load(Path(tiny["checkpoint"]))[0].encode_image(pixels)  # type: ignore[operator]
            for model in (gelu, replace(gelu, quick_gelu=True), quick)
        )
    assert torch.equal(forced, expected)
    assert not torch.allclose(plain, expected)


def test_embeddings_of_train_images_are_computed_once(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_IMAGES_PER_CHUNK", 4)
    seen: list[int] = []
    embed = ImageEmbedder.embed

    def counting(self: ImageEmbedder, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        if len(seen) == 2:
            seen.append(0)
            raise KeyboardInterrupt  # killed in the third chunk
        seen.append(len(pixels))
        return embed(self, pixels, device)

    monkeypatch.setattr(ImageEmbedder, "embed", counting)
    train = images(11, 0)
    with pytest.raises(KeyboardInterrupt):
        started(train, tmp_path, **tiny)
    first = started(train, tmp_path, **tiny)
    assert seen == [4, 4, 0, 3]
    second = started(train, tmp_path, similarity="dot", batch_size=1, **tiny)
    assert seen == [4, 4, 0, 3]
    assert torch.equal(first._train, second._train)
    whole = embed(embedder(**tiny), train.images, torch.device("cpu"))
    assert torch.allclose(first._train, whole, rtol=1e-5, atol=1e-6)  # the batch shows in the last bits

    changed = train.images.clone()
    changed[0, 0, 0, 0] ^= 1
    started(ImageSet(changed, train.ids), tmp_path, **tiny)
    assert seen == [4, 4, 0, 3, 4]  # only the chunk that changed


def test_other_weights_at_the_same_path_are_other_embeddings(tiny: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    state = reference_model().state_dict()
    train = images(3, 0)
    made, hashes = [], set()
    for factor in (1.0, 2.0):
        save_file({**state, "visual.proj": factor * state["visual.proj"]}, checkpoint)
        method = started(train, tmp_path, model=tiny["model"], checkpoint=str(checkpoint))
        made.append(method._train)
        hashes.add(method.inputs_hash())
    assert torch.allclose(made[1], 2 * made[0])
    assert len(hashes) == 2


def test_a_run_takes_no_scores_of_other_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    command = ["run", "--dataset", "digits", "--preset", "smoke", "--accelerator", "cpu", "--method", "clip"]
    command += ["--method.model", tiny["model"], "--method.checkpoint", str(checkpoint)]
    command += ["--workdir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    state = reference_model().state_dict()
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(2):
        save_file({**state, "visual.proj": torch.randn(64, 12, generator=generator)}, checkpoint)
        assert main(command) == 0
        (record,) = load_records(tmp_path / "results")
        assert record.access == "DATA"
        seen.append(record.results["validation"].per_query)
    assert seen[0] != seen[1]


@pytest.mark.usefixtures("offline")
def test_without_weights_the_reason_names_them(tmp_path: Path) -> None:
    reason = CLIP().skip_reason(make_context(images(2, 0), tmp_path))
    assert reason is not None
    assert "\n" not in reason
    for part in (
        "'openai' of ViT-B-32",
        "https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors",
        "--method clip --method.checkpoint FILE",
    ):
        assert part in reason
    assert check_method(CLIP) == reason
    with pytest.raises(AttribenchError, match=r"--method\.checkpoint FILE"):
        start(CLIP(), make_context(images(2, 0), tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_failing_network_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def fail(url: str, timeout: float) -> None:
        asked.append(timeout)
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    reasons = {CLIP(kind).skip_reason(make_context(images(2, 0), tmp_path)) for kind in ("dot", "cosine")}
    assert len(asked) == 1
    assert max(asked) <= 10
    assert len(reasons) == 1
    assert "OSError: no route to host" in str(reasons)
    assert "second line" not in str(reasons)


def test_cached_weights_are_used(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: tiny["checkpoint"])
    fetch.cache_clear()
    assert CLIP().skip_reason(make_context(images(2, 0), tmp_path)) is None
    fetch.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "euclid"}, "'dot' or 'cosine'"),
        ({"model": "ViT-B32"}, "Unknown open_clip model 'ViT-B32'. Did you mean 'ViT-B-32'"),
        ({"pretrained": "opeani"}, "no weights 'opeani' for ViT-B-32. Did you mean 'openai'?"),
        ({"model": "ViT-H-14"}, "no weights 'openai' for ViT-H-14. It has: laion2b_s32b_b79k"),
        ({"checkpoint": "absent.pt"}, "no checkpoint file absent.pt"),
        ({"checkpoint": __file__}, "A checkpoint is a file .safetensors"),
        ({"model": "absent.json"}, "absent.json: No such file"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        CLIP(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"embed_dim": 3}'])
def test_a_file_that_is_no_model_configuration_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"model\.json is not"):
        CLIP(model=str(file))


class Code:
    """What a pickle can run when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def damaged(kind: str, good: Path, folder: Path) -> Path:
    file = folder / ("weights.safetensors" if kind in ("cut short", "other model") else "weights.pt")
    if kind == "cut short":
        file.write_bytes(good.read_bytes()[:-100])
    elif kind == "other model":
        state = reference_model().state_dict()
        save_file({**state, "visual.proj": state["visual.proj"][:, :5].contiguous()}, file)
    elif kind == "code":
        torch.save({"state_dict": Code()}, file)
    elif kind == "TorchScript":
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))  # type: ignore[no-untyped-call]
    elif kind == "text":
        file.write_text("<html>404</html>")
    elif kind == "empty":
        file.touch()
    else:
        torch.save({}, file)
    return file


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:UserWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut short", "is damaged, or no weights of the model"),
        ("other model", "do not fit the model"),
        ("code", "Python objects beside weights"),
        ("TorchScript", "TorchScript archive, which holds code"),
        ("text", "is damaged, or holds"),
        ("empty", "is damaged, or no weights of the model"),
        ("no tensors", "is damaged, or no weights of the model"),
    ],
)
def test_a_bad_checkpoint_is_a_clear_error(kind: str, message: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    file = damaged(kind, Path(tiny["checkpoint"]), tmp_path)
    with pytest.raises(AttribenchError) as caught:
        started(images(2, 0), tmp_path / "store", model=tiny["model"], checkpoint=str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    if kind == "other model":
        assert tiny["model"] in str(caught.value)
        assert "visual.proj" in str(caught.value)


def test_images_of_two_channels_are_refused_with_a_reason(tiny: dict[str, Any], tmp_path: Path) -> None:
    assert "grey or RGB" in str(CLIP(**tiny).skip_reason(make_context(images(2, 0, channels=2), tmp_path)))
