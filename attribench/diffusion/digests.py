"""What identifies a network in the specification of something made with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping
from functools import cache

import numpy as np
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


#: Where large tensors' sums are kept, and from how many bytes on. Elsewhere they are as quickly taken as checked.
_KEPT_ON, _LARGE = ("cuda",), 2**20

#: Numbers that share a fingerprint.
_RUN = 2**20

#: Of large tensors: their fingerprint, and the sum of what had it.
_sums: MutableMapping[Tensor, tuple[object, bytes]] = WeakIdKeyDictionary()


def _content(value: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes. All of these are looked at every time: to write by ``.data`` leaves no other trace."""
    if value.device.type not in _KEPT_ON or value.nbytes < _LARGE or not value.is_floating_point():
        return _sha256(value)
    state, known = (value.dtype, _fingerprint(value)), _sums.get(value)
    if known is not None and known[0] == state:
        return known[1]
    found = _sha256(value)
    _sums[value] = state, found
    return found


def _sha256(value: Tensor) -> bytes:
    return hashlib.sha256(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).digest()


def _fingerprint(value: Tensor) -> bytes:
    """What tells the contents of one tensor apart, taken where it lies, for this process: 16 bytes a run of its numbers.

    Two sums modulo 2⁶⁴ of the numbers' bits, each times a factor that nobody knows before. Where a number differs, by an odd
    multiple of 2ᵗ with t < 32, that times a factor is any multiple of 2ᵗ: a sum stays the same with a probability of 2⁻³³ at
    most, and both with 2⁻⁶⁶, whatever else differs.
    """
    bits = value.detach().contiguous().view(-1).view(_BITS.get(value.element_size(), torch.int32))
    factors = _factors(value.device)
    sums = [(factors[:, : len(run)] * run.long()).sum(1) for run in torch.split(bits, _RUN)]
    return torch.stack(sums).cpu().numpy().tobytes()


#: Integers of so many bytes; numbers of more count as several.
_BITS = {1: torch.int8, 2: torch.int16}


@cache
def _factors(device: torch.device) -> Tensor:
    """int64 ``(2, _RUN)``, drawn anew in every process."""
    low, high = (int(limit) for limit in (np.iinfo(np.int64).min, np.iinfo(np.int64).max))
    return torch.from_numpy(np.random.default_rng().integers(low, high, (2, _RUN), endpoint=True)).to(device)


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
