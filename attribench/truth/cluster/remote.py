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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from humanize import naturalsize

from attribench.errors import AttribenchError
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore, LockBusyError
from attribench.store.parcels import Bytes, DamagedParcelError, Outbox, Parcel, adopt, pack, restore_unfinished
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
        device_size: bytes of the whole GPU.
        node: what the cluster calls the machine, or this part of it.
    """

    host: str
    pid: int
    versions: str
    memory: int
    device_memory: int
    device_size: int = 0
    node: str = ""


@dataclass(frozen=True)
class Progressed:
    """So much more of it is done."""

    units: float


@dataclass(frozen=True)
class Unfinished:
    """How far it has come: what another worker would go on from.

    Attributes:
        files: of its working folder, by name.
    """

    files: Mapping[str, Bytes]


@dataclass(frozen=True)
class Done:
    """It is in the store.

    Attributes:
        parcels: what was made, where the command does not share that store.
    """

    parcels: tuple[Parcel, ...] = ()


@dataclass(frozen=True)
class Damaged:
    """What it was sent arrived damaged."""

    text: str


@dataclass(frozen=True)
class Busy:
    """Another process was at it."""

    text: str


@dataclass(frozen=True)
class OutOfMemory:
    """It did not fit into memory."""

    text: str


@dataclass(frozen=True)
class TooSmall:
    """The GPU is smaller than what the job takes; it has not begun."""

    text: str


@dataclass(frozen=True)
class Failed:
    """It failed, and would again, unless something is wrong with the machine.

    Attributes:
        node: see :class:`Begun`.
    """

    text: str
    node: str = ""


Message = Begun | Progressed | Unfinished | Done | Damaged | Busy | OutOfMemory | TooSmall | Failed


@dataclass(frozen=True)
class Assignment:
    """A job and where it is done.

    Attributes:
        store: folder of the artifact store.
        token: of this assignment; the same when the job is given out again, so that nobody waits for who had it before.
        marker: a file that the command wrote into that folder: who does not see it has another folder. Empty where it does
            have another one.
        state: unfinished work of an earlier worker, for one that has another folder.
        device_memory: bytes that it takes on a GPU by the model's size.
    """

    job: Job
    runtime: Runtime
    store: str
    token: str
    marker: str
    state: Mapping[str, Bytes] = field(default_factory=dict)
    device_memory: int = 0

    @property
    def carried(self) -> bool:
        """Whether the worker has a store of its own."""
        return not self.marker


@dataclass(frozen=True)
class Offer:
    """An artifact that a job reads, for a worker that does not have it.

    Attributes:
        fetch: gets it.
    """

    kind: str
    key: str
    fetch: Callable[[], Parcel]


def carry_out(assignment: Assignment, offers: Sequence[Offer] = ()) -> Iterator[Message]:
    """Do the job beside this thread, and say how it goes; the last message says how it ended."""
    try:
        here = begun(assignment.runtime)
    except Exception as error:  # no such device, say
        yield Failed(f"The {assignment.job.name} could not begin on {socket.gethostname()}: {error}")
        return
    yield here
    if here.device_size and assignment.device_memory > here.device_size:
        takes, has = (
            naturalsize(size, binary=True, format="%.2f") for size in (assignment.device_memory, here.device_size)
        )
        yield TooSmall(
            f"The {assignment.job.name} takes {takes} on a GPU by the model's size; that of {here.host} has {has}."
        )
        return
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome = _outcome(assignment, offers, lambda units: messages.put(Progressed(units)))
        except (
            BaseException
        ) as error:  # as a library in another language may raise: without a message nobody would know
            outcome = Failed(f"The {assignment.job.name} failed: {type(error).__name__}: {error}")
        messages.put(outcome)

    # Daemon: when nobody listens any more, the process may end.
    threading.Thread(target=work, name=assignment.job.name, daemon=True).start()
    outbox = _outbox(assignment)
    while True:
        if outbox is not None and (files := outbox.news()):
            yield Unfinished(files)
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


def _outbox(assignment: Assignment) -> Outbox | None:
    job = assignment.job
    if not assignment.carried or job.unfinished is None:
        return None
    store = ArtifactStore(Path(assignment.store))
    output = job.output(store)
    if output is None:
        return None
    return Outbox(partial(store.working_folder, *output), job.unfinished, assignment.state)


def _outcome(assignment: Assignment, offers: Sequence[Offer], report: object) -> Message:
    import torch

    job, runtime = assignment.job, assignment.runtime
    try:
        if not assignment.carried and not Path(assignment.marker).exists():
            return Failed(
                f"The work directory {assignment.store} of the command is not that of {socket.gethostname()}. Pass a --workdir "
                "on a file system that all nodes share, or --ray.carry true."
            )
        store = ArtifactStore(
            Path(assignment.store), lock_timeout=runtime.lock_timeout, dead_after=runtime.dead_after,
            assigned=assignment.token, doer="Ray",
        )  # fmt: skip
        for offer in offers:
            if store.find_key(offer.kind, offer.key) is None:
                adopt(store, offer.fetch())
        output = job.output(store)
        if assignment.state and output is not None:
            restore_unfinished(store, *output, assignment.state)
        made = job.run(store, runtime, report)  # type: ignore[arg-type]
        if assignment.carried:
            artifacts = {(artifact.kind, artifact.key): artifact for artifact in (*store.made, made)}
            return Done(tuple(map(pack, artifacts.values())))
    except DamagedParcelError as error:
        return Damaged(str(error))
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

    free = size = 0
    if resolve_device(runtime.accelerator).type == "cuda":
        free, size = torch.cuda.mem_get_info()
    return Begun(socket.gethostname(), os.getpid(), versions(), psutil.virtual_memory().available, free, size)


def versions() -> str:
    """Of what results depend on: machines where they differ do not work together."""
    packages = ("attribench", "torch", "lightning", "diffusers", "numpy")
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([f"Python {platform.python_version()}", *found])
