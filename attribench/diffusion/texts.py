"""What a pipeline's text encoder makes of captions: once for every one that differs, and kept."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attribench.computing.device import exact_float32
from attribench.computing.progress import Progress
from attribench.diffusion.digests import model_digest
from attribench.diffusion.inputs import LatentInputs
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.code import ROOT, source_hash
from attribench.store.files import canonical, digest_text

_KIND = "captions"

#: The files that decide embeddings; relative to the package.
_DECISIVE = ("diffusion/texts.py", "diffusion/digests.py", "computing/device.py")

#: Captions that are embedded, and kept, together.
_CHUNK = 256

#: Captions that are embedded in one pass.
_PASS = 16

#: Bytes of an artifact beside its embeddings.
_ARTIFACT_BYTES = 4096


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

    @property
    def digest(self) -> str:
        """Identifies the network as it is now; what the tokenizer does shows in tokens."""
        return model_digest(self.module)

    @property
    def tokenizer_digest(self) -> str:
        """Identifies the tokenizer: what it makes of any caption."""
        own = self.tokenizer
        padding = [own.pad_token_id, own.padding_side, own.truncation_side]
        return digest_text(canonical([_rules(own), self.length, padding]))

    def tokens(self, captions: list[str]) -> Tensor:
        """int64 ``(num_captions, 2, length)``: tokens, and whether each is one of the caption's own."""
        found = self.tokenizer(
            captions, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        return torch.stack([found.input_ids, found.attention_mask], dim=1)

    def num_cut(self, captions: Iterable[str]) -> int:
        """How many captions are longer than what the denoiser is told of them."""
        return sum(len(ids) > self.length for ids in self.tokenizer(list(captions), verbose=False).input_ids)

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


def _rules(tokenizer: Any) -> object:
    """How a tokenizer makes tokens of a text, but for how many."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # as it was used last is in it too
        return {
            key: value for key, value in json.loads(backend.to_str()).items() if key not in ("truncation", "padding")
        }
    with tempfile.TemporaryDirectory() as folder:  # older versions have one in Python
        files = [Path(file).read_text("utf-8") for file in tokenizer.save_vocabulary(folder)]
    return [type(tokenizer).__name__, files, tokenizer.get_added_vocab(), str(tokenizer.special_tokens_map)]


@dataclass(frozen=True)
class EmbeddingNeeds:
    """What embedding captions takes, estimated before it is done.

    Attributes:
        captions: that are to be embedded.
        memory: bytes of the table of all, made of its parts; on the CPU, wherever they are embedded.
        disk: bytes that are kept.
        seconds: found out with some of them.
    """

    captions: int
    memory: int
    disk: int
    seconds: float


def embedding_needs(
    encoder: TextEncoder, captions: Iterable[str], store: ArtifactStore, device: torch.device, more: Iterable[str] = ()
) -> EmbeddingNeeds | None:
    """What :func:`told_captions` takes; None where all embeddings are in the store."""
    parts = _parts(encoder, captions, more)
    missing = [part for part in parts if store.find(_KIND, part.spec) is None]
    if not missing:
        return None
    encoder.module.to(device)
    some = missing[0].tokens[:_PASS]
    seconds = min(_timed(encoder, some, device) for _ in range(2)) / len(some)  # the first one finds out how to compute
    count, total = (sum(len(part.captions) for part in of) for of in (missing, parts))
    each = 4 * encoder.length * encoder.width
    memory = 2 * total * each  # in parts, which become one table
    return EmbeddingNeeds(count, memory, count * each + len(missing) * _ARTIFACT_BYTES, seconds * count)


def told_captions(
    encoder: TextEncoder,
    captions: Iterable[str],
    num_classes: int,
    store: ArtifactStore,
    device: torch.device,
    progress: Progress,
    more: Iterable[str] = (),
) -> LatentInputs:
    """What a denoiser is told of images with these captions; embeddings that are not in the store are made.

    Args:
        captions: may be there several times.
        num_classes: that the denoiser knows as well.
        more: others, such as those of queries. They are kept apart, so that when these change, ``captions`` need not be
            embedded again.
    """
    parts = _parts(encoder, captions, more)
    every = [caption for part in parts for caption in part.captions]
    found = []
    with progress.task(f"embedding {len(every)} captions", len(every), "captions") as task:
        for part in parts:

            def build(staging: Staging, tokens: Tensor = part.tokens) -> None:
                encoder.module.to(device)
                pieces = [encoder.embed(piece, device) for piece in torch.split(tokens, _PASS)]
                staging.save_tensors("embeddings", {"embeddings": torch.cat(pieces)})

            artifact = store.get_or_create(_KIND, part.spec, build)
            found.append(artifact.load_tensors("embeddings")["embeddings"])
            task.advance(len(part.captions))
    rows = {caption: number for number, caption in enumerate(every)}
    text = digest_text(f"{parts[0].spec['encoder']}{encoder.tokenizer_digest}")
    return LatentInputs(rows, torch.cat(found), text, num_classes)


@dataclass(frozen=True, eq=False)
class _Part:
    """Captions whose embeddings are kept together."""

    captions: list[str]
    tokens: Tensor
    spec: Spec


def _parts(encoder: TextEncoder, captions: Iterable[str], more: Iterable[str]) -> list[_Part]:
    common = {"code": source_hash(*(ROOT / name for name in _DECISIVE)), "encoder": encoder.digest}
    first = set(captions)
    parts = []
    for distinct in (sorted(first), sorted(set(more) - first)):
        for begin in range(0, len(distinct), _CHUNK):
            part = distinct[begin : begin + _CHUNK]
            tokens = encoder.tokens(part)
            parts.append(_Part(part, tokens, {**common, "tokens": digest_text(str(tokens.tolist()))}))
    return parts


def _timed(encoder: TextEncoder, tokens: Tensor, device: torch.device) -> float:
    started = time.perf_counter()
    encoder.embed(tokens, device)
    return time.perf_counter() - started
