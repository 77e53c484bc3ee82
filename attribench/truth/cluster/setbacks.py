"""What has gone wrong with jobs that are done elsewhere: how often, and where."""

from __future__ import annotations

from collections import Counter

from attribench.errors import ArtifactError
from attribench.store.artifacts import ArtifactStore
from attribench.truth.jobs import Job


class Setbacks:
    """Of the jobs of one call, by their numbers.

    Args:
        store: where their unfinished work lies.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._deaths: Counter[int] = Counter()
        self._came_to: dict[int, tuple[int, int] | None] = {}
        self._failed_on: dict[int, str] = {}

    def died(self, number: int, job: Job) -> int:
        """A worker of the job died: how often one did since its unfinished work was last known to get on."""
        came_to = self._unfinished(job)
        if came_to is not None and came_to != self._came_to.get(number):
            self._deaths[number] = 0
        self._came_to[number] = came_to
        self._deaths[number] += 1
        return self._deaths[number]

    def failed(self, number: int, node: str) -> bool:
        """The job failed on a node: whether for the first time."""
        first = number not in self._failed_on
        self._failed_on.setdefault(number, node)
        return first

    def shunned(self, number: int) -> set[str]:
        """Nodes where the job has failed."""
        return {self._failed_on[number]} if number in self._failed_on else set()

    def _unfinished(self, job: Job) -> tuple[int, int] | None:
        """What tells the job's unfinished work from what it was earlier; None if there is none."""
        output = job.output(self._store)
        if job.unfinished is None or output is None:
            return None
        try:
            found = (self._store.working_folder(*output) / job.unfinished).stat()
        except (OSError, ArtifactError):
            return None
        return found.st_mtime_ns, found.st_ino
