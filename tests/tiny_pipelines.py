"""Pipelines in the layout of Stable Diffusion, of a few kilobytes, as diffusers' own tests build them; and LoRAs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

#: Letters, and the tokens that begin, end and fill a text.
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MARKS = ("<|startoftext|>", "<|endoftext|>")

#: Tokens of every caption.
LENGTH = 12


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Of letters alone, from files that are written here."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), *_MARKS]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, local_files_only=True)


def unet(**options: Any) -> UNet2DConditionModel:
    sizes: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (4, 8), "layers_per_block": 1,
        "norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**sizes, **options})


def autoencoder(**options: Any) -> AutoencoderKL:
    sizes: dict[str, Any] = {
        "block_out_channels": (4, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 2, "sample_size": 16,
    }  # fmt: skip
    return AutoencoderKL(**{**sizes, **options})


def pipeline(
    folder: Path, seed: int = 0, scheduler: Any = None, scaling: float = 0.18215, **options: Any
) -> StableDiffusionPipeline:
    """Images of 16×16, latents of 4×8×8.

    Args:
        folder: for the tokenizer's files.
        scaling: the autoencoder's factor; 6 makes latents of variance 1 of what an autoencoder gives that nobody trained.
        options: of the denoiser.
    """
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        bos_token_id=52, eos_token_id=53, pad_token_id=53, hidden_size=16, intermediate_size=16, num_attention_heads=2,
        num_hidden_layers=2, vocab_size=54, max_position_embeddings=LENGTH,
    )  # fmt: skip
    made = StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=scaling),
        text_encoder=CLIPTextModel(config),
        tokenizer=tokenizer(folder / "made-tokenizer"),
        unet=unet(**options),
        scheduler=scheduler
        or PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def saved(folder: Path, **options: Any) -> Path:
    """The folder of a pipeline."""
    pipeline(folder, **options).save_pretrained(folder / "base")
    return folder / "base"


TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


def adapt(network: nn.Module, rank: int = 2, alpha: int = 4, targets: list[str] = TARGETS, seed: int = 1) -> nn.Module:
    """Put a LoRA with random weights into a network of diffusers or transformers, which is changed."""
    network.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    if isinstance(network, UNet2DConditionModel):
        network.add_adapter(config)  # as diffusers' training scripts do
    else:
        inject_adapter_in_model(config, network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return network.eval()


__all__ = ["LENGTH", "TARGETS", "DDPMScheduler", "adapt", "autoencoder", "pipeline", "saved", "tokenizer", "unet"]
