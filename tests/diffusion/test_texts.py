"""Captions as a denoiser is told them: what diffusers' pipeline tells it, once a caption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_pipelines import LENGTH, adapt, pipeline

from attribench.computing.progress import silent_progress
from attribench.diffusion import texts
from attribench.diffusion.texts import TextEncoder, caption_bytes, told_captions
from attribench.store.artifacts import ArtifactStore

CPU = torch.device("cpu")
CAPTIONS = ["a cat", "", "a dog", "a cat", "a very long caption with many letters"]


def test_what_the_pipeline_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_CHUNK", 2)
    made = pipeline(tmp_path)
    encoder = TextEncoder(made.tokenizer, made.text_encoder.eval())
    inputs = told_captions(encoder, CAPTIONS, 0, ArtifactStore(tmp_path), CPU, silent_progress)
    assert inputs.embeddings is not None
    assert sorted(inputs.captions) == sorted(set(CAPTIONS))
    for caption, row in inputs.captions.items():
        expected, _ = made.encode_prompt(caption, CPU, 1, False)
        torch.testing.assert_close(inputs.embeddings[row], expected[0], rtol=1e-5, atol=1e-6)
    assert inputs.embeddings.shape == (4, LENGTH, 16)
    assert caption_bytes(encoder, set(CAPTIONS)) == inputs.embeddings.nbytes
    assert encoder.num_cut(set(CAPTIONS)) == 1


def test_embeddings_are_made_once_and_are_those_of_one_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, calls = ArtifactStore(tmp_path / "store"), list[int]()
    embed = TextEncoder.embed
    monkeypatch.setattr(
        TextEncoder, "embed", lambda self, tokens, device: calls.append(len(tokens)) or embed(self, tokens, device)
    )

    def told(seed: int, lora: bool = False) -> tuple[torch.Tensor, str]:
        made = pipeline(tmp_path, seed)
        if lora:
            adapt(made.text_encoder, targets=["q_proj"])
        encoder = TextEncoder(made.tokenizer, made.text_encoder.eval())
        found = told_captions(encoder, CAPTIONS, 0, store, CPU, silent_progress)
        assert found.embeddings is not None
        return found.embeddings, found.text

    first, name = told(0)
    assert torch.equal(told(0)[0], first)
    assert sum(calls) == 4
    others = [told(1), told(0, lora=True)]
    assert sum(calls) == 12
    assert len({name, *(text for _, text in others)}) == 3
    assert not any(torch.allclose(first, other, rtol=1e-3) for other, _ in others)


def test_masked_tokens_are_masked_where_the_encoder_says_so(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    encoder = TextEncoder(made.tokenizer, made.text_encoder.eval())
    plain = encoder.embed(encoder.tokens(["a cat"]), CPU)
    made.text_encoder.config.use_attention_mask = True
    expected, _ = made.encode_prompt("a cat", CPU, 1, False)
    masked = encoder.embed(encoder.tokens(["a cat"]), CPU)
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
    assert masked.shape == plain.shape
