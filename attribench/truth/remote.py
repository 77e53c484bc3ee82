"""A job far from the command that asked for it: what its worker does, and what it says while it does it.

Knows nothing of what carries the messages.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attribench.errors import AttribenchError
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore, LockBusyError
from attribench.truth.jobs import Job

#: Seconds between two reports of progress.
_INTERVAL = 0.5


@dataclass(frozen=True)
class Begun:
    """The job has begun.

    Attributes:
        host: where.
        pid: in which process.
        versions: of what the numbers depend on there.
        memory: bytes that were free.
        device_memory: likewise on the GPU; 0 without one.
    """

    host: str
    pid: int
    versions: str
    memory: int
    device_memory: int


@dataclass(frozen=True)
class Progressed:
    """So much more of it is done."""

    units: float


@dataclass(frozen=True)
class Done:
    """It is in the store."""


@dataclass(frozen=True)
class Busy:
    """Another process was at it."""

    text: str


@dataclass(frozen=True)
class OutOfMemory:
    """It did not fit into memory."""

    text: str


@dataclass(frozen=True)
class Failed:
    """It failed, and would again."""

    text: str


Message = Begun | Progressed | Done | Busy | OutOfMemory | Failed


@dataclass(frozen=True)
class Assignment:
    """A job and where it is done.

    Attributes:
        store: folder of the artifact store.
        token: of this assignment; the same when the job is given out again, so that nobody waits for who had it before.
        marker: a file that the command wrote into that folder: who does not see it has another folder.
    """

    job: Job
    runtime: Runtime
    store: str
    token: str
    marker: str


def carry_out(assignment: Assignment) -> Iterator[Message]:
    """Do the job beside this thread, and say how it goes; the last message says how it ended."""
    yield begun(assignment.runtime)
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def work() -> None:
        messages.put(_outcome(assignment, lambda units: messages.put(Progressed(units))))

    # Daemon: when nobody listens any more, the process may end.
    threading.Thread(target=work, name=assignment.job.name, daemon=True).start()
    while True:
        message, units, until = messages.get(), 0.0, time.monotonic() + _INTERVAL
        while isinstance(message, Progressed):
            units += message.units
            try:
                message = messages.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
        if units:
            yield Progressed(units)
        if not isinstance(message, Progressed):
            yield message
            return


def _outcome(assignment: Assignment, report: object) -> Message:
    import torch

    job, runtime = assignment.job, assignment.runtime
    try:
        if not Path(assignment.marker).exists():
            return Failed(
                f"The work directory {assignment.store} of the command is not that of {socket.gethostname()}. Pass a --workdir "
                "on a file system that all nodes share."
            )
        store = ArtifactStore(
            Path(assignment.store), lock_timeout=runtime.lock_timeout, dead_after=runtime.dead_after,
            assigned=assignment.token, doer="Ray",
        )  # fmt: skip
        job.run(store, runtime, report)  # type: ignore[arg-type]
    except LockBusyError as error:
        return Busy(str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        return OutOfMemory(" ".join(str(error).split())[:300] or type(error).__name__)
    except AttribenchError as error:
        return Failed(str(error))
    except Exception as error:
        if "not enough memory" in str(error):  # torch's allocator on a CPU
            return OutOfMemory(" ".join(str(error).split())[:300])
        return Failed(f"The {job.name} failed: {type(error).__name__}: {error}")
    return Done()


def begun(runtime: Runtime) -> Begun:
    """What this process is and has."""
    import psutil
    import torch

    from attribench.computing.device import resolve_device

    free = 0
    if resolve_device(runtime.accelerator).type == "cuda":
        free = torch.cuda.mem_get_info()[0]
    return Begun(socket.gethostname(), os.getpid(), versions(), psutil.virtual_memory().available, free)


def versions() -> str:
    """Of what results depend on: machines where they differ do not work together."""
    packages = ("attribench", "torch", "lightning", "diffusers", "numpy")
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])
