"""What memory a job takes, known from the model's size before anything of it begins."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Of a process that has imported what jobs need, without and with CUDA; and of a CUDA context.
_LIBRARIES, _CUDA_LIBRARIES, _CUDA_CONTEXT = 3 * 2**29, 4 * 2**30, 2**29
#: Convolutions' work space, and what an allocator holds without using it, as a share of the tensors.
_SPARE = 1.25


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak.

    Attributes:
        host: of the process.
        device: on the GPU; 0 on a CPU.
    """

    host: int
    device: int = 0

    @classmethod
    def of(cls, tensors: float, held: float, *, cuda: bool) -> Memory:
        """Of a process.

        Args:
            tensors: bytes of what is computed with.
            held: bytes that stay on the host: images, a copy of the weights.
            cuda: whether it computes on a GPU.
        """
        if cuda:
            return cls(int(_CUDA_LIBRARIES + held), int(_CUDA_CONTEXT + _SPARE * tensors))
        return cls(int(_LIBRARIES + held + _SPARE * tensors))


@dataclass(frozen=True)
class Size:
    """A network's size.

    Attributes:
        parameters: how many numbers it has.
        weights: bytes of them.
        training: bytes of weights, gradients, optimizer and activations at the peak of a training step.
        evaluating: bytes of weights and activations at the peak of a forward pass.
        saved: bytes of a training's checkpoint: the weights that are trained, and the optimizer's two moments of each.
    """

    parameters: int
    weights: int
    training: int
    evaluating: int
    saved: int


@dataclass(frozen=True)
class Blueprint:
    """How a network is built, as a key of a cache.

    Args:
        key: what identifies it.
        build: makes it, with any weights, on torch's default device.
        told: what it is told of an image, by the argument's name, with its shape.
    """

    key: str
    build: Callable[[], nn.Module] = field(compare=False)
    told: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def zeros(self, batch: int) -> dict[str, Tensor]:
        """What it may be told of so many images."""
        return {name: torch.zeros(batch, *shape) for name, shape in self.told}


@cache
def size_of(network_of: Blueprint, image_shape: tuple[int, int, int], train_batch: int, batch: int) -> Size:
    """Count a network's tensors in a training step and a forward pass, in float32, without computing either.

    Args:
        train_batch: images a training step.
        batch: images a forward pass.
    """
    with torch.device("meta"):  # shapes alone: nothing is allocated or computed
        network = network_of.build()
        optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad])
        with _counting() as training:
            for _ in range(2):  # the first makes the optimizer's state
                images, times = torch.empty(train_batch, *image_shape), torch.zeros(train_batch, dtype=torch.long)
                (network(images, times, **network_of.zeros(train_batch)).sample - images).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        with _counting() as evaluating, torch.no_grad():
            times = torch.zeros(batch, dtype=torch.long)
            network(torch.empty(batch, *image_shape), times, **network_of.zeros(batch))
    weights = sum(value.nbytes for value in network.state_dict().values())
    parameters = sum(value.numel() for value in network.parameters())
    saved = 3 * sum(value.nbytes for value in network.parameters() if value.requires_grad)
    return Size(parameters, weights, weights + training.peak, weights + evaluating.peak, saved)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch is not typed here
    """Adds up the bytes of the tensors that exist at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self._now += self._known[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._known.pop(key, 0)


@contextmanager
def _counting() -> Iterator[_Live]:
    live = _Live()
    with live:
        yield live


def image_bytes(count: int, image_shape: tuple[int, int, int]) -> int:
    """Bytes of so many stored images."""
    return count * math.prod(image_shape)
