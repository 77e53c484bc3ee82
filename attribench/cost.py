"""What a phase costs: wall-clock seconds and peak memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

_INTERVAL = 0.02

#: GPU peaks of the measurements under way, outermost first: an inner one resets the device's only counter.
_gpu_peaks: list[list[int]] = []


@dataclass
class Cost:
    """Filled in when the measured block ends.

    Attributes:
        seconds: wall-clock time.
        peak_bytes: the most memory in use above what was in use at the start: of the process, plus the GPU's.
    """

    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def measure(device: torch.device) -> Iterator[Cost]:
    """Measure a block; memory is sampled every 20 ms, so shorter peaks can be missed. Blocks may be nested."""
    cost, process, stop = Cost(), psutil.Process(), threading.Event()
    start_bytes = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(_INTERVAL):
            cost.peak_bytes = max(cost.peak_bytes, process.memory_info().rss - start_bytes)

    watcher = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        _note_gpu_peak(device)
        torch.cuda.reset_peak_memory_stats(device)
        start_gpu = torch.cuda.memory_allocated(device)
        _gpu_peaks.append([start_gpu])
    watcher.start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - started
        stop.set()
        watcher.join()
        cost.peak_bytes = max(cost.peak_bytes, process.memory_info().rss - start_bytes, 0)
        if device.type == "cuda":
            _note_gpu_peak(device)
            cost.peak_bytes += _gpu_peaks.pop()[0] - start_gpu


def _note_gpu_peak(device: torch.device) -> None:
    """Keep the counter's reading for every measurement under way."""
    reading = torch.cuda.max_memory_allocated(device)
    for peak in _gpu_peaks:
        peak[0] = max(peak[0], reading)
