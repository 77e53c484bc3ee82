"""Captions as a denoiser is told them: what diffusers' pipeline tells it, once a caption."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import LENGTH, adapt, pipeline

from attribench.computing.progress import silent_progress
from attribench.diffusion import texts
from attribench.diffusion.inputs import LatentInputs
from attribench.diffusion.latents import Autoencoder
from attribench.diffusion.texts import TextEncoder, caption_bytes, embedding_needs, told_captions
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


def embedded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many captions were embedded since it was asked last."""
    calls, embed = list[int](), TextEncoder.embed
    monkeypatch.setattr(
        TextEncoder, "embed", lambda self, tokens, device: calls.append(len(tokens)) or embed(self, tokens, device)
    )

    def since() -> int:
        found = sum(calls)
        calls.clear()
        return found

    return since


def test_other_captions_of_queries_leave_those_of_train_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, count, store = pipeline(tmp_path), embedded(monkeypatch), ArtifactStore(tmp_path / "store")
    encoder = TextEncoder(made.tokenizer, made.text_encoder.eval())
    train = [f"{a} {b}" for a in "bcdefg" for b in "bcdef"]

    def told(more: list[str]) -> LatentInputs:
        return told_captions(encoder, train, 0, store, CPU, silent_progress, more)

    first = told(["m", "b b"])
    assert count() == 31
    second = told(["a", "z", "b b"])
    assert count() == 2
    assert sorted(second.captions) == sorted([*train, "a", "z"])
    assert first.spec == second.spec
    for inputs in (first, second):
        assert inputs.embeddings is not None
        for caption in ("b b", "g f"):
            expected, _ = made.encode_prompt(caption, CPU, 1, False)
            torch.testing.assert_close(inputs.embeddings[inputs.captions[caption]], expected[0], rtol=1e-5, atol=1e-6)


def test_what_embedding_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = pipeline(tmp_path), tmp_path / "store"
    encoder, store = TextEncoder(made.tokenizer, made.text_encoder.eval()), ArtifactStore(folder)
    needs = embedding_needs(encoder, CAPTIONS, store, CPU, ["a cat", "a bird"])
    assert needs is not None
    assert needs.captions == 5
    assert needs.seconds > 0
    inputs = told_captions(encoder, CAPTIONS, 0, store, CPU, silent_progress, ["a cat", "a bird"])
    assert inputs.embeddings is not None
    assert needs.memory == 2 * inputs.embeddings.nbytes
    kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    assert 0.5 * kept < needs.disk < 2 * kept + 2 * 4096
    assert embedding_needs(encoder, CAPTIONS, store, CPU, ["a cat", "a bird"]) is None
    one = embedding_needs(encoder, CAPTIONS, store, CPU, ["a fish"])
    assert one is not None
    assert (one.captions, one.memory) == (1, needs.memory)


CHANGES: dict[str, Callable[[Any], object]] = {
    "length": lambda tokenizer: setattr(tokenizer, "model_max_length", 6),
    "side that is cut": lambda tokenizer: setattr(tokenizer, "truncation_side", "left"),
    "side that is filled": lambda tokenizer: setattr(tokenizer, "padding_side", "left"),
    "what it is filled with": lambda tokenizer: setattr(tokenizer, "pad_token", "a"),
    "words": lambda tokenizer: tokenizer.add_tokens(["cat"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tokenizer_is_another_text(change: str, tmp_path: Path) -> None:
    made, store = pipeline(tmp_path), ArtifactStore(tmp_path / "store")
    captions = ["a cat with a very long name", "a"]

    def told(tokenizer: Any) -> tuple[LatentInputs, torch.Tensor]:
        encoder = TextEncoder(tokenizer, made.text_encoder.eval())
        made.text_encoder.resize_token_embeddings(60)
        torch.manual_seed(0)
        torch.nn.init.normal_(made.text_encoder.get_input_embeddings().weight)
        return told_captions(encoder, captions, 0, store, CPU, silent_progress), encoder.tokens(captions)

    first, tokens = told(made.tokenizer)
    made.tokenizer(captions, padding="longest", max_length=3, truncation=True)  # as it was used last does not matter
    again = pipeline(tmp_path / "elsewhere").tokenizer
    assert first.spec == told(made.tokenizer)[0].spec == told(again)[0].spec
    CHANGES[change](again)
    other, changed = told(again)
    assert not torch.equal(tokens, changed)
    assert first.spec != other.spec


def test_tokenizers_of_older_versions(tmp_path: Path) -> None:
    """Those in Python have no ``backend_tokenizer``: their files are looked at."""

    class Older:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._tokenizer, name)

    made = pipeline(tmp_path)
    digests = [TextEncoder(Older(made.tokenizer), made.text_encoder).tokenizer_digest for _ in range(2)]
    assert digests[0] == digests[1]
    made.tokenizer.add_tokens(["cat"])
    assert TextEncoder(Older(made.tokenizer), made.text_encoder).tokenizer_digest != digests[0]


def test_an_encoder_is_what_it_is_now(tmp_path: Path) -> None:
    """Also where it was looked at before a LoRA was put into it, or into a copy of it."""
    made = pipeline(tmp_path)
    encoder = TextEncoder(made.tokenizer, made.text_encoder.eval())
    code = Autoencoder(made.vae.eval())
    first, of_code = encoder.digest, code.digest
    for copied in (copy.deepcopy(encoder), encoder):
        adapt(copied.module, targets=["q_proj"])
        assert copied.digest != first
    with torch.no_grad():
        made.vae.quant_conv.bias.add_(1)
    assert code.digest != of_code


def test_nothing_is_printed_of_long_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = pipeline(tmp_path)
    with warned() as records:
        assert TextEncoder(made.tokenizer, made.text_encoder).num_cut({"a very long caption with many letters"}) == 1
    assert not records
    assert capsys.readouterr() == ("", "")


@contextmanager
def warned() -> Iterator[list[str]]:
    """What transformers says meanwhile."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("transformers"), Kept()
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def test_masked_tokens_are_masked_where_the_encoder_says_so(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    encoder = TextEncoder(made.tokenizer, made.text_encoder.eval())
    plain = encoder.embed(encoder.tokens(["a cat"]), CPU)
    made.text_encoder.config.use_attention_mask = True
    expected, _ = made.encode_prompt("a cat", CPU, 1, False)
    masked = encoder.embed(encoder.tokens(["a cat"]), CPU)
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-6)
    assert masked.shape == plain.shape
