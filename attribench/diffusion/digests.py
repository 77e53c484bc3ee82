"""What identifies a network in the specification of something made with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

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
    for name, value in {**dict(model.named_buffers()), **model.state_dict(keep_vars=True)}.items():
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(_content(value))
    return digest.hexdigest()


#: Bytes from which a tensor's sum is kept: a large model's take seconds, and are asked for often.
_LARGE = 2**20

#: Of large tensors: where they lay, how often they had been changed, and their sum.
_sums: MutableMapping[Tensor, tuple[object, bytes]] = WeakIdKeyDictionary()


def _content(value: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes."""
    state = (value.data_ptr(), None if value.is_inference() else value._version)
    known = _sums.get(value)
    if known is not None and known[0] == state:
        return known[1]
    found = hashlib.sha256(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).digest()
    if value.nbytes >= _LARGE and not value.is_inference():
        _sums[value] = state, found
    return found


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
