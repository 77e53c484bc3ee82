"""Which parameters gradients are of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attribench.diffusion.parameters import choose, named_by, parameters_spec, trainable
from attribench.errors import ModelError, UsageError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.norm = nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.GroupNorm(1, 2)


def network() -> nn.Module:
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(), Block()])
    model.conv_in = nn.Conv2d(1, 1, 1)
    model.register_buffer("constant", torch.ones(1))
    return model


ATTENTION = [f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn1.weight", "attn1.bias", "attn2.weight")]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("attn*", ATTENTION),
        ("attn.*", ATTENTION),
        ("attn", ATTENTION),
        ("attn1", [name for name in ATTENTION if "attn1" in name]),
        ("blocks.1.attn?.weight", [name for name in ATTENTION if "blocks.1" in name and name.endswith("weight")]),
        ("1", [f"blocks.1.{name}" for name, _ in Block().named_parameters()]),
        (" conv_in.bias , attn2 ", ["blocks.0.attn2.weight", "blocks.1.attn2.weight", "conv_in.bias"]),
        ("attn[13].bias", ["blocks.0.attn1.bias", "blocks.1.attn1.bias"]),
    ],
)
def test_patterns_name_modules_and_parameters(layers: str, expected: list[str]) -> None:
    assert list(trainable(choose(network(), layers))) == expected


@pytest.mark.parametrize("pattern", ["ttn1", "attn1.weigh", "onv_in", "block", "tn*", "conv"])
def test_a_pattern_names_whole_parts(pattern: str) -> None:
    assert not any(named_by(pattern, name) for name in ("conv_in.weight", "bblocks0.attn1.weight"))


def test_a_pattern_that_names_nothing_is_an_error_that_shows_names() -> None:
    with pytest.raises(UsageError, match=r"layers 'mid' names no parameter.*blocks\.0\.attn1, .*\(7 in all\)"):
        choose(network(), "attn1,mid")


def test_the_network_stays_as_it_is_and_tensors_are_shared() -> None:
    model = network()
    chosen = choose(model, "attn1")
    assert chosen is not model
    assert chosen is choose(model, "attn1") is choose(chosen, "attn1")
    assert all(value.requires_grad for value in model.parameters())
    for name, value in chosen.state_dict().items():
        assert value.data_ptr() == model.state_dict()[name].data_ptr()
    assert choose(model, "*") is choose(model) is model


def test_what_is_chosen_in_inference_mode_has_gradients() -> None:
    model = network()
    with torch.inference_mode():
        chosen = choose(model, "conv_in")
    chosen.conv_in(torch.ones(1, 1, 1, 1)).sum().backward()  # type: ignore[operator]
    assert chosen.conv_in.weight.grad is not None  # type: ignore[union-attr]


def test_a_network_that_moved_is_chosen_from_anew() -> None:
    model = network()
    before = choose(model, "attn1")
    model.double()
    after = choose(model, "attn1")
    assert after is not before
    assert next(after.parameters()).dtype == torch.float64


def test_frozen_parameters_never_count() -> None:
    model = network()
    model.blocks.requires_grad_(False)  # type: ignore[union-attr]
    assert list(trainable(choose(model))) == ["conv_in.weight", "conv_in.bias"]
    with pytest.raises(UsageError, match="names no parameter"):
        choose(model, "attn1")
    with pytest.raises(ModelError, match="All parameters of a network are frozen"):
        choose(model.requires_grad_(False))


def test_lora_counts_alone_unless_it_is_frozen() -> None:
    model = network()
    model.blocks[0].lora_A = nn.ModuleDict({"default": nn.Linear(2, 1, bias=False)})  # type: ignore[index,union-attr]
    assert list(trainable(choose(model))) == ["blocks.0.lora_A.default.weight"]
    model.blocks[0].lora_A.requires_grad_(False)  # type: ignore[index,union-attr]
    with pytest.raises(ModelError, match="All parameters of its LoRA are frozen"):
        choose(model)


def test_the_choice_enters_specifications() -> None:
    model = network()
    assert parameters_spec(model) == {}
    found = [parameters_spec(choose(model, layers)) for layers in ("attn1", "attn2", "attn1.*", "blocks,conv_in")]
    assert found[0] == found[2] != found[1]
    assert found[3] == {}
