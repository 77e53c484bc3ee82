"""LoRA in a network: its weights from a file, beside those of the base, which are frozen."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attribench.data.files import natural_key
from attribench.diffusion.parameters import is_lora
from attribench.diffusion.peft_parts import exact_targets, freeze_but_lora, plain_name, require_peft
from attribench.diffusion.pretrained.adapters import DENOISER, Adapter, has_text_encoder, lora_file, read_adapters
from attribench.diffusion.pretrained.foreign_files import first_line
from attribench.diffusion.pretrained.networks import Load
from attribench.errors import ModelError

#: Of peft's configuration, what changes what a LoRA does and is not known here, each with the value that changes nothing.
_CHANGES = {"bias": "none", "lora_bias": False, "fan_in_fan_out": False, "layer_replication": None, "modules_to_save": None,
            "trainable_token_indices": None, "target_parameters": None, "alora_invocation_tokens": None,
            "use_qalora": False}  # fmt: skip

#: What LoRAs may begin with so that the base stays as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part out of
#: the base's weights: what they learn belongs to the rest.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")


def load_adapter(network: nn.Module, adapter: Adapter, name: str) -> str:
    """Put a LoRA into a network, and freeze all else.

    Args:
        network: is changed.
        adapter: its LoRA, see :func:`attribench.diffusion.pretrained.adapters.read_adapters`.
        name: what messages call the base.

    Returns:
        One line that says its rank and α, and what of these was assumed.

    Raises:
        ModelError: it is the LoRA of another base, or of a kind that is not known; or peft is not installed.
    """
    peft = require_peft()
    adapter = _as_there(network, adapter)
    _check(network, adapter, name)
    _check_kind(adapter)
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


def told_by_others(loads: Sequence[Load]) -> str:
    """What to say of LoRAs of the course of a training that have parts for the text encoder; nothing where none has."""
    if not any(isinstance(load, _Snapshot) and load.has_text_encoder for load in loads):
        return ""
    return "LoRAs of the text encoder among the checkpoints are left out: captions are told by the model's own text encoder."


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

    @property
    def has_text_encoder(self) -> bool:
        """Whether there is a LoRA of the text encoder too."""
        return has_text_encoder(self._path)

    def __call__(self, like: nn.Module) -> nn.Module:
        adapter = read_adapters(self._path).get(DENOISER)
        if adapter is None:
            raise ModelError(f"{self._path} holds no LoRA of the denoiser.")
        _check_kind(adapter)
        _check_scaling(like, adapter)
        # What is not LoRA is shared, so that a checkpoint costs the memory of its LoRA alone.
        memo: dict[int, Any] = {id(value): value for name, value in like.named_parameters() if not is_lora(name)}
        memo |= {id(value): value for value in like.buffers()}
        network = copy.deepcopy(like, memo)
        own = {plain_name(name): value for name, value in network.named_parameters() if is_lora(name)}
        state = {f"{module}.{kind}": value for module, pair in adapter.weights.items() for kind, value in pair.items()}
        state = {
            (key if key.endswith("lora_magnitude_vector") else f"{key}.weight"): value for key, value in state.items()
        }
        _load_weights(own, state, self._path)
        return network


def _check_scaling(like: nn.Module, adapter: Adapter) -> None:
    """Insist that a LoRA counts as much as the network's, as far as its file says how much."""
    config, ranks = adapter.config, adapter.ranks
    alphas, known = _said(adapter)
    modules = dict(like.named_modules())
    prefix = "base_model.model." if any(name.startswith("base_model.model.") for name in modules) else ""
    for module in known:
        layer, rank = modules.get(f"{prefix}{module}"), ranks[module]
        scaling = getattr(layer, "scaling", {})
        if len(scaling) != 1:  # of another LoRA, or several: that is found out by the names of weights
            continue
        own = float(next(iter(scaling.values())))
        given = alphas[module] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not math.isclose(own, given, rel_tol=1e-5):
            raise ModelError(
                f"{adapter.path} is another LoRA: with its alpha of {alphas[module]:g}, B·A of {module} counts {given:g} "
                f"times, and that of the model {own:g} times."
            )


def _load_weights(own: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], path: Path) -> None:
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


def _check_kind(adapter: Adapter) -> None:
    """Insist on a LoRA that does what is known here."""
    if str(adapter.config.get("peft_type", "LORA")) != "LORA":
        raise ModelError(f"{adapter.path} is a {adapter.config['peft_type']}, no LoRA.")
    for key, harmless in _CHANGES.items():
        if adapter.config.get(key, harmless) not in (harmless, None, [], {}):
            raise ModelError(f"{adapter.path}: LoRA with {key}={adapter.config[key]!r} is not supported.")
    beginning = adapter.config.get("init_lora_weights")
    if beginning not in _BEGINNINGS:
        raise ModelError(
            f"{adapter.path} was begun with init_lora_weights={beginning!r}, so that it belongs to other weights than the "
            "base's: save it with peft's save_pretrained(…, path_initial_model_for_weight_conversion=…), which makes a LoRA of "
            "the base of it."
        )


def check_in_use(network: nn.Module, name: str) -> None:
    """Insist that the LoRA of a network in memory, if it carries one, is what it computes with.

    Args:
        name: what messages call the network.

    Raises:
        ModelError: the LoRA is merged into the weights, or switched off: there are no gradients of it.
    """
    layers = [module for module in network.modules() if any(is_lora(f"{part}.") for part, _ in module.named_children())]
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ModelError(
            f"{name}: its LoRA is merged into its weights, so that there are no gradients of it: call unfuse_lora() on the "
            "pipeline, or unmerge_adapter() on a model of peft's."
        )
    if layers and all(getattr(layer, "disable_adapters", False) for layer in layers):
        raise ModelError(
            f"{name}: its LoRA is switched off, so that there are no gradients of it: call enable_adapters() on the network "
            "(of a pipeline, enable_lora()), or enable_adapter_layers() on a model of peft's; or unload it."
        )


def _alphas(adapter: Adapter) -> tuple[dict[str, float], str]:
    """α of each module, and what to say of where it is from."""
    alphas, said = _said(adapter)
    known = "" if len(said) == len(alphas) else ", which nothing says: taken as the rank, as diffusers does"
    return alphas, known


def _said(adapter: Adapter) -> tuple[dict[str, float], set[str]]:
    """α of each module, its rank where nothing says it; and the modules of which something does."""
    from peft.utils.other import get_pattern_key

    config, alphas, said = adapter.config, {}, set()
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    for module, rank in adapter.ranks.items():
        of_pattern = patterns.get(get_pattern_key(patterns, module)) if patterns else None
        found = (adapter.alphas.get(module), of_pattern, config.get("lora_alpha"))
        alphas[module] = float(next((value for value in found if value is not None), rank))
        if any(value is not None for value in found):
            said.add(module)
    return alphas, said


def _range(values: Mapping[str, float]) -> str:
    low, high = min(values.values()), max(values.values())
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _size(value: Tensor) -> str:
    return "×".join(map(str, value.shape))
