"""What putting LoRA into a network by peft has in common, whether it is begun here or read from a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from attribench.diffusion.parameters import is_lora
from attribench.errors import ModelError


def require_peft() -> Any:
    """The package.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ModelError("LoRA needs peft: pip install attribench[latent].") from error
    return peft


def exact_targets(modules: Iterable[str]) -> str:
    """These modules alone, as the pattern that peft's ``target_modules`` may be: it takes names in a list for ends of names."""
    return "|".join(map(re.escape, modules))


def freeze_but_lora(network: nn.Module) -> None:
    """Leave nothing to be trained but a network's LoRA."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_lora(name))


def plain_name(parameter: str) -> str:
    """Of a parameter in a network that peft changed: without the adapter, and the wrapper of its own."""
    name = parameter.removeprefix("base_model.model.")
    return re.sub(r"(\.lora_[AB])\.[^.]+\.", r"\1.", re.sub(r"(\.lora_magnitude_vector)\..*", r"\1", name))
