"""Methods on a device without float64, such as Apple's GPUs: torch's ``meta`` device plays it, whose numbers all are 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_problem import Small, problem

from attribench import Access, AttributionMethod
from attribench.computing import precision
from attribench.method import score, start
from attribench.methods.das import DAS
from attribench.methods.datainf import DataInf
from attribench.methods.dtrak import DTRAK
from attribench.methods.ekfac import EKFAC
from attribench.methods.fine_tune import FineTune
from attribench.methods.gradient import Gradient
from attribench.methods.relative_influence import RelativeInfluence
from attribench.methods.unlearning import Unlearning

META = torch.device("meta")


class WithoutFloat64(TorchDispatchMode):
    """On the device, float64 cannot be had; what is fetched from it is 0, or True."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype_layout) and args[0].device == META:
            device = kwargs.get("device")
            if device is not None and device.type == "cpu":
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if function is torch.ops.aten.copy_.default and args[1].device == META != args[0].device:
            return args[0].zero_()
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device == META:
            return args[0].dtype == torch.bool  # True: all are finite; else 0
        if function is torch.ops.aten.equal.default and META in (args[0].device, args[1].device):
            return False
        found = function(*args, **kwargs)
        for value in tree_leaves(found):
            if isinstance(value, Tensor) and value.device == META and value.dtype == torch.float64:
                raise TypeError("this device has no float64")
        return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", frozenset({"meta"}))
    with WithoutFloat64():
        yield META


def test_the_device_has_no_float64(device: torch.device) -> None:
    with pytest.raises(TypeError, match="no float64"):
        torch.ones(2, device=device).double()
    assert torch.equal(torch.ones(2, device=device).cpu(), torch.zeros(2))


def test_float64_is_on_the_cpu_where_the_device_has_none(device: torch.device) -> None:
    assert precision.float64_device(device) == torch.device("cpu")
    assert precision.float64_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    found = precision.to_float64(torch.ones(2, device=device))
    assert (found.device.type, found.dtype) == ("cpu", torch.float64)


def test_apple_s_gpus_have_none() -> None:
    assert precision.float64_device(torch.device("mps")) == torch.device("cpu")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unlearning(num_timesteps=1, loss_timesteps=1, fisher_timesteps=1),
        lambda: FineTune(steps=1, num_timesteps=1),
        lambda: FineTune(steps=1, num_timesteps=1, fresh_noise=True, noise="own"),
        lambda: EKFAC(num_timesteps=1),
        lambda: DataInf(num_timesteps=1),
        lambda: DAS(num_timesteps=1),
        lambda: DTRAK(num_timesteps=1, projection="factored", proj_dim=100),
        lambda: RelativeInfluence(num_timesteps=1),
        lambda: Gradient(num_timesteps=1),
    ],
)
def test_methods_do_without_it(make: Callable[[], AttributionMethod], device: torch.device, tmp_path: Path) -> None:
    context, queries = problem(Small, tmp_path, (2, 4, 4))
    method = make()
    context = replace(context, device=device, access=max(Access.MODEL, method.access))
    assert method.skip_reason(context) is None
    start(method, context)
    assert score(method, queries).shape == (3, 8)
