"""A Ray cluster: how to reach it, and what its nodes offer.

Imported only with ``--executor ray``.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Collection
from typing import Any

import ray
from humanize import naturalsize
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from attribench.errors import AttribenchError, UsageError
from attribench.settings import RayOptions, Runtime
from attribench.truth.cluster.remote import Begun
from attribench.truth.jobs import Job
from attribench.truth.resources import Memory

#: Seconds for which a count of the cluster's places is good.
_COUNTED = 5.0


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


class Offered:
    """What nodes offer, and what jobs take of it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._gpus = _gpus(runtime)
        self._device_sizes: dict[str, int] = {}  # of nodes where a job has begun
        self._slots, self._counted = 0, float("-inf")
        self._turn = 0

    def saw(self, begun: Begun) -> None:
        """A worker says what its node has; Ray does not know the GPUs' sizes."""
        if begun.device_size:
            self._device_sizes[begun.node] = begun.device_size

    def need(self, job: Job) -> Memory:
        """What memory a job takes."""
        return job.memory(self._runtime, cuda=self._gpus > 0)

    def options(self, job: Job, shunned: Collection[str]) -> dict[str, Any]:
        """What a job asks Ray for.

        Args:
            shunned: nodes that it should not be done on, if there are others.

        Raises:
            AttribenchError: no node has so much memory.
        """
        need = self.need(job)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = max((int(node.get("memory", 0)) for node in nodes), default=0)
        if nodes and need.host > most:
            raise AttribenchError(
                f"The {job.name} takes {_need(need)} by the model's size; no node of the cluster offers more than "
                f"{_size(most)}. Add a larger node (ray start --memory), or use a smaller --evaluation_batch."
            )
        asked = {"num_cpus": self._runtime.ray.cpus_per_job, "num_gpus": self._gpus, "memory": need.host}
        small = {node for node, size in self._device_sizes.items() if size < need.device}
        if not small and not shunned:
            return asked
        takers = self.others(job, ())
        large = [node for node in takers if node not in small]
        if takers and not large:
            raise AttribenchError(
                f"The {job.name} takes {_need(need)} by the model's size; no node of the cluster has a GPU of more than "
                f"{_size(max(self._device_sizes.values()))}. Use larger GPUs, a smaller --training.batch_size (other models) "
                "or --evaluation_batch (the same numbers)."
            )
        rest = [node for node in large if node not in shunned] or large
        if not rest:  # they are all gone: whoever comes
            return asked
        self._turn += 1
        # Soft: should that node die, any other one.
        return {**asked, "scheduling_strategy": NodeAffinitySchedulingStrategy(rest[self._turn % len(rest)], soft=True)}

    def others(self, job: Job, shunned: Collection[str]) -> list[str]:
        """The nodes that a job could be done on, but for some."""
        nodes, memory = ray.nodes(), self.need(job).host
        found = [node["NodeID"] for node in nodes if node["Alive"] and self._takes(node["Resources"], memory)]
        return [node for node in found if node not in shunned]

    def slots(self, job: Job) -> int:
        """How many jobs like this one all nodes take at once."""
        if time.monotonic() - self._counted > _COUNTED:
            memory = self.need(job).host
            self._slots = sum(self._takes(node["Resources"], memory) for node in ray.nodes() if node["Alive"])
            self._counted = time.monotonic()
        return self._slots

    def _takes(self, offered: dict[str, float], memory: int) -> int:
        asked = {"CPU": self._runtime.ray.cpus_per_job, "GPU": self._gpus, "memory": memory}
        return min(int(offered.get(name, 0) / amount + 1e-9) for name, amount in asked.items() if amount)

    def refusal(self, job: Job, why: str, begun: Begun | None) -> AttribenchError:
        """Say why a job cannot be done, with figures."""
        need, free = self.need(job), ""
        if begun is not None:
            device = f" and {_size(begun.device_memory)} of the GPU" if begun.device_memory else ""
            free = f"; {_size(begun.memory)}{device} were free on {begun.host} as it began"
        return AttribenchError(
            f"The {job.name} cannot be done here: {why}. By the model's size it takes {_need(need)}{free}. Use nodes with more "
            "memory, a smaller --training.batch_size (other models) or --evaluation_batch (the same numbers)."
        )

    def nobody_takes(self) -> str:
        """Say what jobs ask for and what the cluster has."""
        offered, asked = ray.cluster_resources(), f"{self._runtime.ray.cpus_per_job:g} CPUs and {self._gpus:g} GPUs"
        return (
            f"Waiting: no node takes a job, which needs {asked}; the cluster has {offered.get('CPU', 0):g} CPUs, "
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
