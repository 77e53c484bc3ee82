"""Models that somebody brings: diffusers' folders and objects, and Lightning checkpoints of our own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attribench.diffusion.inputs import LatentInputs, PixelInputs
from attribench.diffusion.latents import Autoencoder
from attribench.diffusion.model import DiffusionModel
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.pretrained.adapters import DENOISER, TEXT_ENCODER, read_adapters
from attribench.diffusion.pretrained.lora import check_in_use, has_lora, load_adapter, lora_snapshots_in, told_by_others
from attribench.diffusion.pretrained.networks import network_folder, read_network, read_network_file, snapshots_in
from attribench.diffusion.pretrained.pipelines import SUPPORTED, parts_of, pipeline_folder, read_parts
from attribench.diffusion.pretrained.schedulers import DDPM, read_schedule, schedule_beside
from attribench.diffusion.texts import TextEncoder
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
            pipeline, a ``UNet2DModel``, or any module that is called likewise. Pipelines are those of pixels, and on latents
            in the layout of Stable Diffusion. Objects are copied, not changed.
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
    note = told_by_others(loads)
    notes = [*model.notes, note] if note else model.notes
    return replace(model, snapshots=[partial(load, model.network) for load in loads], notes=notes)


def _adapted(model: DiffusionModel, path: Path, copied: bool) -> DiffusionModel:
    """The model with a LoRA."""
    adapters = read_adapters(path)
    if TEXT_ENCODER in adapters and model.text is None:
        raise ModelError(f"{path} holds a LoRA of a text encoder, and {model.name} has none.")
    if DENOISER not in adapters:
        raise ModelError(f"{path} holds a LoRA of the text encoder alone: there is none of the denoiser to look at.")
    if has_lora(model.network):
        raise ModelError(f"{model.name} carries a LoRA already: leave out --lora, or give the base alone.")
    network = model.network if copied else copy.deepcopy(model.network)
    text = model.text if copied else copy.deepcopy(model.text)
    notes = [*model.notes, load_adapter(network, adapters[DENOISER], model.name)]
    if text is not None and TEXT_ENCODER in adapters:
        told = load_adapter(text.module, adapters[TEXT_ENCODER], f"{model.name}'s text encoder")
        notes.append(
            f"{told.removesuffix('.')}, of the text encoder: captions are told by it, and gradients are not of it."
        )
    return replace(model, network=network, text=text, notes=notes)


def _from_path(path: Path, scheduler: object) -> DiffusionModel:
    if not path.exists():
        raise ModelError(f"There is no model at {path}.")
    if path.is_file():
        network = read_network_file(path)
        return _described(str(path), network, NoiseSchedule() if scheduler is None else read_schedule(scheduler))
    pipeline = pipeline_folder(path)
    if pipeline is not None:
        network, autoencoder, text = read_parts(pipeline)
        schedule = schedule_beside(pipeline / "unet", path) if scheduler is None else read_schedule(scheduler)
        return _described(str(path), network, schedule, autoencoder, text)
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
    check_in_use(network, name)
    if next(network.parameters(), None) is None:
        raise ModelError(f"A {type(network).__name__} has no parameters, so that there are no gradients to look at.")
    encoders = parts_of(source, name)
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
    return _described(name, copied, schedule, *(encoders or ()))


def _described(
    name: str,
    network: nn.Module,
    schedule: NoiseSchedule,
    autoencoder: Autoencoder | None = None,
    text: TextEncoder | None = None,
) -> DiffusionModel:
    """What a network's configuration says of its images, classes and captions.

    Raises:
        ModelError: it is a network of another kind than attribench can work with.
    """
    config: Mapping[str, Any] = getattr(network, "config", None) or {}
    channels, out_channels, size = (config.get(key) for key in ("in_channels", "out_channels", "sample_size"))
    if autoencoder is None and "cross_attention_dim" in config:
        raise ModelError(f"{name} is told a text (a {type(network).__name__}): give the pipeline that it belongs to.")
    if autoencoder is None and channels is not None and channels not in (1, 3):
        raise ModelError(f"{name} takes images of {channels} channels; attribench knows grey (1) and RGB (3).")
    if channels != out_channels:
        raise ModelError(
            f"{name} gives {out_channels} channels for {channels}: models that predict their variance too, and those that "
            "are shown a part of the image, are not supported."
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
    model = DiffusionModel(name, network, schedule, PixelInputs(num_classes), channels, sides[0], num_classes)
    if autoencoder is None:
        return model
    _check_told(name, network, text)
    if autoencoder.image_channels not in (1, 3):
        raise ModelError(
            f"{name}: its autoencoder takes images of {autoencoder.image_channels} channels; attribench knows grey (1) and RGB "
            "(3)."
        )
    if channels != autoencoder.channels:
        raise ModelError(f"{name}: latents have {autoencoder.channels} channels, and the denoiser takes {channels}.")
    return replace(
        model,
        inputs=LatentInputs(num_classes=num_classes),
        channels=autoencoder.image_channels,
        image_size=sides[0] and sides[0] * autoencoder.factor,
        autoencoder=autoencoder,
        text=text,
        kind=f" of latents, {autoencoder.factor} pixels each{', told a text' if text else ''}",
    )


def _check_told(name: str, network: nn.Module, text: TextEncoder | None) -> None:
    """Insist on a denoiser that is told what there is to tell it, and nothing else."""
    config: Mapping[str, Any] = getattr(network, "config", None) or {}
    for key in ("addition_embed_type", "encoder_hid_dim_type", "encoder_hid_dim"):
        if config.get(key) is not None:
            raise ModelError(f"{name}: a denoiser with {key}={config[key]!r} is not supported; {SUPPORTED}.")
    width = config.get("cross_attention_dim")
    if (width is None) != (text is None):
        what = (
            "is told a text, and has no text encoder" if text is None else "has a text encoder that it is not told of"
        )
        raise ModelError(f"{name} {what}; {SUPPORTED}.")
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if text is not None and widths != {text.width}:
        raise ModelError(f"{name}: the denoiser takes texts of width {width}, and the text encoder gives {text.width}.")
