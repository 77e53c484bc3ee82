"""What identifies a network in the specification of something made with it."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from attribench.store.code import class_hash


def model_digest(model: nn.Module) -> str:
    """SHA-256 of all that a model's outputs depend on.

    That is modules with their plain attributes and the code of those that somebody wrote, configuration, parameters and
    buffers; not what their code calls, nor other objects that they hold.
    """
    digest = hashlib.sha256(repr(model).encode())
    given = getattr(model, "config", {})
    given = given.to_dict() if hasattr(given, "to_dict") else given  # as transformers has it
    config = {key: value for key, value in dict(given).items() if not key.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, module in model.named_modules():
        plain = [(key, value) for key, value in vars(module).items() if key not in _MODULE_STATE and _is_plain(value)]
        written = class_hash(type(module))  # type: ignore[arg-type]
        digest.update(f"{name}:{written}:{sorted(plain)}".encode())
    for name, value in {**dict(model.named_buffers()), **model.state_dict()}.items():
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


#: What every module has, and whether it is in training, which changes from call to call.
_MODULE_STATE = frozenset(vars(nn.Module()))


def _is_plain(value: object) -> bool:
    """Whether it is a number or text, or a sequence or mapping of these, whose text is what it is."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if (
        type(value) is dict
    ):  # such as the factors by which LoRAs count; diffusers' configurations are counted by themselves
        return all(map(_is_plain, (*value.keys(), *value.values())))
    return value is None or isinstance(value, bool | int | float | str)
