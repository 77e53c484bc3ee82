"""What a phase costs: wall-clock seconds and peak memory."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from attribench.computing.others import Others

_INTERVAL = 0.02

#: GPU peaks of the measurements under way, outermost first: an inner one resets the device's only counter.
_gpu_peaks: list[list[int]] = []


@dataclass
class Cost:
    """Filled in when the measured block ends.

    Attributes:
        seconds: wall-clock time; with what an interrupted call had spent on what this one goes on from (:func:`resumed`).
        peak_bytes: the most memory in use above what was in use at the start: the process's own (pages of files it
            maps, libraries or training images, are the system's to drop and do not count), plus the GPU's.
        compile_seconds: time spent in :func:`compiling`, which ``seconds`` leaves out.
        earlier_seconds: what of ``seconds`` an interrupted call spent.
        others_seconds: see :class:`attribench.computing.others.Others`; None after an interruption: not known.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    compile_seconds: float = 0.0
    earlier_seconds: float = 0.0
    others_seconds: float | None = 0.0


def own_bytes(process: psutil.Process) -> int:
    """Memory that ``process`` allocated and has touched.

    Resident memory would include mapped files, which a system may drop at any moment: a method that allocates 50 MiB
    while 50 MiB of an idle library are dropped would seem to need nothing.
    """
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))  # "shared" is Linux's; elsewhere resident memory must do


class _Memory:
    """The process's memory above what was in use at the start."""

    def __init__(self, cost: Cost) -> None:
        self.cost, self._process, self.paused = cost, psutil.Process(), False
        self.start_bytes, self._mapped = own_bytes(self._process), 0

    def note(self) -> None:
        if not self.paused:
            self._mapped = max(self._mapped, getattr(self._process.memory_info(), "shared", 0))
            self._saw(own_bytes(self._process))

    def note_highest(self, resident: int) -> None:
        """At some moment so much was resident: what is mapped of files was at most what it ever was since the start."""
        if not self.paused:
            self.note()
            self._saw(resident - self._mapped)

    def _saw(self, own: int) -> None:
        self.cost.peak_bytes = max(self.cost.peak_bytes, own - self.start_bytes)


#: The measurements under way.
_under_way: list[_Memory] = []


def _note_highest() -> None:
    """Give the system's high-water mark of resident memory to every measurement under way, and begin a new one.

    Between two samples memory can come and go; the mark has it. Only Linux lets a process begin a new mark; elsewhere, and
    where that is forbidden, samples must do.
    """
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        return
    for memory in _under_way:
        memory.note_highest(1024 * int(found[1]))


@contextmanager
def compiling() -> Iterator[None]:
    """Compilation: it happens once a machine, so it is no part of what a method costs, and is counted apart.

    The memory it takes, and what it leaves there, does not count as the method's either.
    """
    process, started = psutil.Process(), time.perf_counter()
    before = own_bytes(process)
    _note_highest()
    for memory in _under_way:
        memory.paused = True
    try:
        yield
    finally:
        seconds, growth = time.perf_counter() - started, own_bytes(process) - before
        _note_highest()  # of nobody: all are paused
        for memory in _under_way:
            memory.cost.compile_seconds += seconds
            memory.start_bytes += growth
            memory.paused = False


def resumed(seconds: float) -> None:
    """Say that what is under way goes on from what an interrupted call came to in this time: it costs that too."""
    for memory in _under_way:
        memory.cost.earlier_seconds += seconds


@contextmanager
def measure(device: torch.device) -> Iterator[Cost]:
    """Measure a block. Blocks may be nested.

    On Linux peaks of any length count. Elsewhere memory is sampled every 20 ms, and shorter ones can be missed.
    """
    cost, stop = Cost(), threading.Event()
    memory = _Memory(cost)

    def watch() -> None:
        while not stop.wait(_INTERVAL):
            memory.note()

    watcher = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        _note_gpu_peak(device)
        torch.cuda.reset_peak_memory_stats(device)
        start_gpu = torch.cuda.memory_allocated(device)
        _gpu_peaks.append([start_gpu])
    _note_highest()
    _under_way.append(memory)
    watcher.start()
    started, others = time.perf_counter(), Others()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - started - cost.compile_seconds + cost.earlier_seconds
        # What others did during an interrupted call is not known.
        cost.others_seconds = None if cost.earlier_seconds else others.seconds
        stop.set()
        watcher.join()
        memory.note()
        _note_highest()
        _under_way.remove(memory)
        if device.type == "cuda":
            _note_gpu_peak(device)
            cost.peak_bytes += _gpu_peaks.pop()[0] - start_gpu


def _note_gpu_peak(device: torch.device) -> None:
    """Keep the counter's reading for every measurement under way."""
    reading = torch.cuda.max_memory_allocated(device)
    for peak in _gpu_peaks:
        peak[0] = max(peak[0], reading)
