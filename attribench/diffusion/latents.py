"""Latents: what a pipeline's autoencoder makes of images, made once and kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.device import exact_float32
from attribench.computing.memory import available_memory
from attribench.computing.progress import Progress
from attribench.data import ImageSet, to_unit_range
from attribench.diffusion.digests import model_digest
from attribench.errors import ModelError, UsageError
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.code import ROOT, source_hash

_KIND = "latents"

#: The files that decide latents; relative to the package.
_DECISIVE = ("diffusion/latents.py", "diffusion/digests.py", "data/image_sets.py", "computing/device.py")

#: Images whose latents are kept together: what a killed call loses.
CHUNK = 64

#: Bytes of activations of one pass, about, and the share of what memory there is that they may take.
_PASS_BYTES, _PASS_SHARE = {"cpu": 256 * 2**20, "cuda": 8 * 2**30}, 0.5

#: What libraries take for themselves at the first passes.
LIBRARY_BYTES = 24 * 2**20

#: Bytes of an artifact beside its latents.
_ARTIFACT_BYTES = 4096


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """Makes latents of pixels: the mean of the posterior, less the shift, times the scaling factor.

    Args:
        module: an ``AutoencoderKL`` in float32 and evaluation mode.

    Raises:
        ModelError: its latents are scaled in a way that is not known.
    """

    module: nn.Module

    def __post_init__(self) -> None:
        if self._config.get("latents_mean") is not None or self._config.get("latents_std") is not None:
            raise ModelError("The autoencoder scales each channel of its latents by itself: that is not supported.")

    @property
    def _config(self) -> Mapping[str, Any]:
        module: Any = self.module
        config: Mapping[str, Any] = module.config
        return config

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self._config["latent_channels"])

    @property
    def image_channels(self) -> int:
        """Of the images."""
        return int(self._config["in_channels"])

    @property
    def factor(self) -> int:
        """Pixels along a side for one latent."""
        return int(2 ** (len(self._config["block_out_channels"]) - 1))

    @property
    def digest(self) -> str:
        """Identifies it as it is now."""
        return model_digest(self.module)

    def encode(self, images: Tensor, device: torch.device) -> Tensor:
        """Latents of uint8 images ``(N, C, H, W)``: float32 ``(N, c, H/factor, W/factor)`` on the CPU."""
        scaling, shift = (self._config.get(name) for name in ("scaling_factor", "shift_factor"))
        module: Any = self.module
        with torch.no_grad(), exact_float32():
            mean = module.encode(to_unit_range(images).to(device)).latent_dist.mean
        latents = (mean - (shift or 0.0)) * (1.0 if scaling is None else scaling)
        found: Tensor = latents.float().cpu()
        return found

    def image_bytes(self, side: int) -> int:
        """Bytes of memory that encoding an image takes, about.

        Where a level has most numbers, there are what goes into a layer, what comes out of it, what is added to that later,
        and two copies in the order that convolutions compute in. In the middle, attention has some more, smaller ones: as
        many as were measured (``benchmarks/own_model_memory.py``).
        """
        widths = self._config["block_out_channels"]
        # A level's first layer has the width of the level before it; all run at the level's resolution.
        sizes = [max(widths[max(0, level - 1)], width) * (side / 2**level) ** 2 for level, width in enumerate(widths)]
        attention = widths[-1] * (side / self.factor) ** 2 if self._config.get("mid_block_add_attention", True) else 0.0
        return int(4 * max(5 * max(sizes), 19 * attention))

    def batch(self, side: int, device: torch.device) -> int:
        """Images that are encoded together: one where there is memory for less."""
        budget = min(_PASS_BYTES.get(device.type, _PASS_BYTES["cpu"]), _PASS_SHARE * available_memory(device))
        return max(1, min(CHUNK, int(budget // self.image_bytes(side))))


@dataclass(frozen=True)
class EncodingNeeds:
    """What encoding takes, estimated before it is done.

    Attributes:
        images: that are to be encoded.
        memory: bytes at the peak.
        disk: bytes that are kept.
        seconds: found out with one image.
    """

    images: int
    memory: int
    disk: int
    seconds: float


class Latents:
    """The latents of images, kept in a store by what they are of.

    Args:
        autoencoder: on ``device`` as long as it is needed.
    """

    def __init__(self, autoencoder: Autoencoder, store: ArtifactStore, device: torch.device) -> None:
        self._autoencoder, self._store, self._device = autoencoder, store, device

    def needs(self, *sets: ImageSet) -> EncodingNeeds | None:
        """What encoding these takes; None where all latents are in the store.

        Raises:
            UsageError: there is no memory for one image.
        """
        missing = [
            part for images in sets for part, spec in self._parts(images) if self._store.find(_KIND, spec) is None
        ]
        if not missing:
            return None
        count, (_, height, width) = sum(map(len, missing)), missing[0].image_shape
        try:
            self._autoencoder.module.to(self._device)
            seconds = min(self._timed(missing[0][:1]) for _ in range(2))  # the first one finds out how to compute
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"There is no memory on {self._device} to encode one image of {height}×{width}: a smaller --image-size takes "
                "less, and so does --accelerator cpu."
            ) from error
        code = self._autoencoder
        latent = 4 * code.channels * (height // code.factor) * (width // code.factor)
        batch = min(code.batch(max(height, width), self._device), max(map(len, missing)))
        held = max(map(len, sets)) * latent  # in parts, which become one
        kept = sum(map(len, sets)) * latent  # for as long as the methods run
        memory = (
            LIBRARY_BYTES
            + kept
            + max(held, batch * code.image_bytes(max(height, width)) + 2 * min(CHUNK, count) * latent)
        )
        return EncodingNeeds(count, memory, count * latent + len(missing) * _ARTIFACT_BYTES, seconds * count)

    def of(self, images: ImageSet, progress: Progress) -> ImageSet:
        """The images with their latents in place of pixels, float32; those that are not in the store are encoded."""
        if not len(images):
            raise ValueError("there are no images")
        found = []
        with progress.task(f"encoding {len(images)} images", len(images), "images") as task:
            for part, spec in self._parts(images):
                artifact = self._store.get_or_create(_KIND, spec, self._builder(part))
                found.append(artifact.load_tensors("latents")["latents"])
                task.advance(len(part))
        return replace(images, images=torch.cat(found), latent=True)

    def _builder(self, part: ImageSet) -> Any:
        def build(staging: Staging) -> None:
            with measure(self._device) as cost:
                self._autoencoder.module.to(self._device)
                size = self._autoencoder.batch(max(part.image_shape[1:]), self._device)
                pieces = [part.images[begin : begin + size] for begin in range(0, len(part), size)]
                latents = torch.cat([self._autoencoder.encode(piece, self._device) for piece in pieces])
            if not torch.isfinite(latents).all():
                raise ModelError(f"The latents of an image among {part.ids[0]!r}…{part.ids[-1]!r} are not finite.")
            staging.save_tensors("latents", {"latents": latents})
            staging.note(peak_bytes=cost.peak_bytes)

        return build

    def _parts(self, images: ImageSet) -> Sequence[tuple[ImageSet, Spec]]:
        common = {"code": source_hash(*(ROOT / name for name in _DECISIVE)), "autoencoder": self._autoencoder.digest}
        parts = []
        for begin in range(0, len(images), CHUNK):
            part = images[begin : begin + CHUNK]
            content = ImageSet(part.images, tuple(map(str, range(len(part))))).content_hash  # whatever they are called
            parts.append((part, {**common, "images": content}))
        return parts

    def _timed(self, image: ImageSet) -> float:
        started = time.perf_counter()
        self._autoencoder.encode(image.images, self._device)
        return time.perf_counter() - started
