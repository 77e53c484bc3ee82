"""Pipelines on latents in the layout of Stable Diffusion: their parts, from a folder or from memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from attribench.diffusion.latents import Autoencoder
from attribench.diffusion.pretrained.foreign_files import first_line, quiet, read_json
from attribench.diffusion.pretrained.networks import read_network, weights_variant
from attribench.diffusion.texts import TextEncoder
from attribench.errors import ModelError

INDEX = "model_index.json"

#: The parts that make a pipeline one on latents.
_LATENT = ("vae", "vqvae", "movq", "text_encoder", "text_encoder_2", "transformer", "prior")

#: The parts that are used, with the classes that they may be of.
_USED = {
    "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",), "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
}  # fmt: skip

#: Parts that neither training nor gradients have to do with.
_UNUSED = ("scheduler", "safety_checker", "feature_extractor", "image_encoder", "watermark")

SUPPORTED = (
    "supported are models of pixels (UNet2DModel), and pipelines in the layout of Stable Diffusion 1 and 2: "
    "vae (AutoencoderKL), text_encoder (CLIPTextModel), tokenizer, unet (UNet2DConditionModel) and scheduler"
)


def pipeline_folder(path: Path) -> Path | None:
    """The folder itself, if it holds a pipeline on latents; None for one of pixels, and for no pipeline.

    Raises:
        ModelError: it is a part of a pipeline on latents, which needs the others, or one of another layout.
    """
    if (path / INDEX).is_file():
        parts = _listed(path)
        if not any(part in parts for part in _LATENT):
            return None
        _check(parts, str(path))
        return path
    above = path.absolute().parent
    if (above / INDEX).is_file() and any(part in _listed(above) for part in _LATENT):
        raise ModelError(f"{path} is a part of a pipeline that works on latents: name the pipeline's folder, {above}.")
    return None


def read_parts(folder: Path) -> tuple[nn.Module, Autoencoder, TextEncoder | None]:
    """Denoiser, autoencoder and text encoder of a folder that :func:`pipeline_folder` gave, in float32, from safetensors.

    Raises:
        ModelError: a part cannot be read, or is missing.
    """
    for part in ("unet", "vae"):
        if not (folder / part).is_dir():
            raise ModelError(f"{folder} is a pipeline without {part}; {SUPPORTED}.")
    network = read_network(folder / "unet", _USED["unet"])
    autoencoder = Autoencoder(read_network(folder / "vae", _USED["vae"]))
    if "text_encoder" not in _listed(folder):
        return network, autoencoder, None
    return network, autoencoder, _read_text_encoder(folder)


def parts_of(pipeline: object, name: str) -> tuple[Autoencoder, TextEncoder | None] | None:
    """Copies of the autoencoder and text encoder of a pipeline in memory, in float32; None for a pipeline of pixels.

    Raises:
        ModelError: it is of another layout.
    """
    components = getattr(pipeline, "components", None)
    if isinstance(components, Mapping):
        parts = {str(part): type(value).__name__ for part, value in components.items() if value is not None}
    else:
        found = {part: getattr(pipeline, part, None) for part in (*_LATENT, *_USED)}
        parts = {part: type(value).__name__ for part, value in found.items() if value is not None}
    if not any(part in parts for part in _LATENT):
        return None
    _check(parts, name)
    encoders = {part: getattr(pipeline, part) for part in ("vae", "text_encoder") if part in parts}
    modules = {part: copy.deepcopy(value).float().eval().requires_grad_(False) for part, value in encoders.items()}
    tokenizer = getattr(pipeline, "tokenizer", None)
    text = TextEncoder(tokenizer, modules["text_encoder"]) if "text_encoder" in modules else None
    return Autoencoder(modules["vae"]), text


def _listed(folder: Path) -> dict[str, str]:
    """The classes of a pipeline's parts, by the parts' names."""
    return {
        part: str(value[1])
        for part, value in read_json(folder / INDEX).items()
        if isinstance(value, list) and len(value) == 2 and value[1] is not None
    }


def _check(parts: Mapping[str, str], name: str) -> None:
    """Insist on parts that are known."""
    for part, kind in parts.items():
        if part in _UNUSED:
            continue
        if part not in _USED:
            raise ModelError(f"{name} is a pipeline with a {part} ({kind}), which is not supported; {SUPPORTED}.")
        if kind not in _USED[part]:
            raise ModelError(f"{name} has a {kind} as its {part}, which is not supported; {SUPPORTED}.")
    lacking = next((part for part in ("vae", "unet") if part not in parts), None)
    if "text_encoder" in parts and "tokenizer" not in parts:
        lacking = "tokenizer"
    if lacking is not None:
        raise ModelError(f"{name} is a pipeline without {lacking}; {SUPPORTED}.")


def _read_text_encoder(folder: Path) -> TextEncoder:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ModelError("Models that are told a text need transformers: pip install attribench[latent]") from error
    place = folder / "text_encoder"
    if not place.is_dir() or not (folder / "tokenizer").is_dir():
        lacking = "text_encoder" if not place.is_dir() else "tokenizer"
        raise ModelError(f"{folder} is a pipeline without the folder {lacking}.")
    variant = weights_variant(place, "model", CLIPTextModel.__name__)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet():
            module, info = CLIPTextModel.from_pretrained(
                place, variant=variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
                torch_dtype=torch.float32,
            )  # fmt: skip
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:  # transformers and safetensors raise what they like
        raise ModelError(f"The text encoder in {folder} cannot be read: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # Positions are numbers from 0, which older versions kept among the weights.
    lost = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    foreign = sorted(key for key in info["unexpected_keys"] if not key.endswith("position_ids"))
    for keys, what in ((lost, "are not all there"), (foreign, "are of another network")):
        if keys:
            raise ModelError(f"The weights in {place} {what}: {keys[0]}.")
    return TextEncoder(tokenizer, module.float().eval().requires_grad_(False))
