"""Where jobs run: in this process, or in worker processes beside it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol

from attribench.computing.progress import Progress, Task
from attribench.errors import ArtifactError, AttribenchError, UsageError
from attribench.settings import Runtime
from attribench.store.artifacts import ArtifactStore, LockBusyError
from attribench.truth.jobs import Job
from attribench.truth.waiting import Accounts, Patience, Waiting

# Below this much work (forward passes of one image), starting worker processes takes longer than it saves.
_WORTH_PROCESSES = 400_000


class Executor(Protocol):
    """Runs independent jobs, in any order and anywhere; finished jobs are in the store."""

    def run(self, jobs: Sequence[Job], task: Task) -> None:
        """Run all jobs that are not done; report their cost to ``task`` as it is spent."""


def make_executor(jobs: Sequence[Job], store: ArtifactStore, runtime: Runtime, progress: Progress) -> Executor:
    """In-process for little work or one worker, else worker processes; or the workers of a Ray cluster.

    Raises:
        UsageError: Ray is asked for and not installed, or there is no cluster.
    """
    if runtime.executor == "ray":
        try:
            from attribench.truth.cluster.executor import RayExecutor
        except ModuleNotFoundError as error:
            if error.name != "ray":  # something else is wrong with the installation
                raise
            raise UsageError("--executor ray needs Ray: pip install 'attribench[ray]', on all nodes.") from error
        return RayExecutor(store, runtime, progress)
    workers = min(runtime.workers or default_workers(runtime), len(jobs))
    if workers <= 1 or (not runtime.workers and sum(job.cost for job in jobs) < _WORTH_PROCESSES):
        return InProcessExecutor(store, runtime, progress)
    return ProcessExecutor(store, runtime, progress, workers)


def default_workers(runtime: Runtime) -> int:
    """As many workers a GPU as are asked for, or one a CPU core (each computes with one thread)."""
    import torch

    from attribench.computing.device import resolve_device

    if resolve_device(runtime.accelerator).type == "cuda":
        return torch.cuda.device_count() * runtime.workers_per_gpu
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InProcessExecutor:
    """One job after the other in this process."""

    def __init__(self, store: ArtifactStore, runtime: Runtime, progress: Progress) -> None:
        self._store, self._runtime, self._progress = store, runtime, progress

    def run(self, jobs: Sequence[Job], task: Task) -> None:
        accounts, patience = Accounts(task), Patience(self._runtime.lock_timeout, self._progress)
        waiting = Waiting(jobs)
        while waiting:
            index = waiting.next()
            if index is None:
                patience.pause()
                continue
            job = jobs[index]

            def report(units: float, index: int = index, job: Job = job) -> None:
                patience.progressed()
                accounts.add(index, job, units)

            try:
                job.run(self._store, self._runtime, report)
            except LockBusyError as busy:
                patience.busy(busy)
                waiting.put_off(index)
                continue
            patience.progressed()
            waiting.done(index)
            accounts.finish(index, job)


class ProcessExecutor:
    """``workers`` processes, each with one job at a time; on a machine with several GPUs they take turns with these."""

    def __init__(self, store: ArtifactStore, runtime: Runtime, progress: Progress, workers: int) -> None:
        self._store, self._runtime, self._progress, self._workers = store, runtime, progress, workers

    def run(self, jobs: Sequence[Job], task: Task) -> None:
        accounts, patience = Accounts(task), Patience(self._runtime.lock_timeout, self._progress)
        context = multiprocessing.get_context("spawn")
        reports: Any = context.Queue()
        numbers: Any = context.Queue()
        for number in range(self._workers):
            numbers.put(number)
        waiting = Waiting(jobs)
        running: dict[Future[None], int] = {}
        pool = ProcessPoolExecutor(
            self._workers, context, _start_worker, (reports, numbers, self._store, self._runtime)
        )
        try:
            while waiting or running:
                while len(running) < self._workers and (index := waiting.next()) is not None:
                    running[pool.submit(_run_in_worker, index, jobs[index])] = index
                if not running:
                    patience.pause()
                finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                if _drain(reports, jobs, accounts):
                    patience.progressed()
                for future in finished:
                    index = running.pop(future)
                    try:
                        future.result()
                    except LockBusyError as busy:
                        patience.busy(busy)
                        waiting.put_off(index)
                        continue
                    except BrokenProcessPool as error:
                        raise ArtifactError(
                            f"A worker process died while it worked on the {jobs[index].name}; out of memory? Run the same "
                            "command again, with fewer --workers."
                        ) from error
                    patience.progressed()
                    waiting.done(index)
                    accounts.finish(index, jobs[index])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        pool.shutdown()


def _drain(reports: Any, jobs: Sequence[Job], accounts: Accounts) -> bool:
    """Take all reports that are there; whether there was one."""
    some = False
    with contextlib.suppress(queue.Empty):
        while True:
            index, units = reports.get_nowait()
            accounts.add(index, jobs[index], units)
            some = True
    return some


_worker: dict[str, Any] = {}


def _start_worker(reports: Any, numbers: Any, store: ArtifactStore, runtime: Runtime) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker.update(reports=reports, number=numbers.get(), store=store, runtime=runtime)


def _die_with_parent() -> None:
    """A parent that is killed cannot stop its workers; an orphan would go on and hold its locks."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run_in_worker(index: int, job: Job) -> None:
    reports = _worker["reports"]
    # The queue is written to by a thread, so a report costs the training next to nothing; still, not one a step.
    saved = [0.0, time.monotonic()]

    def report(units: float) -> None:
        saved[0] += units
        if time.monotonic() - saved[1] > 0.5:
            reports.put((index, saved[0]))
            saved[0], saved[1] = 0.0, time.monotonic()

    try:
        job.run(_worker["store"], _worker["runtime"], report, _worker["number"])
    except AttribenchError:
        raise
    except Exception as error:
        raise AttribenchError(f"The {job.name} failed: {type(error).__name__}: {error}") from error
