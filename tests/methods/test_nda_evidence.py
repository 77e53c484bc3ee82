"""NDA's evidence against a float64 brute force written from the definition, whatever the memory it may take."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attribench.errors import AttribenchError
from attribench.gradients import budget
from attribench.methods.nda.engine.partial import Normaliser
from attribench.methods.nda.engine.tracing import Traced, Tracer
from attribench.methods.nda.evidence import MEMORY_LIMIT, NUM_PAIRS, evidence
from attribench.methods.nda.explanation import require_memory
from attribench.methods.nda.task import PatchTask


def patches(image: Tensor, task: PatchTask, padding: float) -> Tensor:
    """All patches of a padded image: float64 ``(positions, numbers)``."""
    padded = F.pad(image.double(), [(task.patch_size - 1) // 2] * 4, value=padding)
    cut = padded.unfold(1, task.patch_size, 1).unfold(2, task.patch_size, 1).movedim(0, 2).flatten(0, 1)
    return (cut if task.downsample == 1 else F.avg_pool2d(cut, 2) * 2).flatten(1)


def brute_force(task: PatchTask, train: Tensor) -> Tensor:
    """Logits ``(num_train, positions, candidates)`` in units of ln 2, but for the query's part ‖a‖²."""
    query = patches(task.noisy_query, task, 10.0)
    scaled = [patches(math.sqrt(task.alpha_bar) * image.double(), task, 10.0) for image in train]
    distances = torch.stack([(query[:, None] - other[None]).square().sum(-1) for other in scaled])
    constant = patches(task.noisy_query, task, 0.0).square().sum(1, keepdim=True)
    return (constant - distances) / (2 * (1 - task.alpha_bar) * math.log(2))


@pytest.mark.parametrize("memory_limit", [1, 30_000, MEMORY_LIMIT])
@pytest.mark.parametrize(("size", "downsample"), [(3, 1), (6, 1), (6, 2), (13, 1), (22, 2)])
def test_brute_force(size: int, downsample: int, memory_limit: int) -> None:
    generator = torch.Generator().manual_seed(size)
    train = torch.rand(3, 3, 14, 12, generator=generator) * 2 - 1
    noise = torch.randn(3, 14, 12, generator=generator)
    task = PatchTask(0.6 * train[0] + 0.8 * noise, 0.36, size, 6, downsample)
    logits = brute_force(task, train)
    log_total = logits.movedim(0, 1).flatten(1).mul(math.log(2)).logsumexp(1) / math.log(2)
    normaliser = Normaliser(logits.amax((0, 2)).ceil().numpy(), log_total.numpy())  # whole numbers
    for shown, image_logits in zip(evidence(task, train, normaliser, memory_limit), logits, strict=True):
        weights = (image_logits - log_total[:, None]).exp2()
        largest, partners = weights.topk(task.top_k)
        given, sums = shown.given.flatten(), largest.sum(1)
        torch.testing.assert_close(given.double(), sums, rtol=1e-4, atol=1e-7)  # sums of the engine: float32
        received = torch.zeros(len(sums), dtype=torch.float64)
        received.scatter_add_(0, partners.flatten(), (largest * (given / sums)[:, None]).flatten())
        torch.testing.assert_close(shown.received.flatten(), received, rtol=1e-11, atol=1e-14)
        strongest = largest[:, 0].sort(descending=True).values[:NUM_PAIRS]
        torch.testing.assert_close(shown.weights, strongest, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(weights[tuple(shown.pairs.T)], strongest, rtol=1e-11, atol=1e-14)


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that an operation of torch gave."""

    num_bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.num_bytes = max(self.num_bytes, result.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("side", [64, 256])
def test_memory_grows_with_the_square_of_the_side_at_most(side: int) -> None:
    task, limit = PatchTask(torch.zeros(1, side, side), 0.5, 5, 50), 2**20
    unknown = np.zeros(task.num_positions)

    def first_block() -> Traced:
        return next(Tracer(task, Normaliser(unknown, unknown), limit).blocks(torch.zeros(1, side, side).double()))

    first_block()  # compiled now
    tracemalloc.start()
    with LargestTensor() as tensors:
        part = first_block()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.logits.shape == (part.positions.stop, 50)
    assert peak < limit + 8 * 6 * side**2  # all comparisons: 8 · side⁴ bytes
    assert tensors.num_bytes < 8 * 6 * side**2


@pytest.mark.parametrize("memory_limit", [1, MEMORY_LIMIT])
def test_equal_images_have_equal_evidence(memory_limit: int) -> None:
    image = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    task = PatchTask(image[0].flip(1), 0.3, 3, 4)
    log_total = np.full(task.num_positions, 3.0)
    first, second = evidence(task, image.repeat(2, 1, 1, 1), Normaliser(log_total, log_total), memory_limit)
    assert torch.equal(first.given, second.given)
    assert torch.equal(first.received, second.received)


def test_what_cannot_fit_is_refused_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda device: 2**30)
    require_memory([PatchTask(torch.empty(3, 32, 32), 0.5, 21, 100)])
    with pytest.raises(AttribenchError, match=r"Explaining images of 3×2048×2048 .* GiB .*; 1\.00 GiB"):
        require_memory([PatchTask(torch.empty(3, 2048, 2048), 0.5, 7, 100)])
