"""A method's part as a unit of work for executors."""

from __future__ import annotations

from dataclasses import dataclass

from attribench.computing.device import resolve_device
from attribench.settings import Runtime
from attribench.store.artifacts import Artifact, ArtifactStore, Spec
from attribench.store.parts import Part
from attribench.truth.jobs import Job, Report
from attribench.truth.resources import Memory


@dataclass(frozen=True)
class PartJob(Job):
    """Does one part."""

    part: Part

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def cost(self) -> float:
        return self.part.cost

    def memory(self, runtime: Runtime, *, cuda: bool) -> Memory:
        return Memory.of(self.part.memory, self.part.memory if cuda else 0, cuda=cuda)

    def inputs(self, store: ArtifactStore) -> list[tuple[str, Spec]]:
        return self.part.inputs

    def output(self, store: ArtifactStore) -> tuple[str, Spec] | None:
        return self.part.kind, self.part.spec

    def find(self, store: ArtifactStore) -> Artifact | None:
        return store.find(self.part.kind, self.part.spec)

    def run(self, store: ArtifactStore, runtime: Runtime, report: Report, worker: int = 0) -> Artifact:
        device = resolve_device(runtime.accelerator, worker)
        return store.get_or_create(
            self.part.kind, self.part.spec, lambda staging: self.part.make(store, device, staging, report), wait=False
        )
