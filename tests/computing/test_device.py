from __future__ import annotations

import pytest
import torch

from attribench.computing.device import exact_float32, resolve_device, single_thread
from attribench.errors import UsageError


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_exact_float32_holds_inside_and_puts_back_what_was_there(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with exact_float32(), exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_single_thread_is_for_the_cpu_and_ends() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_accelerator_that_is_not_here_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="Unknown --accelerator"):
        resolve_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no such device"):
            resolve_device("cuda")
