"""A pipeline on latents as a base: its denoiser, autoencoder, and what its text encoder makes of the captions there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attribench.computing.progress import Progress
from attribench.diffusion.inputs import LatentInputs
from attribench.diffusion.latents import Autoencoder
from attribench.diffusion.pretrained.foreign_files import read_json
from attribench.diffusion.pretrained.pipelines import read_parts
from attribench.diffusion.pretrained.schedulers import SCHEDULER_FILE, read_schedule, schedule_beside
from attribench.diffusion.spaces import LatentSpace, Space
from attribench.diffusion.texts import told_captions
from attribench.errors import ArtifactError, ModelError
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.files import canonical, digest_text
from attribench.truth.base import StoredBase, store_base, weights_hash

Shape = tuple[int, int, int]

#: Where what the text encoder made of captions is kept: jobs need no text encoder.
_TOLD = "told"


@dataclass(frozen=True)
class LatentBase:
    """The parts of a pipeline in the store.

    Args:
        network: the denoiser.
        autoencoder: makes latents.
        text: identifies the text encoder; empty for a denoiser that is told no text.
        told: identifies what that made of ``captions``.
        captions: all that there are.
        prompts: those that images are generated with, in order.
        scheduler: the configuration of the pipeline's scheduler, as JSON.
    """

    network: StoredBase
    autoencoder: StoredBase
    text: str
    told: str
    captions: tuple[str, ...]
    prompts: tuple[str, ...]
    scheduler: str

    @property
    def content(self) -> str:
        """Of all that decides a LoRA that is trained on it, but for the captions, which the images have."""
        parts = [self.network.content, self.network.config, self.autoencoder.content, self.autoencoder.config]
        return digest_text(canonical([*parts, self.text, self.scheduler]))

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        told: list[tuple[str, Spec]] = [(_TOLD, self._told_spec)] if self.text else []
        return [*self.network.inputs, *self.autoencoder.inputs, *told]

    def load(self, store: ArtifactStore) -> nn.Module:
        return self.network.load(store)

    def skeleton(self) -> nn.Module:
        return self.network.skeleton()

    def space(self, store: ArtifactStore, device: torch.device) -> Space:
        from diffusers import DDIMScheduler

        config = json.loads(self.scheduler)
        inputs = LatentInputs()
        if self.text:
            found = store.find(_TOLD, self._told_spec)
            if found is None:
                raise ArtifactError(f"The embedded captions are not in {store.root}; run the whole command again.")
            rows = {caption: row for row, caption in enumerate(self.captions)}
            inputs = LatentInputs(rows, found.load_tensors("embeddings")["embeddings"], self.text)
        autoencoder = Autoencoder(self.autoencoder.load(store))
        return LatentSpace(autoencoder, inputs, read_schedule(DDIMScheduler.from_config(config)), config, store, device)

    def stand_in(self, image_shape: Shape) -> tuple[Shape, dict[str, tuple[int, ...]]]:
        _, height, width = image_shape
        config = json.loads(self.autoencoder.config)
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        shape = (int(config["latent_channels"]), height // factor, width // factor)
        width_of_text = json.loads(self.network.config).get("cross_attention_dim")
        return shape, {"encoder_hidden_states": (77, int(width_of_text))} if self.text else {}

    @property
    def _told_spec(self) -> dict[str, Any]:
        return {"content": self.told, "captions": self.captions}


def store_pipeline(
    folder: Path,
    image_shape: Shape,
    captions: Sequence[str],
    prompts: Sequence[str],
    store: ArtifactStore,
    device: torch.device,
    progress: Progress,
) -> LatentBase:
    """Put what is needed of a pipeline on latents into the store.

    Args:
        image_shape: of the images that LoRA is trained on.
        captions: of all images.
        prompts: that images are generated with.

    Raises:
        ModelError: it cannot be read, is not supported, or is of other images.
    """
    network, autoencoder, text = read_parts(folder)
    _check(folder, network, autoencoder, image_shape)
    schedule_beside(folder / "unet", folder)
    scheduler = canonical(read_json(folder / "scheduler" / SCHEDULER_FILE))
    denoiser, encoder = (
        store_base(store, read_json(folder / part / "config.json"), module.state_dict())
        for part, module in (("unet", network), ("vae", autoencoder.module))
    )
    if text is None:
        return LatentBase(denoiser, encoder, "", "", (), (), scheduler)
    every = tuple(sorted({*captions, *prompts, ""}))
    embedded = told_captions(text, every, 0, store.scoped("shared"), device, progress)
    assert embedded.embeddings is not None
    table = embedded.embeddings[[embedded.captions[caption] for caption in every]]
    told = weights_hash({"embeddings": table})
    base = LatentBase(denoiser, encoder, embedded.text, told, every, tuple(prompts), scheduler)

    def build(staging: Staging) -> None:
        staging.save_tensors("embeddings", {"embeddings": table})

    store.get_or_create(_TOLD, base._told_spec, build)
    return base


def _check(folder: Path, network: nn.Module, autoencoder: Autoencoder, image_shape: Shape) -> None:
    channels, height, width = image_shape
    config: Any = network.config
    if autoencoder.image_channels != channels:
        raise ModelError(
            f"The base {folder} is of images of {autoencoder.image_channels} channels, and the data set's have {channels}."
        )
    levels = len(config["block_out_channels"]) - 1
    step = autoencoder.factor * 2**levels
    if height % step or width % step:
        raise ModelError(f"The base {folder} takes images whose sides are multiples of {step}, not {height}×{width}.")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds"):
        raise ModelError(f"The base {folder} is told classes, and a LoRA is trained without them.")
