"""Embeddings of images: for attribution by similarity, and to say how alike two images are."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.computing.progress import Progress, silent_progress
from attribench.embeddings.backbone import Backbone, Transform
from attribench.embeddings.weights import WeightsMissingError, check_checkpoint
from attribench.errors import AttribenchError, DataError, UsageError
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.code import ROOT, source_hash

#: Images an artifact: what a killed run loses at most.
_IMAGES_PER_CHUNK = 512

#: The files that decide embeddings; relative to the package.
_DECISIVE = (
    "embeddings/image_embedder.py", "embeddings/backbone.py", "embeddings/weights.py",
    "embeddings/clip_models.py", "embeddings/timm_models.py", "embeddings/sscd.py",
    "computing/device.py",
)  # fmt: skip


class ImageEmbedder:
    """A backbone with its weights and its own pre-processing; grey images become RGB.

    Nothing heavy happens before the first embedding.

    Args:
        backbone: what :func:`attribench.embeddings.backbones.find_backbone` found.
        checkpoint: a local file with the weights, in place of the download.
        batch_size: images the model sees at a time.
        checkpoint_option: what a message tells its reader to pass a checkpoint with.

    Raises:
        UsageError: no such file, or a batch size below 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        checkpoint: str | None = None,
        batch_size: int = 64,
        checkpoint_option: str = "--method.checkpoint",
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1; got {batch_size}.")
        self._checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        if self._checkpoint is not None:
            check_checkpoint(self._checkpoint)
        self.backbone = backbone
        self._batch_size = batch_size
        self._option = checkpoint_option

    def unavailable(self) -> str | None:
        """Why the model cannot be used here, in one line that says what to download, or None. May download it."""
        try:
            _ = self._weights
        except WeightsMissingError as error:
            return str(error)
        return None

    @cached_property
    def spec(self) -> Spec:
        """What an embedding depends on apart from the image: code, architecture, pre-processing, SHA-256 of the weights.

        Raises:
            WeightsMissingError: there are no weights.
        """
        with self._weights.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        code = source_hash(*(ROOT / name for name in _DECISIVE))
        return {"code": code, **self.backbone.spec, "weights": weights}

    def embed(self, images: Tensor, device: torch.device) -> Tensor:
        """Embed images.

        Args:
            images: uint8 ``(num_images, channels, height, width)``, grey or RGB.
            device: where to compute.

        Returns:
            float32 ``(num_images, dimensions)`` on the CPU, not normalised.

        Raises:
            AttribenchError: the weights are missing, damaged, or do not fit the model.
            DataError: the images have neither 1 nor 3 channels.
        """
        if images.shape[1] not in (1, 3):
            raise DataError(f"{self.backbone.label} embeds grey or RGB images; these have {images.shape[1]} channels.")
        network, transform = self._loaded
        network.to(device)
        parts = []
        with torch.inference_mode(), exact_float32():
            for begin in range(0, max(1, len(images)), self._batch_size):
                # Of no images at all, a blank one tells how long their embeddings are.
                batch = images[begin : begin + self._batch_size] if len(images) else images.new_zeros(1, 3, 8, 8)
                pixels = torch.stack([transform(_picture(image)) for image in batch])
                parts.append(self.backbone.embed(network, pixels.to(device)).float().cpu())
        embeddings = torch.cat(parts)[: len(images)]
        if not torch.isfinite(embeddings).all():
            raise AttribenchError(f"The weights in {self._weights} give NaN or infinite embeddings.")
        return embeddings

    def embed_stored(
        self, images: Tensor, device: torch.device, store: ArtifactStore, progress: Progress = silent_progress
    ) -> Tensor:
        """The same, kept in ``store`` in chunks: what is there is not computed again."""
        parts = []
        with progress.task(f"embedding {len(images)} images with {self.backbone.label}", len(images)) as task:
            for begin in range(0, len(images), _IMAGES_PER_CHUNK):
                chunk = images[begin : begin + _IMAGES_PER_CHUNK]

                def build(staging: Staging, chunk: Tensor = chunk) -> None:
                    staging.save_tensors("embeddings", {"embeddings": self.embed(chunk, device)})

                artifact = store.get_or_create("embeddings", {**self.spec, "images": _digest(chunk)}, build)
                parts.append(artifact.load_tensors("embeddings")["embeddings"])
                task.advance(len(chunk))
        return torch.cat(parts)

    @cached_property
    def _weights(self) -> Path:
        if self._checkpoint is not None:
            return self._checkpoint
        try:
            return self.backbone.locate()
        except WeightsMissingError as error:
            raise WeightsMissingError(f"{error} and pass it with {self._option} FILE.") from error

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Transform]:
        return self.backbone.load(self._weights)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _digest(images: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()
