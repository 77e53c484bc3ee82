"""Latents: what diffusers' autoencoder gives, scaled, once, and found again by what they are of."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import autoencoder
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from attribench import ImageSet
from attribench.computing.progress import silent_progress
from attribench.diffusion import latents
from attribench.diffusion.inputs import LatentInputs, PixelInputs
from attribench.diffusion.latents import LIBRARY_BYTES, Autoencoder, Latents
from attribench.errors import DataError, ModelError, UsageError
from attribench.store.artifacts import ArtifactStore

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = ImageSet(PIXELS, tuple("abcde"), torch.arange(5), tuple("vwxyz"))


def made(seed: int = 0, **options: Any) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(autoencoder(**options).eval())


@pytest.mark.parametrize("options", [{}, {"scaling_factor": 1.5, "shift_factor": 0.25}])
def test_the_posterior_s_mean_less_the_shift_times_the_scaling_factor(options: dict[str, float]) -> None:
    code = made(**options)
    assert (code.channels, code.image_channels, code.factor) == (4, 3, 2)
    with torch.no_grad():
        moments = code.module.double().quant_conv(code.module.encoder(PIXELS.double() / 127.5 - 1))  # type: ignore[operator]
    mean = moments[:, :4]
    expected = (mean - options.get("shift_factor", 0.0)) * options.get("scaling_factor", 0.18215)
    code.module.float()
    found = code.encode(PIXELS, CPU)
    assert found.shape == (5, 4, 8, 8)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_latents_take_the_place_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "CHUNK", 2)
    code = made()
    found = Latents(code, ArtifactStore(tmp_path), CPU).of(IMAGES, silent_progress)
    assert found.latent
    assert (found.ids, found.captions) == (IMAGES.ids, IMAGES.captions)
    assert torch.equal(found.labels, IMAGES.labels)  # type: ignore[arg-type]
    torch.testing.assert_close(found.images, code.encode(PIXELS, CPU), rtol=1e-4, atol=1e-6)
    assert len(list((tmp_path / "latents").iterdir())) == 3


def counting(code: Autoencoder, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    seen: list[int] = []
    encode = Autoencoder.encode
    monkeypatch.setattr(
        Autoencoder, "encode", lambda self, images, device: seen.append(len(images)) or encode(self, images, device)
    )
    return lambda: sum(seen)


def test_each_image_is_encoded_once_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "CHUNK", 2)
    seen = counting(made(), monkeypatch)
    store = ArtifactStore(tmp_path)
    first = Latents(made(), store, CPU).of(IMAGES, silent_progress)
    assert seen() == 5
    renamed = ImageSet(PIXELS, tuple("ABCDE"))
    again = Latents(made(), store, CPU).of(renamed, silent_progress)
    assert seen() == 5
    assert torch.equal(first.images, again.images)
    assert Latents(made(), store, CPU).needs(IMAGES, renamed) is None
    Latents(made(), store, CPU).of(ImageSet(PIXELS[:3].flip(0), tuple("abc")), silent_progress)
    assert seen() == 8


@pytest.mark.parametrize("other", [{"seed": 1}, {"scaling_factor": 0.5}, {"shift_factor": 0.1}, {"act_fn": "relu"}])
def test_other_autoencoders_make_other_latents(other: dict[str, Any], tmp_path: Path) -> None:
    """Also one of the same weights, that does something else with them."""
    store = ArtifactStore(tmp_path)
    first = Latents(made(), store, CPU).of(IMAGES, silent_progress)
    second = Latents(made(**other), store, CPU).of(IMAGES, silent_progress)
    assert not torch.allclose(first.images, second.images, rtol=1e-3)


def test_what_it_takes(tmp_path: Path) -> None:
    code, store = made(), ArtifactStore(tmp_path)
    needs = Latents(code, store, CPU).needs(IMAGES, IMAGES[:2])
    assert needs is not None
    assert needs.images == 7
    Latents(code, store, CPU).of(IMAGES, silent_progress)
    Latents(code, store, CPU).of(IMAGES[:2], silent_progress)
    kept = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith("."))
    assert 0.5 * kept < needs.disk < 2 * kept + 2 * 4096
    assert needs.seconds > 0


class Live(TorchDispatchMode):
    """Counts the bytes of what operations return, for as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self._held = 0, 0, dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else [found]:
            if isinstance(value, torch.Tensor):
                self._count(value.data_ptr(), value.untyped_storage().nbytes())
                weakref.finalize(value, self._drop, value.data_ptr(), value.untyped_storage().nbytes())
        return found

    def _count(self, place: int, size: int) -> None:
        self._held[place] = self._held.get(place, 0) + 1
        self.now += size * (self._held[place] == 1)
        self.peak = max(self.peak, self.now)

    def _drop(self, place: int, size: int) -> None:
        self._held[place] -= 1
        self.now -= size * (self._held[place] == 0)


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("count", [1, 6])
def test_the_memory_that_is_said_is_there_for_what_is_computed(count: int, side: int, tmp_path: Path) -> None:
    """At least what operations return and is still held; beside it, convolutions have copies in the order they compute in."""
    code = made(block_out_channels=(16, 32))
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    some = ImageSet(pixels, tuple(map(str, range(count))))
    latents_of = Latents(code, ArtifactStore(tmp_path), CPU)
    needs = latents_of.needs(some)
    assert needs is not None
    with Live() as live:
        latents_of.of(some, silent_progress)
    assert live.peak > count * 16 * side**2 * 4
    assert live.peak < needs.memory - LIBRARY_BYTES < 5 * live.peak


def test_little_memory_makes_passes_smaller_before_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, sizes = made(), list[int]()
    encode, usual = Autoencoder.encode, code.batch(16, CPU)
    monkeypatch.setattr(
        Autoencoder, "encode", lambda self, images, device: sizes.append(len(images)) or encode(self, images, device)
    )
    ample = Latents(code, ArtifactStore(tmp_path), CPU).needs(IMAGES)
    assert usual > 5
    for free, expected in ((6 * code.image_bytes(16), 3), (code.image_bytes(16) // 2, 1)):
        monkeypatch.setattr(latents, "available_memory", lambda device, free=free: free)
        of_these = Latents(code, ArtifactStore(tmp_path / str(free)), CPU)
        needs = of_these.needs(IMAGES)
        assert needs is not None
        assert ample is not None
        assert ample.memory - needs.memory == (5 - expected) * code.image_bytes(16)
        sizes.clear()
        of_these.of(IMAGES, silent_progress)
        assert max(sizes) == expected


def test_no_memory_for_one_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Autoencoder, "encode", full)
    with pytest.raises(UsageError, match=r"no memory on cpu to encode one image of 16×16: a smaller --image-size"):
        Latents(made(), ArtifactStore(tmp_path), CPU).needs(IMAGES)


def test_the_network_stays_out_of_it(tmp_path: Path) -> None:
    code = made()
    code.module.requires_grad_(False)
    Latents(code, ArtifactStore(tmp_path), CPU).of(IMAGES, silent_progress)
    assert all(value.grad is None and not value.is_inference() for value in code.module.parameters())


def test_latents_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    code = made()
    nn.init.constant_(code.module.quant_conv.bias, float("nan"))  # type: ignore[union-attr,arg-type]
    with pytest.raises(ModelError, match=r"latents of an image among 'a'…'e' are not finite"):
        Latents(code, ArtifactStore(tmp_path), CPU).of(IMAGES, silent_progress)


def test_channels_that_are_scaled_one_by_one_are_refused() -> None:
    with pytest.raises(ModelError, match="scales each channel"):
        made(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)


def test_inputs_on_latents() -> None:
    found = ImageSet(torch.randn(3, 4, 8, 8), tuple("abc"), torch.tensor([0, 2, 1]), ("x", "y", "x"), latent=True)
    told = LatentInputs({"x": 0, "y": 1}, torch.arange(12.0).reshape(2, 3, 2), "encoder", 3)
    seen = told.seen(found)
    assert torch.equal(told.clean(seen), found.images)
    conditions = told.conditions(seen)
    assert torch.equal(conditions["class_labels"], found.labels)  # type: ignore[arg-type]
    rows = conditions["encoder_hidden_states"].of(slice(1, 3))  # type: ignore[union-attr]
    assert torch.equal(rows, torch.stack([torch.arange(6.0, 12.0), torch.arange(6.0)]).reshape(2, 3, 2))
    assert told.spec == {"text": "encoder"}
    bare = LatentInputs()
    assert bare.seen(found).captions is bare.seen(found).labels is None
    assert bare.conditions(bare.seen(found)) == bare.spec == {}
    empty = LatentInputs({"": 0}, torch.zeros(1, 3, 2), "encoder")
    assert empty.seen(ImageSet(found.images, found.ids, latent=True)).captions == ("",) * 3


def test_what_inputs_on_latents_refuse() -> None:
    told = LatentInputs({"x": 0}, torch.zeros(1, 3, 2), "encoder")
    some = torch.randn(2, 4, 8, 8)
    with pytest.raises(DataError, match="works on latents, and these are pixels"):
        told.seen(IMAGES)
    with pytest.raises(DataError, match=r"1 of 2 images have no caption \(b\)"):
        told.seen(ImageSet(some, ("a", "b"), None, ("x", None), latent=True))
    with pytest.raises(DataError, match="'y' was not embedded"):
        told.conditions(told.seen(ImageSet(some, ("a", "b"), None, ("x", "y"), latent=True)))
    with pytest.raises(DataError, match="knows 3 classes, and these images have none"):
        LatentInputs(num_classes=3).seen(ImageSet(some, ("a", "b"), latent=True))
    with pytest.raises(DataError, match="Images must be uint8"):
        PixelInputs().seen(ImageSet(some, ("a", "b"), latent=True))
