"""LoRA in a network: its weights from a file, beside those of the base, which are frozen."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attribench.data.files import natural_key
from attribench.diffusion.adapters import DENOISER, Adapter, lora_file, read_adapters
from attribench.diffusion.foreign_files import first_line
from attribench.diffusion.networks import Load
from attribench.diffusion.parameters import is_lora
from attribench.diffusion.peft_parts import exact_targets, freeze_but_lora, plain_name, require_peft
from attribench.errors import ModelError

#: Of peft's configuration, what changes what a LoRA does and is not known here, each with the value that changes nothing.
_CHANGES = {"bias": "none", "lora_bias": False, "fan_in_fan_out": False, "layer_replication": None, "modules_to_save": None,
            "trainable_token_indices": None, "target_parameters": None, "alora_invocation_tokens": None,
            "use_qalora": False}  # fmt: skip


def add_lora(network: nn.Module, adapter: Adapter, name: str) -> str:
    """Put a LoRA into a network, and freeze all else.

    Args:
        network: is changed.
        adapter: its LoRA, see :func:`attribench.diffusion.adapters.read_adapters`.
        name: what messages call the base.

    Returns:
        One line that says its rank and α, and what of these was assumed.

    Raises:
        ModelError: it is the LoRA of another base, or of a kind that is not known; or peft is not installed.
    """
    peft = require_peft()
    adapter = _as_there(network, adapter)
    _check(network, adapter, name)
    ranks = adapter.ranks
    alphas, known = _alphas(adapter)
    config = adapter.config
    exact = {module: f"^{re.escape(module)}" for module in ranks}
    lora = peft.LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(alphas.values()),
        target_modules=exact_targets(ranks),
        rank_pattern={exact[module]: rank for module, rank in ranks.items()},
        alpha_pattern={exact[module]: alpha for module, alpha in alphas.items()},
        use_rslora=bool(config.get("use_rslora", False)),
        use_dora=any("lora_magnitude_vector" in pair for pair in adapter.weights.values()),
        init_lora_weights=False,  # they come from the file
    )
    state = {
        f"{module}.{kind}" + ("" if kind == "lora_magnitude_vector" else ".weight"): value
        for module, pair in adapter.weights.items()
        for kind, value in pair.items()
    }
    try:
        peft.inject_adapter_in_model(lora, network)
        outcome = peft.set_peft_model_state_dict(network, state)
    except Exception as error:  # peft raises what it likes
        raise ModelError(f"{adapter.path} cannot be put into {name}: {first_line(error)}") from error
    taken = {plain_name(parameter) for parameter, _ in network.named_parameters() if is_lora(parameter)}
    if outcome.unexpected_keys or len(taken) != len(state):
        odd = next(iter(outcome.unexpected_keys), "") or min(taken ^ set(state))
        raise ModelError(f"{adapter.path} does not fit into {name}: {odd} has no place there.")
    freeze_but_lora(network)
    network.eval()
    return f"LoRA {adapter.path}: {len(ranks)} modules, rank {_range(ranks)}, alpha {_range(alphas)}{known}."


def has_lora(network: nn.Module) -> bool:
    """Whether it carries a LoRA of peft's."""
    return any(is_lora(name) for name, _ in network.named_parameters())


def lora_snapshots_in(folder: Path) -> list[Load]:
    """What loads a network with each of the LoRAs in a folder, in natural order of their names.

    Where there are folders ``checkpoint-…``, as training scripts leave them, the files beside them are no checkpoints.

    Raises:
        ModelError: there is none.
    """
    if not folder.is_dir():
        raise ModelError(f"There is no folder of checkpoints {folder}.")
    entries = sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name))
    folders = [entry for entry in entries if entry.is_dir() and any(entry.glob("*.safetensors"))]
    numbered = [entry for entry in folders if entry.name.startswith("checkpoint")]
    files = [entry for entry in entries if entry.suffix == ".safetensors"]
    found = numbered or folders or files
    if not found:
        raise ModelError(
            f"{folder} holds no LoRA of the course of a training: folders or files with .safetensors are needed."
        )
    return [_Snapshot(lora_file(entry)) for entry in found]


class _Snapshot:
    """Loads a network with the LoRA of a file in place of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, like: nn.Module) -> nn.Module:
        adapter = read_adapters(self._path).get(DENOISER)
        if adapter is None:
            raise ModelError(f"{self._path} holds no LoRA of the denoiser.")
        # What is not LoRA is shared, so that a checkpoint costs the memory of its LoRA alone.
        memo: dict[int, Any] = {id(value): value for name, value in like.named_parameters() if not is_lora(name)}
        memo |= {id(value): value for value in like.buffers()}
        network = copy.deepcopy(like, memo)
        own = {plain_name(name): value for name, value in network.named_parameters() if is_lora(name)}
        state = {f"{module}.{kind}": value for module, pair in adapter.weights.items() for kind, value in pair.items()}
        state = {
            (key if key.endswith("lora_magnitude_vector") else f"{key}.weight"): value for key, value in state.items()
        }
        _fill(own, state, self._path)
        return network


def _fill(own: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], path: Path) -> None:
    odd = sorted(set(own) ^ set(state))
    if odd:
        what = "is missing" if odd[0] in own else "is too much"
        raise ModelError(f"{path} is another LoRA: {odd[0]} {what}.")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ModelError(f"{path} is another LoRA: {name} is {_size(state[name])} in place of {_size(value)}.")
        value.data = state[name].to(value)


def _as_there(network: nn.Module, adapter: Adapter) -> Adapter:
    """With the modules' names of this version of transformers, some of which put text encoders into a ``text_model``."""
    modules, prefix = dict(network.named_modules()), "text_model."
    names = {module: module for module in adapter.weights}
    if not any(module in modules for module in names):
        others = {module: module.removeprefix(prefix) if prefix in module else f"{prefix}{module}" for module in names}
        names = others if all(module in modules for module in others.values()) else names
    weights = {names[module]: pair for module, pair in adapter.weights.items()}
    return replace(
        adapter, weights=weights, alphas={names.get(key, key): value for key, value in adapter.alphas.items()}
    )


def _check(network: nn.Module, adapter: Adapter, name: str) -> None:
    """Insist that every module is there, and of the shape."""
    modules = dict(network.named_modules())
    foreign = f"{adapter.path} is the LoRA of another base than {name}"
    for module, pair in adapter.weights.items():
        layer = modules.get(module)
        if layer is None:
            raise ModelError(f"{foreign}: that has no {module}.")
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise ModelError(f"{foreign}: there, {module} is a {type(layer).__name__}, no linear layer or convolution.")
        for kind, own, expected in (
            ("lora_A", pair["lora_A"].shape[1:], layer.weight.shape[1:]),
            ("lora_B", pair["lora_B"].shape[:1], layer.weight.shape[:1]),
        ):
            if own != expected:
                given, there = ("×".join(map(str, size)) for size in (own, expected))
                raise ModelError(f"{foreign}: {kind} of {module} is for {given}, and the layer there has {there}.")
    for key, harmless in _CHANGES.items():
        if adapter.config.get(key, harmless) not in (harmless, None, [], {}):
            raise ModelError(f"{adapter.path}: LoRA with {key}={adapter.config[key]!r} is not supported.")
    if str(adapter.config.get("peft_type", "LORA")) != "LORA":
        raise ModelError(f"{adapter.path} is a {adapter.config['peft_type']}, no LoRA.")


def _alphas(adapter: Adapter) -> tuple[dict[str, float], str]:
    """α of each module, and what to say of where it is from."""
    from peft.utils.other import get_pattern_key

    config, ranks = adapter.config, adapter.ranks
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    usual, assumed, alphas = config.get("lora_alpha"), False, {}
    for module, rank in ranks.items():
        of_pattern = patterns.get(get_pattern_key(patterns, module)) if patterns else None
        found = next((value for value in (adapter.alphas.get(module), of_pattern, usual) if value is not None), None)
        assumed |= found is None
        alphas[module] = float(rank if found is None else found)
    known = ", which nothing says: taken as the rank, as diffusers does" if assumed else ""
    return alphas, known


def _range(values: Mapping[str, float]) -> str:
    low, high = min(values.values()), max(values.values())
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _size(value: Tensor) -> str:
    return "×".join(map(str, value.shape))
