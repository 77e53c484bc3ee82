"""LoRA as it is trained here: put into a pretrained network, kept and read back without that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from attribench.diffusion.peft_parts import exact_targets, freeze_but_lora, plain_name, require_peft
from attribench.errors import ModelError, UsageError, nearest
from attribench.settings import TrainingSettings


def begin_lora(network: nn.Module, training: TrainingSettings) -> None:
    """Put an untrained LoRA into a network, and freeze all else: as peft begins one, it changes nothing yet.

    A is drawn from torch's global generator, B is 0; what comes out of a layer is W x + α / rank · B A x.

    Args:
        network: is changed.
        training: has rank, α, and the names of the layers.

    Raises:
        UsageError: a name is of no layer.
        ModelError: peft is not installed.
    """
    peft = require_peft()
    found = lora_layers(network, training.lora_modules)
    config = peft.LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.alpha,
        target_modules=exact_targets(found),
        lora_dropout=0.0,
        bias="none",
        init_lora_weights=True,
    )
    peft.inject_adapter_in_model(config, network)
    freeze_but_lora(network)


def lora_layers(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The linear layers and convolutions whose names, or the ends of whose names, match a pattern.

    Raises:
        UsageError: a pattern matches none.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in layers):
            ends = sorted({name.rpartition(".")[2] for name in layers})
            raise UsageError(
                f"--training.lora_modules: no linear layer or convolution of the base is called {pattern!r}."
                f"{nearest(pattern, ends)} Their names end with {', '.join(ends)}."
            )
    return [name for name in layers if any(_matches(name, pattern) for pattern in patterns)]


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """What a training makes of a network: all its state, or of one with a frozen base the LoRA alone, as peft names it."""
    if all(parameter.requires_grad for parameter in network.parameters()):
        return dict(network.state_dict())
    return {plain_name(name): value.detach() for name, value in network.named_parameters() if value.requires_grad}


def fill_lora(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give a network with an untrained LoRA the weights of a trained one.

    Args:
        weights: as :func:`trained_weights` gives them.
        what: messages call them.

    Raises:
        ModelError: they are of another LoRA.
    """
    own = {plain_name(name): value for name, value in network.named_parameters() if value.requires_grad}
    odd = _different(own, weights)
    if odd:
        raise ModelError(f"{what} is the LoRA of another base, or of other settings: {odd}.")
    for name, value in own.items():
        value.data.copy_(weights[name])


def lora_config(network: nn.Module) -> dict[str, Any]:
    """peft's configuration of a network's LoRA, as ``adapter_config.json`` has it."""
    (config,) = network.peft_config.values()  # type: ignore[operator]
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def _different(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    missing: Iterable[str] = sorted(own.keys() - given.keys())
    foreign = sorted(given.keys() - own.keys())
    if missing or foreign:
        return f"{next(iter(missing))} is missing" if missing else f"{foreign[0]} is too much"
    for name, value in own.items():
        if value.shape != given[name].shape:
            return f"{name} has {tuple(given[name].shape)} in place of {tuple(value.shape)}"
    return ""


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
