"""Jobs on a cluster by Ray: the command gives each to one worker at a time, and again to another if that dies.

Imported only with ``--executor ray``.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from attribench.computing.progress import Progress, Task
from attribench.errors import AttribenchError
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore, LockBusyError
from attribench.store.files import atomic_write
from attribench.store.parcels import DamagedParcelError
from attribench.truth.cluster.carrier import Carrier, worker_folder
from attribench.truth.cluster.nodes import Offered, connect
from attribench.truth.cluster.remote import (
    Assignment,
    Begun,
    Busy,
    Damaged,
    Done,
    Failed,
    Message,
    Offer,
    OutOfMemory,
    Progressed,
    TooSmall,
    Unfinished,
    carry_out,
    versions,
)
from attribench.truth.cluster.setbacks import Setbacks
from attribench.truth.jobs import Job
from attribench.truth.waiting import Accounts, Patience, Waiting

#: Jobs that Ray has beyond those that its nodes take at once: it gives them out as nodes become free, or asks for more
#: nodes. When it carries what they read, all that lies in the cluster's memory, so they are few.
_SPARE, _SPARE_CARRIED = 100, 2
#: How often a job's worker may die before the job is tried alone, and how often then.
_DEATHS, _DEATHS_ALONE = 8, 3
#: Seconds without any job at work after which what the cluster offers is said.
_IDLE = 30.0


def _work(assignment: Assignment, offered: Sequence[tuple[str, str, list[Any]]]) -> Iterator[Message]:
    """In a worker: do the job, in a folder of this node if the command's is not shared."""
    if assignment.carried:
        assignment = replace(assignment, store=str(worker_folder(assignment.store)))
    node: str = ray.get_runtime_context().get_node_id()
    for message in carry_out(assignment, [Offer(kind, key, partial(ray.get, ref)) for kind, key, (ref,) in offered]):
        yield replace(message, node=node) if isinstance(message, Begun | Failed) else message


# Whatever becomes of a worker or a node, the driver decides what happens to the job: Ray itself tries nothing again.
_carry_out = ray.remote(num_returns="streaming", max_retries=0)(_work)
# A process that has used a GPU keeps some of its memory, and cannot change to another one: it does one job alone.
_carry_out_once = ray.remote(num_returns="streaming", max_retries=0, max_calls=1)(_work)


class RayExecutor:
    """All workers of a Ray cluster that see the work directory."""

    def __init__(self, store: ArtifactStore, runtime: Runtime, progress: Progress) -> None:
        self._store, self._runtime, self._progress = store, runtime, progress

    def run(self, jobs: Sequence[Job], task: Task) -> None:
        """Run all jobs; see :class:`attribench.truth.executors.Executor`.

        Raises:
            AttribenchError: a job failed, or does not fit into any node's memory.
        """
        connect(self._runtime.ray)
        if self._runtime.ray.carry:
            _Run(jobs, self._store, self._runtime, self._progress, Accounts(task), None).to_the_end()
            return
        with self._marker() as marker:
            _Run(jobs, self._store, self._runtime, self._progress, Accounts(task), marker).to_the_end()

    @contextmanager
    def _marker(self) -> Iterator[Path]:
        path = self._store.root / ".drivers" / secrets.token_hex(8)
        atomic_write(path, b"")
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


class _Run:
    """The jobs of one call, and what has become of each."""

    def __init__(
        self,
        jobs: Sequence[Job],
        store: ArtifactStore,
        runtime: Runtime,
        progress: Progress,
        accounts: Accounts,
        marker: Path | None,
    ) -> None:
        self._jobs, self._store, self._runtime = jobs, store, runtime
        self._progress, self._accounts, self._marker = progress, accounts, marker
        self._waiting, self._patience = Waiting(jobs), Patience(runtime.lock_timeout, progress)
        self._given: dict[Any, int] = {}  # what says how a job goes → its number
        self._begun: dict[int, Begun] = {}
        self._alone: deque[int] = deque()  # jobs to be tried while no other runs
        self._lonely: set[int] = set()
        self._setbacks = Setbacks(store)
        self._full = False  # Ray's memory, until something ends
        self._token = secrets.token_hex(8)
        self._carrier = Carrier(store, self._token) if marker is None else None
        self._offered = Offered(runtime)
        self._heard = time.monotonic()

    def to_the_end(self) -> None:
        try:
            while self._waiting or self._given or self._alone:
                self._give_out()
                if not self._given:
                    self._patience.pause()
                    continue
                for source in self._ready():
                    self._listen(source)
                self._say_if_idle()
        except BaseException:
            for source in self._given:
                self._cancel(source)
            raise
        finally:
            if self._carrier is not None:
                self._carrier.release_all()
                self._carrier.sweep()

    def _ready(self) -> list[Any]:
        """All jobs that have something to say, once one has: asking costs more, the more jobs are given out."""
        given = list(self._given)
        ready, _ = ray.wait(given, num_returns=1, timeout=0.5, fetch_local=False)
        if ready:
            ready, _ = ray.wait(given, num_returns=len(given), timeout=0, fetch_local=False)
        return list(ready)

    def _give_out(self) -> None:
        spare = _SPARE if self._carrier is None else _SPARE_CARRIED
        while (
            not self._full
            and len(self._given) < self._offered.slots(self._jobs[0]) + spare
            and not self._lonely & set(self._given.values())
        ):
            number = self._waiting.next()
            if number is None:
                if self._alone and not self._given:
                    number = self._alone.popleft()
                    self._lonely.add(number)
                    self._start(number)
                return
            self._start(number)

    def _start(self, number: int) -> None:
        job = self._jobs[number]
        options = self._offered.options(job, self._setbacks.shunned(number))
        self._begun.pop(number, None)
        carrier, store, marker, state, offers = self._carrier, str(self._store.root.absolute()), "", {}, []
        if carrier is not None:
            try:
                carrier.claim(number, job)
            except LockBusyError as busy:
                self._put_off(number, busy)
                return
            store = self._token  # named after this run; where it lies, each worker knows
        elif self._marker is not None:
            marker = str(self._marker.absolute())
        # Of several GPUs a worker sees those it was given, and takes the first.
        runtime = replace(self._runtime, devices="auto")
        work, device = _carry_out_once if options["num_gpus"] else _carry_out, self._offered.need(job).device
        try:
            if carrier is not None:
                state, offers = dict(carrier.state(job)), carrier.offers(job)
            assignment = Assignment(job, runtime, store, f"{self._token} {number}", marker, state, device)
            self._given[work.options(**options, name=job.name).remote(assignment, offers)] = number
        except (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError) as error:
            self._no_room(number, error)

    def _no_room(self, number: int, error: Exception) -> None:
        """What a job reads cannot go out."""
        if self._carrier is not None:
            self._carrier.release(number)
        if not self._given:
            raise AttribenchError(
                f"What the {self._jobs[number].name} reads does not fit into Ray's object store on this machine, nor onto its "
                f"disk, though no job is at work ({_line(error)}). Start Ray with a larger --object-store-memory, or make room "
                "in its --temp-dir."
            ) from error
        self._full = True
        self._waiting.again(number)

    def _put_off(self, number: int, busy: LockBusyError) -> None:
        self._lonely.discard(number)  # when it is tried next, others may run
        self._patience.busy(busy)
        self._waiting.put_off(number)

    def _listen(self, source: Any) -> None:
        number = self._given[source]
        try:
            message: Message = ray.get(next(source))
        except exceptions.OutOfMemoryError as error:
            self._cancel(source)
            self._memory(source, _line(error))
        except exceptions.RayTaskError as error:  # it did not even begin: its arguments cannot be read there, say
            raise AttribenchError(
                f"The {self._jobs[number].name} could not begin on its node: {_cause(error)}"
            ) from error
        except (exceptions.RayError, StopIteration) as error:  # its worker, or its node, is gone
            self._death(source, error)
        else:
            self._heard = time.monotonic()
            self._hear(source, number, message)

    def _hear(self, source: Any, number: int, message: Message) -> None:
        job = self._jobs[number]
        if isinstance(message, Begun):
            if message.versions != versions():
                raise AttribenchError(
                    f"{message.host} has {message.versions}; this machine has {versions()}. Install the same on all nodes: "
                    "models of different versions are not comparable."
                )
            self._begun[number] = message
            self._offered.saw(message)
        elif isinstance(message, Progressed):
            self._patience.progressed()
            self._accounts.add(number, job, message.units)
        elif isinstance(message, Busy):
            self._give_up(source)
            self._put_off(number, LockBusyError(message.text))
        elif isinstance(message, Unfinished):
            if self._carrier is not None:
                self._carrier.keep(job, message.files)
        elif isinstance(message, Damaged):
            self._damage(source, message.text)
        elif isinstance(message, OutOfMemory):
            self._memory(source, message.text)
        elif isinstance(message, TooSmall):
            self._give_up(source)
            self._progress.message(f"{message.text} Another node is looked for.")
            self._again(number)  # refused if there is none
        elif isinstance(message, Failed):
            self._failure(source, message)
        else:
            self._receive(source, number, message)

    def _receive(self, source: Any, number: int, message: Done) -> None:
        job = self._jobs[number]
        if self._carrier is not None:
            try:
                self._carrier.receive(number, job, message, self._begun.get(number))
            except DamagedParcelError as damage:
                self._damage(source, str(damage))
                return
        self._give_up(source, done=True)
        self._finish(number, job)

    def _damage(self, source: Any, what: str) -> None:
        number = self._give_up(source)
        job = self._jobs[number]
        self._progress.message(f"The {job.name} is done again. {what}")
        if self._carrier is not None:
            self._carrier.damaged(number, job, what)
        self._again(number)

    def _failure(self, source: Any, message: Failed) -> None:
        number = self._given[source]
        job = self._jobs[number]
        first = self._setbacks.failed(number, message.node)
        if not first or not self._offered.others(job, {message.node}):
            raise AttribenchError(message.text)
        self._give_up(source)
        self._progress.message(f"{message.text} Once more, on another node.")
        self._again(number)

    def _again(self, number: int) -> None:
        """Not for the job's memory: others may run beside it."""
        self._patience.progressed()
        self._lonely.discard(number)
        self._waiting.again(number)

    def _finish(self, number: int, job: Job) -> None:
        self._patience.progressed()
        self._waiting.done(number)
        self._accounts.finish(number, job)

    def _give_up(self, source: Any, *, done: bool = False) -> int:
        """Listen no more."""
        number = self._given.pop(source)
        self._full = False
        if self._carrier is not None:
            self._carrier.release(number, done=done)
        return number

    def _death(self, source: Any, error: Exception) -> None:
        self._cancel(source)  # only its word may have been lost
        number = self._give_up(source)
        job, alone = self._jobs[number], number in self._lonely
        deaths = self._setbacks.died(number, job)
        if deaths < _DEATHS:
            where = f" on {self._begun[number].host}" if number in self._begun else ""
            self._progress.message(
                f"The worker of the {job.name}{where} died: another one goes on ({type(error).__name__})."
            )
            self._again(number)
        elif deaths < _DEATHS + _DEATHS_ALONE:
            self._patience.progressed()
            if not alone:
                self._progress.message(
                    f"{deaths} workers of the {job.name} died: it will be tried while no other job runs."
                )
            self._alone.append(number)
        else:
            said = f"{type(error).__name__}: {_line(error)}"
            raise self._refusal(number, f"{deaths} of its workers died, the last ones while no other job ran ({said})")

    def _cancel(self, source: Any) -> None:
        """Whoever may still be at it stops, since another one will be."""
        with suppress(Exception):
            ray.cancel(source, force=True)

    def _memory(self, source: Any, said: str) -> None:
        number = self._give_up(source)
        if number in self._lonely:
            raise self._refusal(number, f"it ran out of memory while no other job ran ({said})")
        self._progress.message(
            f"The {self._jobs[number].name} ran out of memory: it will be tried while no other job runs ({said})."
        )
        self._alone.append(number)

    def _refusal(self, number: int, why: str) -> AttribenchError:
        return self._offered.refusal(self._jobs[number], why, self._begun.get(number))

    def _say_if_idle(self) -> None:
        now = time.monotonic()
        if now - self._heard < _IDLE or self._begun.keys() & set(self._given.values()):
            return
        self._heard = now
        self._progress.message(self._offered.nobody_takes())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _cause(error: Exception) -> str:
    """What a worker's traceback ends with."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)[
        :300
    ]
