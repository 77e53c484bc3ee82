"""Models that somebody brings: diffusers' folders and objects, and Lightning checkpoints of our own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attribench.diffusion.adapters import DENOISER, read_adapters
from attribench.diffusion.inputs import PixelInputs
from attribench.diffusion.lora import add_lora, has_lora, lora_snapshots_in
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.networks import LATENT_PARTS, network_folder, read_network, read_network_file, snapshots_in
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.schedulers import DDPM, read_schedule, schedule_beside
from attribench.errors import ModelError


def load_model(
    source: object,
    scheduler: object = None,
    checkpoints: str | Path | None = None,
    lora: str | Path | None = None,
) -> DiffusionModel:
    """The model that a path leads to, or that an object is.

    Args:
        source: a diffusers folder (a pipeline, or a ``UNet2DModel``), a Lightning checkpoint of ours (``.ckpt``), a diffusers
            pipeline, a ``UNet2DModel``, or any module that is called likewise. Objects are copied, not changed.
        scheduler: where noise schedule and prediction type come from, if ``source`` does not bring them: a diffusers
            scheduler, a folder or file with the configuration of one, or ``ddpm`` for the defaults of ``DDPMScheduler``.
        checkpoints: folder of models of the course of the training: folders as for ``source``, ``.ckpt`` or ``.safetensors``;
            of a model with a LoRA, folder of LoRAs.
        lora: file of a LoRA of it, as peft and diffusers write it. Gradients are then of that alone.

    Raises:
        ModelError: it cannot be read, or is of a kind that attribench does not know; the message says what to do.
    """
    if isinstance(source, DiffusionModel):
        model = source
    elif isinstance(source, str | Path):
        model = _from_path(Path(source), scheduler)
    else:
        model = _from_object(source, scheduler)
    if lora is not None:
        model = _adapted(model, Path(lora), copied=model is not source)
    if checkpoints is None:
        return model
    loads = (lora_snapshots_in if has_lora(model.network) else snapshots_in)(Path(checkpoints))
    return replace(model, snapshots=[partial(load, model.network) for load in loads])


def _adapted(model: DiffusionModel, path: Path, copied: bool) -> DiffusionModel:
    """The model with a LoRA."""
    adapters = read_adapters(path)
    if set(adapters) != {DENOISER}:
        raise ModelError(f"{path} holds a LoRA of a text encoder, and {model.name} has none.")
    if has_lora(model.network):
        raise ModelError(f"{model.name} carries a LoRA already: leave out --lora, or give the base alone.")
    network = model.network if copied else copy.deepcopy(model.network)
    note = add_lora(network, adapters[DENOISER], model.name)
    return replace(model, network=network, notes=[*model.notes, note])


def _from_path(path: Path, scheduler: object) -> DiffusionModel:
    if not path.exists():
        raise ModelError(f"There is no model at {path}.")
    if path.is_file():
        network = read_network_file(path)
        return _described(str(path), network, NoiseSchedule() if scheduler is None else read_schedule(scheduler))
    folder = network_folder(path)
    network = read_network(folder)
    return _described(
        str(path), network, schedule_beside(folder, path) if scheduler is None else read_schedule(scheduler)
    )


def _from_object(source: object, scheduler: object) -> DiffusionModel:
    network, own = getattr(source, "unet", source), getattr(source, "scheduler", None)
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"A {type(source).__name__} is no diffusion model: give a path, a diffusers pipeline or a UNet2DModel."
        )
    name = type(source).__name__
    if next(network.parameters(), None) is None:
        raise ModelError(f"A {type(network).__name__} has no parameters, so that there are no gradients to look at.")
    if any(getattr(source, part, None) is not None for part in LATENT_PARTS):
        raise ModelError(f"{name} works on latents; models of pixels can be attributed.")
    if scheduler is None and own is None:
        raise ModelError(
            f"A {name} says nothing of its noise schedule: give its scheduler too, or scheduler={DDPM!r} for the defaults of "
            "DDPMScheduler."
        )
    schedule = read_schedule(own if scheduler is None else scheduler)
    copied: Any = copy.deepcopy(network).float().eval()
    # It saves memory in training, and gradients cannot be taken layer by layer through it.
    if getattr(copied, "is_gradient_checkpointing", False):
        copied.disable_gradient_checkpointing()
    return _described(name, copied, schedule)


def _described(name: str, network: nn.Module, schedule: NoiseSchedule) -> DiffusionModel:
    """What a network's configuration says of its images and classes.

    Raises:
        ModelError: it is a network of another kind than attribench can work with.
    """
    config: Mapping[str, Any] = getattr(network, "config", None) or {}
    channels, out_channels, size = (config.get(key) for key in ("in_channels", "out_channels", "sample_size"))
    if "cross_attention_dim" in config:
        raise ModelError(f"{name} is told a text (a {type(network).__name__}); models of pixels can be attributed.")
    if channels is not None and channels not in (1, 3):
        raise ModelError(f"{name} takes images of {channels} channels; attribench knows grey (1) and RGB (3).")
    if channels != out_channels:
        raise ModelError(
            f"{name} gives {out_channels} channels for {channels}: models that predict their variance too are not supported."
        )
    sides = list(size) if isinstance(size, list | tuple) else [size]
    if len(set(sides)) > 1:
        raise ModelError(f"{name} takes images of {'×'.join(map(str, sides))}; attribench knows square ones alone.")
    kind, classes = config.get("class_embed_type"), config.get("num_class_embeds")
    if kind is not None:
        raise ModelError(
            f"{name} is told its classes by class_embed_type={kind!r}; only numbered classes are supported."
        )
    num_classes = int(classes or 0)
    return DiffusionModel(name, network, schedule, PixelInputs(num_classes), channels, sides[0], num_classes)
