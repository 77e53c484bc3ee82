"""What reading and beginning a LoRA share, against what peft itself makes of it."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from attribench.diffusion.peft_parts import exact_targets, freeze_but_lora, plain_name, require_peft
from attribench.errors import ModelError


def network() -> nn.Module:
    inner = nn.ModuleDict({"to_q": nn.Linear(4, 4), "to_out": nn.ModuleList([nn.Linear(4, 4)])})
    return nn.ModuleDict({"a": inner, "b": nn.ModuleDict({"a": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})})


@pytest.mark.parametrize("dora", [False, True])
def test_names_targets_and_what_is_trained_are_peft_s(dora: bool) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    modules = ["a.to_q", "a.to_out.0"]
    config = LoraConfig(r=2, target_modules=exact_targets(modules), use_dora=dora)
    model = get_peft_model(network(), config)  # type: ignore[arg-type]
    for value in model.parameters():
        value.requires_grad_(True)
    freeze_but_lora(model)
    trained = {plain_name(name) for name, value in model.named_parameters() if value.requires_grad}
    saved = {name.removeprefix("base_model.model.") for name in get_peft_model_state_dict(model)}
    assert trained == saved
    assert {name.partition(".lora_")[0] for name in trained} == set(modules)  # and not b.a.to_q, which ends alike
    assert any("magnitude" in name for name in trained) == dora


def test_without_peft_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"LoRA needs peft: pip install attribench\[latent\]"):
        require_peft()
