from __future__ import annotations

import time

import numpy as np
import torch

from attribench.cost import compiling, measure

CPU = torch.device("cpu")


def test_compilation_is_counted_apart() -> None:
    with measure(CPU) as outer:
        with measure(CPU) as inner:
            time.sleep(0.05)
            with compiling():
                time.sleep(0.2)
        time.sleep(0.05)
    for cost in (outer, inner):
        assert cost.compile_seconds >= 0.2
    assert 0.05 <= inner.seconds < 0.2
    assert 0.1 <= outer.seconds < 0.2


def test_memory_of_compilation_is_not_the_methods() -> None:
    megabytes = 2**20
    kept = []
    with measure(CPU) as cost:
        with compiling():
            kept.append(np.ones(200 * megabytes, np.uint8))
            time.sleep(0.1)
        kept.append(np.ones(50 * megabytes, np.uint8))
        time.sleep(0.1)
    assert 40 * megabytes < cost.peak_bytes < 120 * megabytes
    assert len(kept) == 2


def test_nothing_compiled() -> None:
    with measure(CPU) as cost:
        pass
    with compiling():
        pass
    assert cost.compile_seconds == 0
