"""Which parameters gradients are of: those that are not frozen, those of a LoRA alone where there is one, or named ones."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from attribench.errors import ModelError, UsageError

#: The number that tells modules of a kind apart, as in ``attn1`` and ``attn2``.
_NUMBER = re.compile(r"(?<=[^\W\d])\d+(?=\.|$)")


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that gradients are of, by name, in the order of a gradient's entries: all that are not frozen."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def is_lora(name: str) -> bool:
    """Whether a parameter of this name belongs to a LoRA, as peft names them (``….lora_A.default.weight``)."""
    return any(part.startswith("lora_") for part in name.split("."))


def choose(network: nn.Module, layers: str = "") -> nn.Module:
    """The network, with all parameters frozen but those that gradients are to be of.

    These are its LoRA's where it carries one, else all; and of them those that ``layers`` names. What is frozen already never
    counts.

    Args:
        network: stays as it is.
        layers: patterns, separated by commas; none chooses all. ``*`` stands for anything, ``?`` for one character, ``[…]``
            for one of several. A pattern names a parameter, or a module with all that is in it, by its whole name or from any
            dot on, and may leave out the number that a part of a name ends with: ``attn*``, ``down_blocks.0``,
            ``attn1.to_q.weight``.

    Returns:
        The network itself where just these are not frozen; else another of the same tensors, the same one every time.

    Raises:
        ModelError: there is nothing that is not frozen.
        UsageError: a pattern names nothing.
    """
    free = trainable(network)
    adapted = any(is_lora(name) for name, _ in network.named_parameters())
    names = [name for name in free if is_lora(name) or not adapted]
    if not names:
        what = "its LoRA are" if adapted else "a network are"
        raise ModelError(
            f"All parameters of {what} frozen (requires_grad=False), so that there are no gradients to look at: call "
            "requires_grad_() on those that were trained."
        )
    patterns = [pattern.strip() for pattern in layers.split(",") if pattern.strip()]
    for pattern in patterns:
        if not any(named_by(pattern, name) for name in names):
            raise UsageError(
                f"--method.layers {pattern!r} names no parameter. There are, for instance, {_examples(names)}."
            )
    kept = tuple(name for name in names if not patterns or any(named_by(pattern, name) for pattern in patterns))
    return network if len(kept) == len(free) else _sharing(network, kept)


@lru_cache(2**16)
def named_by(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter; see :func:`choose`."""
    for spelled in {name, _NUMBER.sub("", name)}:
        parts = spelled.split(".")
        for begin in range(len(parts)):
            for end in range(begin + 1, len(parts) + 1):
                if fnmatchcase(".".join(parts[begin:end]), pattern):
                    return True
    return False


def parameters_spec(network: nn.Module) -> dict[str, Any]:
    """What identifies the parameters that gradients are of, beside the network: nothing where they are all."""
    names = list(trainable(network))
    if len(names) == len(list(network.named_parameters())):
        return {}
    return {"gradients_of": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def _examples(names: Sequence[str]) -> str:
    """Some modules, from different places of the network."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    step = max(1, len(modules) // 3)
    return ", ".join(modules[::step][:3]) + (f" ({len(modules)} in all)" if len(modules) > 3 else "")


#: Networks that :func:`choose` made, by the names of their parameters that are not frozen.
_made: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], nn.Module]] = WeakKeyDictionary()


@torch.inference_mode(False)  # what is made inside of it could have no gradients ever after
def _sharing(network: nn.Module, kept: tuple[str, ...]) -> nn.Module:
    """A network of the same tensors, of which only some are not frozen."""
    made = _made.setdefault(network, {})
    if kept not in made or not _same_tensors(network, made[kept]):
        chosen = set(kept)
        memo: dict[int, Any] = {
            id(value): nn.Parameter(value.detach(), requires_grad=name in chosen)
            for name, value in network.named_parameters()
        }
        memo |= {id(value): value for value in network.buffers()}
        made[kept] = copy.deepcopy(network, memo)
    return made[kept]


def _same_tensors(network: nn.Module, other: nn.Module) -> bool:
    """Whether the weights have stayed where they were, such as on one device."""
    pairs = zip(network.parameters(), other.parameters(), strict=True)
    return all(a.data_ptr() == b.data_ptr() and a.device == b.device for a, b in pairs)
