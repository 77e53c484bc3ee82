"""Jobs on a cluster by Ray: the command gives each to one worker at a time, and again to another if that dies.

Imported only with ``--executor ray``.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
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
from attribench.truth.jobs import Job
from attribench.truth.ray_carrier import Carrier, worker_folder
from attribench.truth.ray_cluster import Offered, connect
from attribench.truth.remote import (
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
    Unfinished,
    carry_out,
    versions,
)
from attribench.truth.waiting import Accounts, Patience, Waiting

#: Jobs that Ray has at a time; it gives them out as nodes become free, or asks for more nodes.
_GIVEN_OUT = 1000
#: How often a job's worker may die before the job is tried alone, and how often then.
_DEATHS, _DEATHS_ALONE = 8, 3
#: Seconds without any job at work after which what the cluster offers is said.
_IDLE = 30.0


def _work(assignment: Assignment, offered: Sequence[tuple[str, str, list[Any]]]) -> Iterator[Message]:
    """In a worker: do the job, in a folder of this node if the command's is not shared."""
    if assignment.carried:
        assignment = replace(assignment, store=str(worker_folder(assignment.store)))
    yield from carry_out(assignment, [Offer(kind, key, partial(ray.get, ref)) for kind, key, (ref,) in offered])


# Whatever becomes of a worker or a node, the driver decides what happens to the job: Ray itself tries nothing again.
_carry_out = ray.remote(num_returns="streaming", max_retries=0)(_work)


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
        self._deaths: Counter[int] = Counter()
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
                ready, _ = ray.wait(list(self._given), num_returns=1, timeout=0.5, fetch_local=False)
                for source in ready:
                    self._listen(source)
                self._say_if_idle()
        except BaseException:
            for source in self._given:
                with suppress(Exception):
                    ray.cancel(source, force=True)
            raise
        finally:
            if self._carrier is not None:
                self._carrier.release_all()
                self._carrier.sweep()

    def _give_out(self) -> None:
        while len(self._given) < _GIVEN_OUT and not self._lonely & set(self._given.values()):
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
        resources = self._offered.resources(job)
        carrier, store, marker, state, offers = self._carrier, str(self._store.root.absolute()), "", {}, []
        if carrier is not None:
            try:
                carrier.claim(number, job)
            except LockBusyError as busy:
                self._put_off(number, busy)
                return
            # Named after this run; where it lies, each worker knows.
            store, state, offers = self._token, dict(carrier.state(job)), carrier.offers(job)
        elif self._marker is not None:
            marker = str(self._marker.absolute())
        # Of several GPUs a worker sees those it was given, and takes the first.
        runtime = replace(self._runtime, devices="auto")
        assignment = Assignment(job, runtime, store, f"{self._token} {number}", marker, state)
        self._given[_carry_out.options(**resources, name=job.name).remote(assignment, offers)] = number

    def _put_off(self, number: int, busy: LockBusyError) -> None:
        self._patience.busy(busy)
        self._waiting.put_off(number)

    def _listen(self, source: Any) -> None:
        number = self._given[source]
        try:
            message: Message = ray.get(next(source))
        except exceptions.OutOfMemoryError as error:
            self._memory(source, " ".join(str(error).split())[:300])
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
        elif isinstance(message, Progressed):
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
        elif isinstance(message, Failed):
            raise AttribenchError(message.text)
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
        self._waiting.again(number)

    def _finish(self, number: int, job: Job) -> None:
        self._patience.progressed()
        self._waiting.done(number)
        self._accounts.finish(number, job)

    def _give_up(self, source: Any, *, done: bool = False) -> int:
        """Listen no more."""
        number = self._given.pop(source)
        if self._carrier is not None:
            self._carrier.release(number, done=done)
        return number

    def _death(self, source: Any, error: Exception) -> None:
        number = self._give_up(source)
        job, alone = self._jobs[number], number in self._lonely
        self._deaths[number] += 1
        if self._deaths[number] < _DEATHS:
            where = f" on {self._begun[number].host}" if number in self._begun else ""
            self._progress.message(
                f"The worker of the {job.name}{where} died: another one goes on ({type(error).__name__})."
            )
            self._waiting.again(number)
        elif self._deaths[number] < _DEATHS + _DEATHS_ALONE:
            if not alone:
                self._progress.message(
                    f"{self._deaths[number]} workers of the {job.name} died: it will be tried while no other job runs."
                )
            self._alone.append(number)
        else:
            raise self._refusal(
                number, f"{self._deaths[number]} of its workers died, the last ones while no other job ran"
            )

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
