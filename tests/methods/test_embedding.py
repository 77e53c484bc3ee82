"""Backbones other than CLIP, each against its library or, for SSCD, against what its authors describe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import write_tiny_clip

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.embeddings import timm_models
from attribench.embeddings.backbones import find_backbone
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.embeddings.sscd import SSCD_NAMES
from attribench.embeddings.weights import fetch
from attribench.errors import AttribenchError, UsageError
from attribench.method import score, start
from attribench.methods.clip import CLIP
from attribench.methods.embedding import Embedding
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method

#: A model of timm's own tests, with 300 thousand parameters; its classifier is ``head``.
TIMM = "test_vit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def vit(folder: Path) -> Path:
    save_file(timm_reference().state_dict(), folder / "vit.safetensors")
    return folder / "vit.safetensors"


@pytest.fixture(scope="module")
def sscd(folder: Path) -> Path:
    """As the authors publish it: a state_dict whose names begin with ``backbone.``."""
    torch.save({f"backbone.{key}": value for key, value in sscd_reference().state_dict().items()}, folder / "sscd.pt")
    return folder / "sscd.pt"


def timm_reference(classes: int | None = None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return timm.create_model(TIMM, pretrained=False, **({} if classes is None else {"num_classes": classes})).eval()


def sscd_reference() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = torchvision.models.resnet50(num_classes=512).eval()
        for name, buffer in network.named_buffers():  # as after training: no normalisation is the identity
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
        return network


def pictures(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.repeat(3 // len(image), 0).transpose(1, 2, 0)) for image in images.numpy()]


def expected_timm(images: torch.Tensor) -> np.ndarray[Any, Any]:
    """One by one in float64: timm's own transform, the network up to its classifier."""
    model = timm_reference().double()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        rows = [
            model.forward_head(model.forward_features(transform(picture)[None].double()), pre_logits=True)[0]
            for picture in pictures(images)
        ]
    return torch.stack(rows).numpy()


def expected_sscd(images: torch.Tensor) -> np.ndarray[Any, Any]:
    """One by one in float64, with pre-processing, pooling and the last layer written out."""
    network = sscd_reference().double()
    seen: list[torch.Tensor] = []
    network.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    rows = []
    for picture in pictures(images):
        short = min(picture.size)
        size = (int(288 * picture.width / short), int(288 * picture.height / short))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) / 255.0
        pixels = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        with torch.no_grad():
            network(torch.from_numpy(pixels.transpose(2, 0, 1))[None])
        features = np.maximum(seen[-1].numpy(), 1e-6)
        pooled = np.mean(features**3, axis=(1, 2)) ** (1 / 3)
        row = network.fc.weight.detach().numpy() @ pooled + network.fc.bias.detach().numpy()
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


EXPECTED = {"sscd": expected_sscd, TIMM: expected_timm}


@pytest.fixture
def files(vit: Path, sscd: Path) -> dict[str, Path]:
    return {TIMM: vit, "sscd": sscd}


def images(count: int, seed: int, channels: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, 8, 9), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{seed}-{i}" for i in range(count)))


def make_context(train: ImageSet, folder: Path) -> AttributionContext:
    return AttributionContext(train, NoiseSchedule(), torch.device("cpu"), 0, ArtifactStore(folder), access=Access.DATA)


def scores_of(method: Embedding | CLIP, train: ImageSet, queries: ImageSet, folder: Path) -> np.ndarray[Any, Any]:
    context = make_context(train, folder)
    assert method.skip_reason(context) is None
    start(method, context)
    return score(method, Queries.of(queries, "queries")).numpy()


def embed(name: str, checkpoint: Path, pixels: torch.Tensor) -> torch.Tensor:
    return ImageEmbedder(find_backbone(name, own_weights=True), str(checkpoint)).embed(pixels, torch.device("cpu"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Empty caches and no network, whatever this machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    fetch.cache_clear()
    yield
    fetch.cache_clear()


@pytest.mark.parametrize(
    ("backbone", "kind", "channels"),
    [
        *((TIMM, kind, channels) for kind in ("dot", "cosine") for channels in (1, 3)),
        pytest.param("sscd", "dot", 1, marks=pytest.mark.slow),
        pytest.param("sscd", "cosine", 3, marks=pytest.mark.slow),
    ],
)
def test_equals_float64_on_embeddings_made_one_by_one(
    backbone: str, kind: str, channels: int, files: dict[str, Path], tmp_path: Path
) -> None:
    train, queries = images(5, 0, channels), images(2, 1, channels)
    method = Embedding(backbone, kind, checkpoint=str(files[backbone]), batch_size=3)  # type: ignore[arg-type]
    scores = scores_of(method, train, queries, tmp_path)
    a, b = EXPECTED[backbone](queries.images), EXPECTED[backbone](train.images)
    expected = a @ b.T
    if kind == "cosine":
        expected = expected / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    assert np.abs(scores - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.ptp(expected) > 100 * np.abs(scores - expected).max()  # the reference tells images apart


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_conforms(kind: str, vit: Path) -> None:
    assert Embedding.access is Access.DATA
    assert check_method(Embedding, backbone=TIMM, similarity=kind, checkpoint=str(vit)) is None


@pytest.mark.slow
def test_sscd_conforms(sscd: Path) -> None:
    assert check_method(Embedding, backbone="sscd", checkpoint=str(sscd)) is None


def test_clip_is_one_of_the_backbones(tmp_path: Path) -> None:
    tiny = write_tiny_clip(tmp_path)
    train, queries = images(4, 0), images(2, 1)
    old = scores_of(CLIP("dot", **tiny), train, queries, tmp_path / "a")
    new = scores_of(Embedding(tiny["model"], "dot", checkpoint=tiny["checkpoint"]), train, queries, tmp_path / "b")
    assert np.array_equal(old, new)
    named, clip = find_backbone("clip", own_weights=False), find_backbone("ViT-B-32", "openai")
    assert named == clip == CLIP()._embedder.backbone
    assert find_backbone("ViT-B-32", "laion2b_s34b_b79k") != clip


def test_names_lead_to_the_libraries(vit: Path) -> None:
    dino = find_backbone("dinov2")
    assert isinstance(dino, timm_models.TimmModel)
    assert dino.name == "vit_small_patch14_dinov2.lvd142m"
    assert dino.repository == "timm/vit_small_patch14_dinov2.lvd142m"
    assert dino.files[0] == "model.safetensors"
    assert dino.preprocessing["input_size"] == (3, 518, 518)
    assert dino.preprocessing["interpolation"] == "bicubic"
    assert "vit_base" in str(find_backbone("dinov2-base").spec)
    assert find_backbone("timm:convnext_base") == timm_models.find_timm_model("convnext_base")
    assert {find_backbone(name).label for name in SSCD_NAMES} == {f"SSCD ({name})" for name in SSCD_NAMES}


def test_any_classifier_or_none_gives_the_same_embedding(vit: Path, tmp_path: Path) -> None:
    pixels = images(2, 0).images
    expected = embed(TIMM, vit, pixels)
    state = timm_reference().state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("head.")}
    other = {**body, "head.weight": torch.randn(7, 64), "head.bias": torch.zeros(7)}
    for name, content in (
        ("none.pt", body),
        ("other.pt", other),
        ("run.pth", {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}),
        ("average.pth", {"state_dict": {}, "model_ema": state}),
    ):
        torch.save(content, tmp_path / name)
        assert torch.equal(embed(TIMM, tmp_path / name, pixels), expected)


def test_a_published_tag_brings_its_pre_processing() -> None:
    plain, tag = find_backbone("resnet50.a1_in1k"), find_backbone("resnet50.tv_in1k")
    assert plain.spec != tag.spec
    assert isinstance(tag, timm_models.TimmModel)
    assert (tag.classifier, tag.repository) == ("fc", "timm/resnet50.tv_in1k")


def test_no_images_have_no_embeddings_but_their_width(vit: Path) -> None:
    assert embed(TIMM, vit, torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).shape == (0, 64)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("backbone", "parts"),
    [
        ("dinov2", ("https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors",)),
        (
            "sscd",
            ("https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchvision.pt", "torch/checkpoints"),
        ),
        ("clip", ("'openai' of ViT-B-32", "open_clip_model.safetensors")),
        (TIMM, ("huggingface.co",)),
    ],
)
def test_without_weights_the_reason_says_what_to_fetch(backbone: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    method = Embedding(backbone)
    reason = method.skip_reason(make_context(images(2, 0), tmp_path))
    assert reason is not None
    assert "\n" not in reason
    for part in (*parts, "download ", f"--method embedding --method.backbone {backbone} --method.checkpoint FILE"):
        assert part in reason
    assert check_method(Embedding, backbone=backbone) == reason


@pytest.mark.usefixtures("offline")
def test_sscd_is_found_in_the_folder_of_torch_hub(sscd: Path, tmp_path: Path) -> None:
    place = tmp_path / "torch" / "checkpoints" / "sscd_disc_mixup.torchvision.pt"
    place.parent.mkdir(parents=True)
    place.write_bytes(sscd.read_bytes())
    assert Embedding("sscd").skip_reason(make_context(images(2, 0), tmp_path)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "euclid"}, "'dot' or 'cosine'"),
        ({"backbone": "dinov3x"}, "Unknown backbone 'dinov3x'."),
        ({"backbone": "vit_smal_patch14_dinov2"}, "Did you mean 'vit_small_patch14_dinov2'"),
        ({"backbone": "timm:nothing_of_the_kind"}, "Unknown timm model 'nothing_of_the_kind'"),
        ({"backbone": "open_clip:ViT-B32"}, "Unknown open_clip model 'ViT-B32'"),
        ({"backbone": "convnext_base"}, "say open_clip:convnext_base or timm:convnext_base"),
        ({"backbone": "dinov2", "pretrained": "openai"}, "timm's tags are part of the name"),
        ({"backbone": "sscd", "pretrained": "openai"}, "pretrained is the tag of an open_clip model"),
        ({"backbone": "ViT-B-32", "pretrained": "opeani"}, "Did you mean 'openai'?"),
        ({"checkpoint": "absent.pt"}, "no checkpoint file absent.pt"),
        ({"checkpoint": __file__}, "A checkpoint is a file .safetensors"),
        ({"backbone": "absent.json"}, "absent.json: No such file"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Embedding(**options)
    assert message in str(caught.value)


class Code:
    """What a pickle can run when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def damaged(kind: str, file: Path) -> Path:
    if kind == "code":
        torch.save({"state_dict": Code()}, file)
    elif kind == "TorchScript":
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(file))  # type: ignore[no-untyped-call]
    elif kind == "other model":
        torch.save({"conv1.weight": torch.zeros(3), "cls_token": torch.zeros(1, 1, 3)}, file)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, file)
    else:
        file.write_text("<html>404</html>")
    return file


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:UserWarning")
@pytest.mark.parametrize("backbone", [TIMM, "sscd"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", "Python objects beside weights"),
        ("TorchScript", "TorchScript archive, which holds code"),
        ("other model", "do not fit the model"),
        ("no tensors", "it holds no weights"),
        ("text", "is damaged, or holds"),
    ],
)
def test_a_bad_checkpoint_is_a_clear_error(backbone: str, kind: str, message: str, tmp_path: Path) -> None:
    file = damaged(kind, tmp_path / "weights.pt")
    with pytest.raises(AttribenchError) as caught:
        embed(backbone, file, images(1, 0).images)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_weights_at_the_same_path_are_other_inputs(vit: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    hashes = set()
    for factor in (1.0, 2.0):
        save_file({key: factor * value for key, value in timm_reference().state_dict().items()}, checkpoint)
        hashes.add(Embedding(TIMM, checkpoint=str(checkpoint)).inputs_hash())
    assert len(hashes) == 2


def test_images_of_two_channels_are_refused_with_a_reason(vit: Path, tmp_path: Path) -> None:
    method = Embedding(TIMM, checkpoint=str(vit))
    assert "grey or RGB" in str(method.skip_reason(make_context(images(2, 0, channels=2), tmp_path)))
