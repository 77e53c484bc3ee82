"""What identifies a network, also where sums of large tensors are kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attribench.diffusion import digests
from attribench.diffusion.digests import model_digest


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.scale = {"a": 2.0}  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("large", [0, 2**20])
def test_a_change_of_anything_is_seen(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_LARGE", large)
    model = network()
    first = model_digest(model)
    assert model_digest(model) == model_digest(copy.deepcopy(model)) == model_digest(network()) == first
    found = {first, model_digest(network(1))}
    with torch.no_grad():
        model[0].weight.add_(1)  # type: ignore[operator,union-attr]
        found.add(model_digest(model))
        model[1].running_mean.add_(1)  # type: ignore[operator,union-attr]
        found.add(model_digest(model))
    model.load_state_dict(network(2).state_dict())
    found.add(model_digest(model))
    model[0].weight.data = torch.ones(3, 4)  # type: ignore[union-attr]
    found.add(model_digest(model))
    model.scale["a"] = 3.0  # type: ignore[index,operator]
    found.add(model_digest(model))
    assert len(found) == 7
    model.double()
    found.add(model_digest(model))
    assert len(found) == 8


def test_sums_of_large_tensors_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = nn.Linear(1024, 512), list[int]()
    sha256 = digests.hashlib.sha256
    monkeypatch.setattr(
        digests.hashlib, "sha256", lambda data=b"": calls.append(len(memoryview(data).cast("B"))) or sha256(data)
    )
    assert model_digest(model) == model_digest(model)
    assert sum(size >= 2**20 for size in calls) == 1
