"""Networks with a LoRA in linear layers and convolutions, and the files that peft and diffusers write of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn


def base(channels: int = 1, seed: int = 0, **options: Any) -> UNet2DModel:
    """A small network of pixels, with attention."""
    torch.manual_seed(seed)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")
    }  # fmt: skip
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4}
    return UNet2DModel(8, channels, channels, **blocks, **sizes, **options).eval()


#: Linear layers and convolutions, with ranks and factors of their own.
CONFIG: dict[str, Any] = {
    "r": 3, "lora_alpha": 2, "target_modules": ["to_q", "to_v", "conv1", "conv_shortcut"], "rank_pattern": {"conv1": 2},
    "alpha_pattern": {"conv1": 7, "to_v": 5},
}  # fmt: skip


def adapted(network: nn.Module | None = None, seed: int = 1, **options: Any) -> nn.Module:
    """The network as peft changes it, with weights of the LoRA that are not zero."""
    network = inject_adapter_in_model(LoraConfig(**{**CONFIG, **options}), network or base())
    return filled(network, seed)


def filled(network: nn.Module, seed: int = 1) -> nn.Module:
    """Random weights for the LoRA: what peft begins with is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_" in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return network.eval()


def save_with_peft(folder: Path, seed: int = 1, **options: Any) -> Path:
    """A folder with ``adapter_model.safetensors`` and ``adapter_config.json``."""
    model = get_peft_model(base(), LoraConfig(**{**CONFIG, **options}))
    filled(model, seed)
    model.save_pretrained(folder)
    return folder / "adapter_model.safetensors"


def save_plain(path: Path, network: nn.Module | None = None) -> Path:
    """The weights alone, by peft's names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(network or adapted())
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path
