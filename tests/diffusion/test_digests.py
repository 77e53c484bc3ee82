"""What identifies a network, also where sums of large tensors are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attribench.diffusion import digests
from attribench.diffusion.digests import model_digest


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.scale = {"a": 2.0}  # type: ignore[assignment]
    return model


@pytest.fixture(params=["taken every time", "kept"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the sums of large tensors are kept, as they are for those on a GPU; all tensors are large then."""
    if request.param == "kept":
        monkeypatch.setattr(digests, "_KEPT_ON", ("cpu", "cuda"))
        monkeypatch.setattr(digests, "_LARGE", 0)
    return request.param == "kept"


@pytest.mark.usefixtures("kept")
def test_a_change_of_anything_is_seen() -> None:
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


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_written_past_autograd_is_seen(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.data``, ``numpy()`` and some optimizers leave a tensor's place and version as they are."""
    monkeypatch.setattr(digests, "_RUN", 1000)  # the weight has six runs, the last of which is shorter
    digests._factors.cache_clear()
    model = nn.Linear(90, 60).to(dtype)
    weight, found = model.weight, [model_digest(model)]

    def changed(write: Callable[[Tensor], object]) -> bool:
        before = (weight.data_ptr(), weight._version)
        write(weight.data)
        found.append(model_digest(model))
        return (weight.data_ptr(), weight._version) == before

    assert changed(lambda data: data.add_(1))
    assert changed(lambda data: data.copy_(data.flip(0)))  # the same numbers in other places
    assert changed(lambda data: data[0, 0].mul_(-1))
    assert changed(lambda data: data[-1, -1].mul_(2))
    # Sums of the numbers, also of the numbers times their places, would be the same.
    assert changed(lambda data: data[3, :4].add_(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=dtype)))
    assert len(set(found)) == len(found) == 6
    digests._factors.cache_clear()


def test_sums_of_large_tensors_on_a_gpu_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_KEPT_ON", ("cpu",))  # as if it were one
    model, calls = nn.Linear(1024, 512), list[int]()
    sha256 = digests.hashlib.sha256
    monkeypatch.setattr(
        digests.hashlib, "sha256", lambda data=b"": calls.append(len(memoryview(data).cast("B"))) or sha256(data)
    )
    first = model_digest(model)
    assert model_digest(model) == first
    assert sum(size >= 2**20 for size in calls) == 1
    model.weight.data[7, 7] += 1
    assert model_digest(model) != first
    assert sum(size >= 2**20 for size in calls) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1500, 1100)
    first = model_digest(model)
    model.cuda()
    assert model_digest(model) == model_digest(model) == first
    model.weight.data[700, 3] += 1
    other = model_digest(model)
    assert other != first
    assert model_digest(model.cpu()) == other
