"""For nodes that do not share the work directory: what jobs read goes out with them, what they make comes back.

Imported only with ``--executor ray``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from attribench.errors import ArtifactError
from attribench.store.artifacts import ArtifactStore, Spec
from attribench.store.claims import Claim
from attribench.store.files import canonical
from attribench.store.journal import Journal
from attribench.store.parcels import Bytes, DamagedParcelError, adopt, pack, restore_unfinished, unfinished
from attribench.truth.cluster.remote import Begun, Done
from attribench.truth.jobs import Job

#: What many jobs read; it stays with Ray until the last of them is done. Other things go out anew with each job.
_READ_BY_MANY = ("images", "bases")
#: How often something may arrive damaged before the job is given up.
_DAMAGED = 3


class Carrier:
    """The command's end of the way. Its store is the whole one; it holds the claims, since no worker sees it.

    Args:
        token: of the command's run; names the workers' folders.
    """

    def __init__(self, store: ArtifactStore, token: str) -> None:
        self._store, self._token = store, token
        self._sent: dict[str, Any] = {}
        self._claims: dict[int, tuple[AbstractContextManager[Claim], Claim]] = {}
        self._damaged: Counter[int] = Counter()

    def claim(self, number: int, job: Job) -> None:
        """Keep others from the job.

        Raises:
            LockBusyError: another process is at it.
        """
        output = job.output(self._store)
        if output is None:
            raise ArtifactError(f"What the {job.name} needs is not in {self._store.root}; run the same command again.")
        held = self._store.lock(*output, wait=False)
        self._claims[number] = held, held.__enter__()

    def release(self, number: int, *, done: bool = False) -> None:
        """Let others at the job."""
        if number in self._claims:
            held, claim = self._claims.pop(number)
            if done:
                claim.finish()
            held.__exit__(None, None, None)

    def release_all(self) -> None:
        """The run has come to an end, one way or another."""
        for number in list(self._claims):
            self.release(number)

    def offers(self, job: Job) -> list[tuple[str, str, list[Any]]]:
        """What the job reads: kind, key, and a reference in a list, so that it travels only to workers that fetch it."""
        return [(kind, self._store.key(spec), [self._reference(kind, spec)]) for kind, spec in job.inputs(self._store)]

    def state(self, job: Job) -> Mapping[str, Bytes]:
        """What an earlier worker had come to."""
        output = job.output(self._store)
        return unfinished(self._store, *output) if job.unfinished and output is not None else {}

    def keep(self, job: Job, files: Mapping[str, Bytes]) -> None:
        """A worker says what it has come to."""
        output = job.output(self._store)
        if output is not None:
            restore_unfinished(self._store, *output, files)

    def receive(self, number: int, job: Job, message: Done, begun: Begun | None) -> None:
        """Take what was made into the store.

        Raises:
            DamagedParcelError: something of it is damaged, or it is not what was asked for.
        """
        for parcel in message.parcels:
            artifact = adopt(self._store, parcel)
            attempt = self._claims[number][1].attempt
            maker = f"process {begun.pid} on {begun.host}" if begun else ""
            seconds = float(artifact.info.get("seconds", 0.0))
            Journal(self._store.root, "Ray").add(artifact.kind, artifact.key, attempt, seconds, maker)
        if job.find(self._store) is None:
            raise DamagedParcelError(f"The worker of the {job.name} sent something else.")

    def damaged(self, number: int, job: Job, what: str) -> None:
        """Something arrived damaged, here or there.

        Raises:
            ArtifactError: it does so again and again.
        """
        self._damaged[number] += 1
        if self._damaged[number] >= _DAMAGED:
            raise ArtifactError(
                f"What the {job.name} reads or makes was damaged {self._damaged[number]} times on its way: {what} Something is "
                "wrong with the network, or with a node's memory."
            )

    def sweep(self) -> None:
        """Remove the workers' folders; those of nodes that do not answer stay in their temporary folders."""
        with suppress(Exception):  # the cluster may be gone: what the run has come to is what matters
            sweeping = [
                _sweep.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                .remote(self._token)
                for node in ray.nodes()
                if node["Alive"]
            ]  # fmt: skip
            ray.wait(sweeping, num_returns=len(sweeping), timeout=10.0)

    def _reference(self, kind: str, spec: Spec) -> Any:
        name = f"{kind} {canonical(spec)}"
        if name in self._sent:
            return self._sent[name]
        artifact = self._store.find(kind, spec)
        if artifact is None:
            raise ArtifactError(f"An artifact of kind {kind} is not in {self._store.root}; run the same command again.")
        reference = ray.put(pack(artifact))
        if kind in _READ_BY_MANY:
            self._sent[name] = reference
        return reference


def worker_folder(token: str) -> Path:
    """Where the workers of this node keep what they read and make."""
    node: str = ray.get_runtime_context().get_node_id()
    return Path(tempfile.gettempdir()) / f"attribench-{token}" / node


def _remove(token: str) -> None:
    folder = worker_folder(token)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()  # the last node's


_sweep = ray.remote(max_retries=0)(_remove)
