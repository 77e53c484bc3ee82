"""Networks from files: diffusers' folders, and Lightning checkpoints of our own.

Weights are read from safetensors, and from checkpoints by torch's reader of plain tensors: nothing that a file says is run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attribench.data.files import natural_key, some
from attribench.diffusion.pretrained.foreign_files import first_line, quiet, read_json
from attribench.diffusion.training.module import CONFIG_KEY
from attribench.errors import ModelError

#: Files that may run code when they are read.
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle")

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model"

#: A network of pixels, and one that is told a text, by their classes in diffusers.
PIXELS, TOLD = "UNet2DModel", "UNet2DConditionModel"

#: What loads a network of the architecture of another.
Load = Callable[[nn.Module], nn.Module]


def network_folder(path: Path) -> Path:
    """Where configuration and weights lie: the folder itself, or the pipeline's ``unet``."""
    for folder in (path, path / "unet"):
        if (folder / _CONFIG).is_file():
            break
    else:
        found = some(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise ModelError(
            f"{path} is no diffusers folder: neither {_CONFIG} nor unet/{_CONFIG} is in it, but {found}. Name the folder that "
            "save_pretrained wrote."
        )
    return folder


def read_network(folder: Path, kinds: Sequence[str] = (PIXELS,)) -> nn.Module:
    """A network of diffusers in float32 and evaluation mode, from safetensors alone.

    Args:
        kinds: classes that it may be of; the first where its configuration names none.
    """
    import diffusers

    config = read_json(folder / _CONFIG)
    kind = config.get("_class_name", kinds[0])
    if kind == TOLD and TOLD not in kinds:
        raise ModelError(f"{folder} holds a {kind}, which is told a text: give the pipeline that it belongs to.")
    if kind not in kinds:
        raise ModelError(f"{folder} holds a {kind}; attribench knows {' and '.join(kinds)} here.")
    variant = weights_variant(folder, _WEIGHTS, kind)
    try:
        with quiet():
            network, info = getattr(diffusers, kind).from_pretrained(
                folder, variant=variant, use_safetensors=True, local_files_only=True,
                low_cpu_mem_usage=False, output_loading_info=True, torch_dtype=torch.float32,
            )  # fmt: skip
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"The model in {folder} cannot be read: {first_line(error)}") from error
    except Exception as error:  # safetensors has errors of its own
        raise ModelError(f"The weights in {folder} are damaged: {first_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"The weights in {folder} are not all there: {some(missing)} of the network {_CONFIG} describes."
        )
    if info["unexpected_keys"]:  # without them it would be another model than the one that was trained
        foreign = sorted(info["unexpected_keys"])
        raise ModelError(
            f"The weights in {folder} are of another network than {_CONFIG} describes: it has no {some(foreign)}."
        )
    result: nn.Module = network.eval()
    return result


def weights_variant(folder: Path, stem: str, kind: str) -> str | None:
    """Which variant of the weights lies in a folder, such as ``fp16``; None for the usual one.

    Args:
        stem: of their files' names.
        kind: the class that reads them.

    Raises:
        ModelError: there are none in safetensors.
    """
    weights = sorted(folder.glob(f"{stem}*.safetensors"))
    if not weights:
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
        if not pickled:
            raise ModelError(f"{folder} holds no weights: {stem}.safetensors is missing.")
        raise ModelError(_pickled(folder / pickled[0], kind))
    variants = {file.name.removeprefix(stem).removesuffix(".safetensors").partition("-0")[0] for file in weights}
    variant = "" if "" in variants else min(variants)
    return variant.removeprefix(".") or None


def read_network_file(path: Path) -> nn.Module:
    if path.suffix in _PICKLED:
        raise ModelError(_pickled(path))
    if path.suffix == ".safetensors":
        raise ModelError(f"{path} holds weights alone: name the folder with their {_CONFIG}.")
    if path.suffix != ".ckpt":
        raise ModelError(
            f"{path} is no model: name a diffusers folder, or a Lightning checkpoint (.ckpt) of attribench."
        )
    from diffusers import UNet2DModel

    state, config = _checkpoint(path)
    if config is None:
        raise ModelError(
            f"{path} does not say how its network is built: save the network with save_pretrained and name that folder."
        )
    try:
        with quiet():
            network = UNet2DModel.from_config(config)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} describes no network: {first_line(error)}") from error
    _load_state(network, state, path)
    result: nn.Module = network.float().eval()
    return result


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The network's weights in a Lightning checkpoint of ours, and how it is built."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = {
            name.removeprefix("network."): value
            for name, value in content["state_dict"].items()
            if name.startswith("network.") and isinstance(value, Tensor)
        }
        config = content.get(CONFIG_KEY)
    except Exception as error:  # a reader of damaged or foreign files raises anything
        raise ModelError(
            f"{path} is no Lightning checkpoint of attribench: {first_line(error)} Checkpoints of other programs: save the "
            "network with save_pretrained and name that folder."
        ) from error
    if not state:
        raise ModelError(f"{path} holds no weights of a DiffusionModule (named network.…).")
    return state, dict(config) if isinstance(config, Mapping) else None  # diffusers takes a text for a name on a hub


def snapshots_in(folder: Path) -> list[Load]:
    """What loads each of the models in a folder, in natural order of their names.

    Where there are folders ``checkpoint-…``, as training scripts leave them, the files beside them are no checkpoints: they
    are the trained model, or an optimizer's.
    """
    if not folder.is_dir():
        raise ModelError(f"There is no folder of checkpoints {folder}.")
    entries = sorted(
        (entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: natural_key(e.name)
    )
    numbered = [entry for entry in entries if entry.is_dir() and entry.name.startswith("checkpoint")]
    found: list[Load] = []
    for entry in numbered or entries:
        if entry.is_dir():
            if any((place / _CONFIG).is_file() for place in (entry, entry / "unet")):
                found.append(partial(_snapshot, entry))
        elif entry.suffix in (".ckpt", ".safetensors"):
            found.append(partial(_snapshot, entry))
        elif entry.suffix in _PICKLED:
            raise ModelError(_pickled(entry))
    if not found:
        raise ModelError(
            f"{folder} holds no checkpoints: diffusers folders, .ckpt or .safetensors files are looked for."
        )
    return found


def _snapshot(path: Path, like: nn.Module) -> nn.Module:
    if path.is_dir():
        state = read_network(network_folder(path)).state_dict()
    elif path.suffix == ".ckpt":
        state, _ = _checkpoint(path)
    else:
        from safetensors.torch import load_file

        try:
            state = load_file(path)
        except Exception as error:
            raise ModelError(f"{path} is no safetensors file: {first_line(error)}") from error
    network = copy.deepcopy(like)
    _load_state(network, state, path)
    return network


def _load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = network.state_dict()
    if set(own) != set(state):
        missing, foreign = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        what = f"{missing[0]} is missing" if missing else f"{foreign[0]} is too much"
        raise ModelError(f"{path} is of another network: {what}.")
    for name, value in own.items():
        if value.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} in place of {tuple(value.shape)}"
            raise ModelError(f"{path} is of another network: {name} is {shapes}.")
    network.load_state_dict(state)


def _pickled(path: Path, kind: str = PIXELS) -> str:
    """What to say of weights that may run code when they are read."""
    library = "transformers" if kind.startswith("CLIP") else "diffusers"
    if path.suffix == ".bin":
        folder = path.parent
        how = (
            f'if you trust it, convert it once: python -c "from {library} import {kind} as U; '
            f"U.from_pretrained('{folder}', use_safetensors=False).save_pretrained('{folder}')\""
        )
    else:
        how = "if you trust it, load the network and save it with save_pretrained, then name that folder."
    return f"{path} is pickled and may run code when it is read, so it is refused; {how}"
