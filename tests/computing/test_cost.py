from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attribench.computing.cost import compiling, measure, resumed

CPU = torch.device("cpu")
MEGABYTE = 2**20


def test_compilation_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("attribench.computing.cost.time", SimpleNamespace(perf_counter=lambda: now[0]))
    with measure(CPU) as outer:
        with measure(CPU) as inner:
            now[0] += 5
            with compiling():
                now[0] += 200
        now[0] += 7
    assert (inner.seconds, inner.compile_seconds) == (5, 200)
    assert (outer.seconds, outer.compile_seconds) == (12, 200)


def test_what_an_interrupted_call_spent_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("attribench.computing.cost.time", SimpleNamespace(perf_counter=lambda: now[0]))
    with measure(CPU) as outer:
        with measure(CPU) as inner:
            now[0] += 5
            resumed(40.0)
        with measure(CPU) as later:
            now[0] += 1
    assert (inner.seconds, outer.seconds, later.seconds) == (45, 46, 1)
    resumed(1.0)  # where nothing is measured, it says nothing


MEMORY = """
import mmap, sys, time
import numpy as np
import torch
from attribench.computing.cost import compiling, measure

megabytes = 2**20
mapped = np.memmap(sys.argv[1], np.uint8, "r")
touched = int(mapped[::4096].sum())
kept = []
with measure(torch.device("cpu")) as cost:
    with compiling():
        kept.append(np.ones(200 * megabytes, np.uint8))
        time.sleep(0.1)
    kept.append(np.ones(50 * megabytes, np.uint8))
    mapped._mmap.madvise(mmap.MADV_DONTNEED)  # the file's pages go, as they may at any moment
    time.sleep(0.1)
print(cost.peak_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell mapped files from memory")
def test_only_the_methods_own_memory_counts(tmp_path: Path) -> None:
    """Neither what compilation took, nor pages of a file that the system drops meanwhile. In a process of its own:

    another test's memory, given back in the background, would be taken off.
    """
    file = tmp_path / "train.bin"
    file.write_bytes(bytes(100 * MEGABYTE))
    printed = subprocess.run(
        [sys.executable, "-c", MEMORY, str(file)], check=True, capture_output=True, text=True
    ).stdout
    assert 40 * MEGABYTE < int(printed) < 120 * MEGABYTE


def test_nothing_compiled() -> None:
    with measure(CPU) as cost:
        pass
    with compiling():
        pass
    assert cost.compile_seconds == 0


SHORT = """
import torch
import numpy as np
from attribench.computing.cost import compiling, measure

megabytes = 2**20
with measure(torch.device("cpu")) as outer:
    np.ones(300 * megabytes, np.uint8)  # comes and goes
    with measure(torch.device("cpu")) as inner:
        np.ones(100 * megabytes, np.uint8)
    with measure(torch.device("cpu")) as apart, compiling():
        np.ones(200 * megabytes, np.uint8)
with measure(torch.device("cpu")) as nothing:
    pass
print(outer.peak_bytes, inner.peak_bytes, apart.peak_bytes, nothing.peak_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no high-water mark that a process can reset")
def test_a_peak_between_two_samples_counts() -> None:
    script = SHORT.replace(
        "import torch\n", "import torch\nfrom attribench.computing import cost\ncost._INTERVAL = 60\n", 1
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    outer, inner, apart, nothing = (int(number) / MEGABYTE for number in printed.split())
    assert 290 < outer < 330
    assert 95 < inner < 130
    assert apart < 20
    assert nothing < 20
