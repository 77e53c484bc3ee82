"""Jobs that are not done: which may begin now, and how far they are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from attribench.computing.progress import Progress, Task
from attribench.store.artifacts import LockBusyError
from attribench.truth.jobs import Job

#: Seconds until a job that another process was at is tried again.
BUSY_PAUSE = 0.5


class Accounts:
    """Turns the jobs' reports into the bar's progress; a finished job counts in full, however it came to be done."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._reported: dict[int, float] = {}

    def add(self, index: int, job: Job, units: float) -> None:
        units = min(units, job.cost - self._reported.get(index, 0.0))
        if units > 0:
            self._reported[index] = self._reported.get(index, 0.0) + units
            self._task.advance(units)

    def finish(self, index: int, job: Job) -> None:
        self.add(index, job, job.cost)


class Waiting:
    """Jobs in the order in which they are to begin, each after those it needs.

    Args:
        jobs: called by their numbers from here on.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._pending = deque(range(len(jobs)))
        self._open = {job.name for job in jobs}
        self._not_before: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def next(self) -> int | None:
        """Take the first job that may begin now; None if there is none."""
        now = time.monotonic()
        for number in self._pending:
            if self._not_before.get(number, 0.0) <= now and self._open.isdisjoint(self._jobs[number].needs):
                self._pending.remove(number)
                return number
        return None

    def put_off(self, number: int, pause: float = BUSY_PAUSE) -> None:
        """Another process is at it: try again after the others, and after a pause of so many seconds."""
        self._pending.append(number)
        self._not_before[number] = time.monotonic() + pause

    def again(self, number: int) -> None:
        """It was interrupted: it is the next to begin."""
        self._pending.appendleft(number)

    def done(self, number: int) -> None:
        """What needs it may begin."""
        self._open.discard(self._jobs[number].name)


class Patience:
    """Waits for jobs that other processes hold, says so once, and gives up after the time-out."""

    def __init__(self, timeout: float, progress: Progress) -> None:
        self._timeout, self._progress = timeout, progress
        self._since: float | None = None
        self._busy: LockBusyError | None = None

    def progressed(self) -> None:
        """Something was done: what follows is another wait."""
        self._since = None

    def busy(self, busy: LockBusyError) -> None:
        """Another process is at a job."""
        self._busy = busy

    def pause(self) -> None:
        """Nothing can begin now.

        Raises:
            LockBusyError: so it has been for too long.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._progress.message(f"Waiting: {self._busy}")
        if self._busy is not None and now - self._since > self._timeout:
            raise self._busy
        time.sleep(BUSY_PAUSE / 2)
