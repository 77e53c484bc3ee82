"""What a pipeline's text encoder makes of captions: once for every one that differs, and kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.computing.progress import Progress
from attribench.diffusion.digests import model_digest
from attribench.diffusion.inputs import LatentInputs
from attribench.store.artifacts import ArtifactStore, Staging
from attribench.store.code import ROOT, source_hash
from attribench.store.files import digest_text

_KIND = "captions"

#: The files that decide embeddings; relative to the package.
_DECISIVE = ("diffusion/texts.py", "diffusion/digests.py", "computing/device.py")

#: Captions that are embedded, and kept, together.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Turns captions into what a denoiser is told: the last hidden states, as diffusers' pipelines and scripts take them.

    Args:
        tokenizer: of transformers.
        module: a ``CLIPTextModel`` in float32 and evaluation mode.
    """

    tokenizer: Any
    module: nn.Module

    @property
    def width(self) -> int:
        """Of an embedding."""
        config: Any = self.module.config
        return int(config.hidden_size)

    @property
    def length(self) -> int:
        """Tokens of every caption: shorter ones are filled up, longer ones are cut."""
        config: Any = self.module.config
        return int(min(self.tokenizer.model_max_length, config.max_position_embeddings))

    @cached_property
    def digest(self) -> str:
        """Identifies the network; what the tokenizer does shows in tokens."""
        return model_digest(self.module)

    def tokens(self, captions: list[str]) -> Tensor:
        """int64 ``(num_captions, 2, length)``: tokens, and whether each is one of the caption's own."""
        found = self.tokenizer(
            captions, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return torch.stack([found.input_ids, found.attention_mask], dim=1)

    def num_cut(self, captions: Iterable[str]) -> int:
        """How many captions are longer than what the denoiser is told of them."""
        return sum(len(ids) > self.length for ids in self.tokenizer(list(captions)).input_ids)

    def embed(self, tokens: Tensor, device: torch.device) -> Tensor:
        """float32 ``(num_captions, length, width)`` on the CPU, of what :meth:`tokens` gives."""
        ids, own = tokens.to(device).unbind(1)
        masked = getattr(self.module.config, "use_attention_mask", False)
        with torch.no_grad(), exact_float32():
            states: Tensor = self.module(ids, attention_mask=own if masked else None)[0]
        return states.float().cpu()


def caption_bytes(encoder: TextEncoder, captions: set[str]) -> int:
    """Bytes of their embeddings, in memory and on disk."""
    return 4 * len(captions) * encoder.length * encoder.width


def told_captions(
    encoder: TextEncoder,
    captions: Iterable[str],
    num_classes: int,
    store: ArtifactStore,
    device: torch.device,
    progress: Progress,
) -> LatentInputs:
    """What a denoiser is told of images with these captions; embeddings that are not in the store are made.

    Args:
        captions: may be there several times.
        num_classes: that the denoiser knows as well.
    """
    distinct = sorted(set(captions))
    code = source_hash(*(ROOT / name for name in _DECISIVE))
    found = []
    with progress.task(f"embedding {len(distinct)} captions", len(distinct), "captions") as task:
        for begin in range(0, len(distinct), _CHUNK):
            part = distinct[begin : begin + _CHUNK]
            tokens = encoder.tokens(part)
            spec = {"code": code, "encoder": encoder.digest, "tokens": digest_text(str(tokens.tolist()))}

            def build(staging: Staging, tokens: Tensor = tokens) -> None:
                encoder.module.to(device)
                pieces = [encoder.embed(piece, device) for piece in torch.split(tokens, 16)]
                staging.save_tensors("embeddings", {"embeddings": torch.cat(pieces)})

            artifact = store.get_or_create(_KIND, spec, build)
            found.append(artifact.load_tensors("embeddings")["embeddings"])
            task.advance(len(part))
    rows = {caption: number for number, caption in enumerate(distinct)}
    return LatentInputs(rows, torch.cat(found), encoder.digest, num_classes)
