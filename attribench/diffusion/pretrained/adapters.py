"""LoRA files of peft and diffusers: what weights they hold, of which modules, and how much these count."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribench.diffusion.pretrained.foreign_files import first_line, quiet, read_json
from attribench.errors import ModelError

#: What peft and diffusers call the files.
_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_CONFIG = "adapter_config.json"

#: Where diffusers puts peft's configuration into a file's header.
_METADATA = "lora_adapter_metadata"

#: The denoiser's part of a file, and that of a pipeline's text encoder.
DENOISER, TEXT_ENCODER = "unet", "text_encoder"

#: Parts that files of other pipelines have.
_FOREIGN_PARTS = ("transformer", "text_encoder_2", "text_encoder_3", "prior")

#: The names of weights, after that of the module, and that of an adapter between: ``lora_A.default.weight``.
_WEIGHT = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_magnitude_vector)(\.[^.]+)??(\.weight)?$")


@dataclass(frozen=True, eq=False)
class Adapter:
    """The LoRA of one network.

    Attributes:
        path: of the file, for messages.
        weights: module → ``lora_A``, ``lora_B``, perhaps ``lora_magnitude_vector`` → float32.
        alphas: module → α, where the file says it itself.
        config: peft's configuration, as far as there is one.
    """

    path: Path
    weights: Mapping[str, Mapping[str, Tensor]]
    alphas: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """Of each module."""
        return {module: int(pair["lora_A"].shape[0]) for module, pair in self.weights.items()}


def lora_file(path: Path) -> Path:
    """The file itself, or that in a folder as peft and diffusers write it.

    Raises:
        ModelError: there is none.
    """
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return found[0]
        if any(path.glob("*.bin")):
            raise ModelError(_pickled(sorted(path.glob("*.bin"))[0]))
        what = f"holds {len(found)} files of weights" if found else "holds no LoRA"
        raise ModelError(f"{path} {what}: name the file, such as {_FILES[1]}.")
    if not path.is_file():
        raise ModelError(f"There is no LoRA at {path}.")
    if path.suffix != ".safetensors":
        raise ModelError(
            _pickled(path) if path.suffix in (".bin", ".pt", ".pth") else f"{path} is no safetensors file."
        )
    return path


def read_adapters(path: Path) -> dict[str, Adapter]:
    """What a LoRA file holds, by part of the pipeline: :data:`DENOISER`, :data:`TEXT_ENCODER`.

    Args:
        path: a safetensors file, or a folder with one; peft's ``adapter_config.json`` beside it is read too.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    from safetensors import safe_open

    path = lora_file(path)
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            header = file.metadata() or {}
    except Exception as error:  # safetensors has errors of its own
        raise ModelError(f"{path} is no safetensors file: {first_line(error)}") from error
    if not state:
        raise ModelError(f"{path} holds no weights.")
    if any(name.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")) for name in state):
        state = _from_kohya(path, state)
    config = _config(path, header)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        name = name.removeprefix("base_model.model.")
        first, _, rest = name.partition(".")
        if first in _FOREIGN_PARTS:
            raise ModelError(
                f"{path} is the LoRA of a pipeline that is not supported: it has weights of a {first} ({name})."
            )
        part, own = (first, rest) if first in (DENOISER, TEXT_ENCODER) else (DENOISER, name)
        parts.setdefault(part, {})[own.removeprefix("base_model.model.")] = value
    return {part: _adapter(path, _renamed(own, part), _of_part(config, part)) for part, own in parts.items()}


def has_text_encoder(path: Path) -> bool:
    """Whether a LoRA file has a part for a text encoder, by its names alone; False where it cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            names = [name.removeprefix("base_model.model.") for name in file.keys()]  # noqa: SIM118 - no mapping
    except Exception:  # safetensors has errors of its own; who reads the weights is told
        return False
    return any(name.startswith((f"{TEXT_ENCODER}.", "lora_te_")) for name in names)


def _from_kohya(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the names of kohya's scripts, by those of diffusers."""
    try:
        from diffusers import StableDiffusionPipeline

        with quiet():
            found, alphas = StableDiffusionPipeline.lora_state_dict(dict(state))
    except Exception as error:  # diffusers raises what it likes, also where transformers is missing
        raise ModelError(
            f"{path} has the names of kohya's scripts, and diffusers cannot convert them: {first_line(error)}"
        ) from error
    named = {
        f"{name.removesuffix('.alpha')}.alpha": torch.tensor(float(alpha)) for name, alpha in (alphas or {}).items()
    }
    return {**found, **named}


def _renamed(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """By peft's names, whatever version of diffusers wrote them."""
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    if part == TEXT_ENCODER and not any("lora_A" in name for name in state):
        with suppress(ValueError):  # of other names: they are named further on
            state = convert_state_dict_to_peft(dict(state))
    renamed: dict[str, Tensor] = convert_unet_state_dict_to_peft(dict(state))
    return renamed


def _adapter(path: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Adapter:
    weights: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, value in state.items():
        found = _WEIGHT.match(name)
        if name.endswith(".alpha") and value.numel() == 1:
            module = name.removesuffix(".alpha").removesuffix(".weight")
            alphas[module.removesuffix(".lora_A").removesuffix(".lora")] = float(value)
        elif found is None:
            raise ModelError(f"{path} holds {name}, which is no weight of a LoRA (lora_A, lora_B).")
        else:
            weights.setdefault(found["module"], {})[found["kind"]] = value
    for module, pair in weights.items():
        lacking = {"lora_A", "lora_B"} - set(pair)
        if lacking:
            raise ModelError(f"{path} is not complete: {min(lacking)} of {module} is missing.")
        if pair["lora_A"].ndim not in (2, 4) or pair["lora_B"].ndim != pair["lora_A"].ndim:
            raise ModelError(f"{path}: the LoRA of {module} is none of a linear layer or a 2-d convolution.")
        if pair["lora_A"].shape[0] != pair["lora_B"].shape[1]:
            raise ModelError(f"{path}: lora_A and lora_B of {module} have other ranks.")
    return Adapter(path, weights, alphas, config)


def _config(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """peft's configuration, from the file's header or from beside it."""
    if _METADATA in header:
        try:
            config = json.loads(header[_METADATA])
        except ValueError as error:
            raise ModelError(f"{path}: {_METADATA} is no JSON: {first_line(error)}") from error
        if not isinstance(config, dict):
            raise ModelError(f"{path}: {_METADATA} holds no JSON object.")
    else:
        beside = path.parent / _CONFIG
        config = read_json(beside) if beside.is_file() else {}
    return dict(config)


def _of_part(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What diffusers writes with the part before each key, peft without."""
    own = {key.removeprefix(f"{part}."): value for key, value in config.items() if key.startswith(f"{part}.")}
    return own or {key: value for key, value in config.items() if "." not in key}


def _pickled(path: Path) -> str:
    return (
        f"{path} is pickled and may run code when it is read, so it is refused; if you trust it, load it where it was made, "
        "and save it with safetensors' save_file or diffusers' save_lora_adapter."
    )
