"""What the command sees of a Ray cluster, without one: workers say what a test has them say."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray_cluster import ray

from attribench.truth.cluster import carrier, executor, nodes
from attribench.truth.cluster.remote import Assignment, Begun, versions

#: Names of nodes, and what one offers.
A, B, C = (letter * 56 for letter in "abc")
NODE = {"CPU": 1.0, "memory": 2.0**40}


class Given:
    """A job that was given out."""

    def __init__(self, assignment: Assignment, options: dict[str, Any], node: str, offers: Sequence[Any]) -> None:
        self.assignment, self.options, self.node, self.offers = assignment, options, node, offers
        self.once = False
        self.says: deque[Any] = deque()

    def __next__(self) -> Any:
        return self.says.popleft()

    def begun(self, **more: Any) -> Begun:
        return Begun(f"host-{self.node[0]}", 1, versions(), 2**30, 0, node=self.node, **more)


class FakeRay:
    """A cluster.

    Args:
        answer: what a worker says at once; exceptions are what Ray raises in place of a message.
        nodes: what they offer, by their names; jobs go to the first one unless they ask for another one.
    """

    def __init__(self, answer: Callable[[Given], list[Any]], nodes: dict[str, dict[str, float]] | None = None) -> None:
        self._answer, self._nodes = answer, nodes or {A: NODE}
        self.given: list[Given] = []
        self.cancelled: list[Given] = []
        self.stored: list[Any] = []
        self.waits = 0
        #: Called with every wait.
        self.waiting: Callable[[], None] = lambda: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        names = ("wait", "get", "cancel", "put", "nodes", "cluster_resources")
        fake = SimpleNamespace(**{name: getattr(self, name) for name in names})
        for module in (carrier, nodes, executor):
            patch.setattr(module, "ray", fake)
        patch.setattr(executor, "connect", lambda options: None)
        patch.setattr(executor, "_carry_out", SimpleNamespace(options=lambda **options: self._remote(options)))
        once = SimpleNamespace(options=lambda **options: self._remote(options, once=True))
        patch.setattr(executor, "_carry_out_once", once)
        patch.setattr(carrier.Carrier, "sweep", lambda carrier: None)

    def _remote(self, options: dict[str, Any], *, once: bool = False) -> Any:
        def remote(assignment: Assignment, offers: Sequence[Any]) -> Given:
            strategy = options.get("scheduling_strategy")
            given = Given(assignment, options, strategy.node_id if strategy else next(iter(self._nodes)), offers)
            given.once = once
            self.given.append(given)
            given.says.extend(self._answer(given))
            return given

        return SimpleNamespace(remote=remote)

    def wait(self, given: list[Given], num_returns: int, timeout: float, fetch_local: bool) -> Any:
        self.waits += 1
        self.waiting()
        ready = [one for one in given if one.says][:num_returns]
        return ready, [one for one in given if one not in ready]

    def get(self, said: Any) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    def cancel(self, given: Given, force: bool) -> None:
        assert force
        self.cancelled.append(given)

    def put(self, thing: Any) -> Any:
        self.stored.append(thing)
        return len(self.stored)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Alive": True, "Resources": offered} for name, offered in self._nodes.items()]

    def cluster_resources(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for offered in self._nodes.values():
            for name, amount in offered.items():
                total[name] = total.get(name, 0.0) + amount
        return total


crashed = ray.exceptions.WorkerCrashedError
