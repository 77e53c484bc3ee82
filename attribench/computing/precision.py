"""float64 on devices of all kinds."""

from __future__ import annotations

import torch
from torch import Tensor

#: Apple's GPUs.
_WITHOUT_FLOAT64 = frozenset({"mps"})


def float64_device(device: torch.device) -> torch.device:
    """Where to compute in float64 what lies on ``device``: there, or on the CPU where the device has no float64."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def to_float64(values: Tensor) -> Tensor:
    """Values in float64, on their device or, where that has none, on the CPU."""
    # The device first: a type that it does not have cannot be made there.
    return values.to(float64_device(values.device)).double()
