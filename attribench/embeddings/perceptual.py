"""LPIPS: how far apart two images are to a network that knows photographs (Zhang et al., CVPR 2018), by torchmetrics."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from attribench.computing.device import exact_float32

#: Smaller images are enlarged to it: AlexNet's layers do not fit into them.
SMALLEST_SIDE = 64

_BATCH = 64


def weights_file() -> Path:
    """Where torchvision keeps AlexNet's weights."""
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(AlexNet_Weights.IMAGENET1K_V1.url).path).name


def lpips_unavailable(channels: int) -> str | None:
    """Why LPIPS cannot be measured here, or None. Nothing is downloaded."""
    if channels not in (1, 3):
        return f"LPIPS sees grey or RGB images; these have {channels} channels."
    if not weights_file().is_file():
        return (
            f"AlexNet's weights are not at hand: {weights_file()}, from torchvision.models.alexnet(weights='DEFAULT')."
        )
    return None


def lpips_distance(originals: Tensor, regenerated: Tensor, device: torch.device) -> Tensor:
    """LPIPS with AlexNet; grey images become RGB, small ones are enlarged (bilinear).

    Args:
        originals: uint8 ``(num_queries, C, H, W)``, C 1 or 3.
        regenerated: uint8 ``(num_queries, num_seeds, C, H, W)``.
        device: where the network runs.

    Returns:
        float64 ``(num_queries, num_seeds)``, 0 for equal images.
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex").to(device).eval()
    first = originals[:, None].expand_as(regenerated).flatten(0, 1)
    second = regenerated.flatten(0, 1)
    parts = []
    with torch.inference_mode(), exact_float32():
        for begin in range(0, len(second), _BATCH):
            pair = (_prepared(images[begin : begin + _BATCH]).to(device) for images in (first, second))
            parts.append(network(*pair).flatten().double().cpu())
    return torch.cat(parts).reshape(regenerated.shape[:2])


def _prepared(images: Tensor) -> Tensor:
    """float32 RGB in [-1, 1]."""
    values = images.expand(-1, 3, -1, -1).float() / 127.5 - 1.0
    side = min(values.shape[-2:])
    if side >= SMALLEST_SIDE:
        return values
    return torch.nn.functional.interpolate(
        values, scale_factor=SMALLEST_SIDE / side, mode="bilinear", align_corners=False
    )
