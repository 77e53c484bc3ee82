"""A CLIP model of a few thousand parameters, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

TINY = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 4, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1},
}


def write_tiny_clip(folder: Path) -> dict[str, Any]:
    """The architecture and its weights in ``folder``: the options ``model`` and ``checkpoint``."""
    config = folder / "tiny-clip.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    save_file(reference_model().state_dict(), folder / "tiny.safetensors")
    return {"model": str(config), "checkpoint": str(folder / "tiny.safetensors")}


def reference_model() -> Any:
    """The model itself; :func:`write_tiny_clip` comes first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return open_clip.create_model("tiny-clip").eval()
