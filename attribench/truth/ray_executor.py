"""Jobs on a cluster by Ray: the command gives each to one worker at a time, and again to another if that dies.

Imported only with ``--executor ray``.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from humanize import naturalsize
from ray import exceptions

from attribench.computing.progress import Progress, Task
from attribench.errors import AttribenchError, UsageError
from attribench.settings import RayOptions, Runtime
from attribench.store.artifacts import ArtifactStore, LockBusyError
from attribench.store.files import atomic_write
from attribench.truth.jobs import Job
from attribench.truth.remote import (
    Assignment,
    Begun,
    Busy,
    Failed,
    Message,
    OutOfMemory,
    Progressed,
    carry_out,
    versions,
)
from attribench.truth.resources import Memory
from attribench.truth.waiting import Accounts, Patience, Waiting

#: Jobs that Ray has at a time; it gives them out as nodes become free, or asks for more nodes.
_GIVEN_OUT = 1000
#: How often a job's worker may die before the job is tried alone, and how often then.
_DEATHS, _DEATHS_ALONE = 8, 3
#: Seconds without any job at work after which what the cluster offers is said.
_IDLE = 30.0

# Whatever becomes of a worker or a node, the driver decides what happens to the job: Ray itself tries nothing again.
_carry_out = ray.remote(num_returns="streaming", max_retries=0)(carry_out)


def connect(options: RayOptions) -> None:
    """Become a driver of the cluster, unless this process is one.

    Raises:
        UsageError: there is no cluster at the address.
    """
    if ray.is_initialized():
        return
    if options.address.startswith("ray://"):
        raise UsageError(
            f"--ray.address {options.address}: run the command on a node of the cluster, with --ray.address auto; Ray's client "
            "is not supported."
        )
    _knock(options.address)
    more: dict[str, Any] = {"include_dashboard": False} if options.address == "local" else {}
    try:
        ray.init(options.address, namespace="attribench", log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--ray.address {options.address}: no Ray cluster answers ({said}). Start one (ray start --head), or one of this "
            "machine alone with --ray.address local."
        ) from error


def _knock(address: str) -> None:
    """Refuse an address where nothing listens: Ray would try again for ever."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except OSError as error:
        raise UsageError(f"--ray.address {address}: no Ray cluster answers ({error.strerror or error}).") from error


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
        marker: Path,
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
        self._gpus = _gpus(runtime)
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
        need = job.memory(self._runtime, cuda=self._gpus > 0)
        self._check(job, need)
        # Of several GPUs a worker sees those it was given, and takes the first.
        assignment = Assignment(
            job, replace(self._runtime, devices="auto"), str(self._store.root.absolute()),
            f"{self._token} {number}", str(self._marker.absolute()),
        )  # fmt: skip
        resources = {"num_cpus": self._runtime.ray.cpus_per_job, "num_gpus": self._gpus, "memory": need.host}
        self._given[_carry_out.options(**resources, name=job.name).remote(assignment)] = number

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
            self._patience.busy(LockBusyError(message.text))
            self._waiting.put_off(number)
        elif isinstance(message, OutOfMemory):
            self._memory(source, message.text)
        elif isinstance(message, Failed):
            raise AttribenchError(message.text)
        else:
            self._give_up(source)
            self._finish(number, job)

    def _finish(self, number: int, job: Job) -> None:
        self._patience.progressed()
        self._waiting.done(number)
        self._accounts.finish(number, job)

    def _give_up(self, source: Any) -> int:
        """Listen no more."""
        return self._given.pop(source)

    def _death(self, source: Any, error: Exception) -> None:
        number = self._give_up(source)
        job, alone = self._jobs[number], number in self._lonely
        self._deaths[number] += 1
        if self._deaths[number] < _DEATHS:
            where = f" on {self._begun[number].host}" if number in self._begun else ""
            self._progress.message(f"The worker of the {job.name}{where} died: another one goes on ({_first(error)}).")
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
        job = self._jobs[number]
        need, begun = job.memory(self._runtime, cuda=self._gpus > 0), self._begun.get(number)
        free = ""
        if begun is not None:
            device = f" and {_size(begun.device_memory)} of the GPU" if begun.device_memory else ""
            free = f"; {_size(begun.memory)}{device} were free on {begun.host} as it began"
        return AttribenchError(
            f"The {job.name} cannot be done here: {why}. By the model's size it takes {_need(need)}{free}. Use nodes with more "
            "memory, a smaller --training.batch_size (other models) or --evaluation_batch (the same numbers)."
        )

    def _check(self, job: Job, need: Memory) -> None:
        """Refuse what no node can ever take."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max((int(node.get("memory", 0)) for node in nodes), default=0)
        if nodes and need.host > most:
            raise AttribenchError(
                f"The {job.name} takes {_need(need)} by the model's size; no node of the cluster offers more than "
                f"{_size(most)}. Add a larger node (ray start --memory), or use a smaller --evaluation_batch."
            )

    def _say_if_idle(self) -> None:
        now = time.monotonic()
        if now - self._heard < _IDLE or self._begun.keys() & set(self._given.values()):
            return
        self._heard = now
        offered = ray.cluster_resources()
        needs = f"{self._runtime.ray.cpus_per_job:g} CPUs and {self._gpus:g} GPUs"
        self._progress.message(
            f"Waiting: no node takes a job, which needs {needs}; the cluster has {offered.get('CPU', 0):g} CPUs, "
            f"{offered.get('GPU', 0):g} GPUs and {_size(int(offered.get('memory', 0)))} of memory in all."
        )


def _gpus(runtime: Runtime) -> float:
    """GPUs a job: as asked for, where there are any and they are wanted."""
    if runtime.accelerator not in ("auto", "gpu", "cuda"):
        return 0.0
    found = ray.cluster_resources().get("GPU", 0)
    return float(runtime.ray.gpus_per_job) if found or runtime.accelerator != "auto" else 0.0


def _need(need: Memory) -> str:
    return _size(need.host) + (f" and {_size(need.device)} on a GPU" if need.device else "")


def _size(count: int) -> str:
    return naturalsize(count, binary=True, format="%.2f")


def _first(error: Exception) -> str:
    return f"{type(error).__name__}"
