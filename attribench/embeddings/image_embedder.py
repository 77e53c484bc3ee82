"""Image embeddings of CLIP models: for attribution by similarity, and to say how alike two images are."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.computing.progress import Progress, silent_progress
from attribench.embeddings.clip_models import (
    DEFAULT_MODEL,
    DEFAULT_PRETRAINED,
    Transform,
    WeightsMissingError,
    check_checkpoint,
    find_model,
)
from attribench.errors import AttribenchError, DataError, UsageError
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.code import ROOT, source_hash

#: Images an artifact: what a killed run loses at most.
_IMAGES_PER_CHUNK = 512

#: The files that decide embeddings; relative to the package.
_DECISIVE = ("embeddings/image_embedder.py", "embeddings/clip_models.py", "computing/device.py")


class ImageEmbedder:
    """The image tower of a CLIP model, with the model's own pre-processing; grey images become RGB.

    Nothing heavy happens before the first embedding.

    Args:
        model: a model of ``open_clip.list_models()``, or the path of a JSON model configuration.
        pretrained: open_clip's tag of the weights; it decides activation and pre-processing, also for a checkpoint.
        checkpoint: a local file with the weights, in place of the download.
        batch_size: images the model sees at a time.
        checkpoint_option: what a message tells its reader to pass a checkpoint with.

    Raises:
        UsageError: no such model, tag or file.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        pretrained: str = DEFAULT_PRETRAINED,
        checkpoint: str | None = None,
        batch_size: int = 64,
        checkpoint_option: str = "--method.checkpoint",
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1; got {batch_size}.")
        self._checkpoint = None if checkpoint is None else Path(checkpoint).expanduser()
        if self._checkpoint is not None:
            check_checkpoint(self._checkpoint)
        self._model = find_model(model, pretrained, own_weights=checkpoint is not None)
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
        return {"code": code, **self._model.spec, "weights": weights}

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
            raise DataError(f"CLIP embeds grey or RGB images; these have {images.shape[1]} channels.")
        network, transform = self._loaded
        network.to(device)
        parts = [torch.empty(0, int(self._model.architecture["embed_dim"]))]
        with torch.inference_mode(), exact_float32():
            for begin in range(0, len(images), self._batch_size):
                batch = images[begin : begin + self._batch_size]
                pixels = torch.stack([transform(_picture(image)) for image in batch])
                parts.append(network.encode_image(pixels.to(device)).float().cpu())  # type: ignore[operator]
        embeddings = torch.cat(parts)
        if not torch.isfinite(embeddings).all():
            raise AttribenchError(f"The weights in {self._weights} give NaN or infinite embeddings.")
        return embeddings

    def embed_stored(
        self, images: Tensor, device: torch.device, store: ArtifactStore, progress: Progress = silent_progress
    ) -> Tensor:
        """The same, kept in ``store`` in chunks: what is there is not computed again."""
        parts = []
        with progress.task(f"embedding {len(images)} images with {self._model.label}", len(images)) as task:
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
            return self._model.locate()
        except WeightsMissingError as error:
            raise WeightsMissingError(f"{error} and pass it with {self._option} FILE.") from error

    @cached_property
    def _loaded(self) -> tuple[nn.Module, Transform]:
        return self._model.load(self._weights)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _digest(images: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()
