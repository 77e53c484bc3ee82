"""Which device to compute on, and exact float32 arithmetic where results are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attribench.errors import UsageError


def resolve_device(accelerator: str = "auto", index: int = 0) -> torch.device:
    """The torch device of a Lightning accelerator name; ``auto`` takes CUDA or MPS when there is one.

    Raises:
        UsageError: that accelerator is not available here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator == "auto":
        accelerator = "cuda" if cuda else "mps" if mps else "cpu"
    if accelerator == "gpu":
        accelerator = "mps" if mps and not cuda else "cuda"
    if accelerator not in ("cpu", "cuda", "mps"):
        raise UsageError(f"Unknown --accelerator {accelerator!r}. Known: auto, cpu, gpu, cuda, mps.")
    if (accelerator == "cuda" and not cuda) or (accelerator == "mps" and not mps):
        raise UsageError(f"--accelerator {accelerator}: no such device here. Use auto or cpu.")
    if accelerator == "cuda":
        return torch.device("cuda", index % torch.cuda.device_count())
    return torch.device(accelerator)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch TF32 off inside: its 10-bit mantissa would make losses depend on the batch by far more than 1e-6."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, compute with one thread inside.

    Sums are split among threads, so their number shows in the last bits. One thread everywhere makes a model the same
    whatever the number of workers, and several workers with one thread each are quicker than one with several.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
