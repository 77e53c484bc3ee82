"""Jobs without a model, for clusters: the workers import them from here."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from attribench.settings import Runtime
from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging
from attribench.truth.jobs import Report
from attribench.truth.resources import Memory


@dataclass(frozen=True)
class Square:
    """Squares its number; a line in ``log`` each time it begins.

    Attributes:
        how: what goes wrong: ``fails``; ``exhausts`` memory, or ``dies``: the first time, or ``… always``; ``loses``: dies the
            first time, and what it had written with it.
        host_memory: bytes that it says it takes.
    """

    number: int
    log: str
    how: str = ""
    host_memory: int = 2**20
    seconds: float = 0.0
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"square {self.number}"

    @property
    def cost(self) -> float:
        return 10.0

    @property
    def spec(self) -> dict[str, int]:
        return {"number": self.number}

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        return Memory(self.host_memory)

    def find(self, store: ArtifactStore) -> Artifact | None:
        return store.find("squares", self.spec)

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return []

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        return "squares", self.spec

    @property
    def unfinished(self) -> str | None:
        return "state" if self.how == "loses" else None

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        write(self.log, root=str(store.root))
        if self.how == "loses":
            self._lose(store.working_folder("squares", self.spec) / "state", report)
        return store.get_or_create("squares", self.spec, lambda staging: self._build(staging, report), wait=False)

    def _lose(self, state: Path, report: Report) -> None:
        """The first time, leave something unfinished, and die without it when it was carried."""
        write(self.log, resumed=state.exists())
        if state.exists():
            return
        state.write_text("half of it")
        for _ in range(10):
            report(0.1)
            time.sleep(self.seconds / 10)
        state.unlink()
        os._exit(137)

    def _build(self, staging: Staging, report: Report) -> None:
        earlier = [entry for entry in lines(self.log) if entry["number"] == self.number]
        write(self.log, number=self.number, pid=os.getpid(), host=socket.gethostname(), at=time.time())
        report(4.0)
        time.sleep(self.seconds)
        if self.how == "fails":
            raise ValueError("no such luck")
        if self.how == "exhausts always" or (self.how == "exhausts" and not earlier):
            raise MemoryError("cannot allocate 12 GiB")
        if self.how == "dies always" or (self.how == "dies" and not earlier):
            os._exit(137)
        report(25.0)  # more than its cost: must not overshoot the bar
        staging.save_json("square", self.number**2)
        write(self.log, number=self.number, ended=time.time())


def write(log: str, **entry: object) -> None:
    with Path(log).open("a") as file:
        file.write(json.dumps({"number": -1, **entry}) + "\n")


def lines(log: str) -> list[dict[str, float]]:
    path = Path(log)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
