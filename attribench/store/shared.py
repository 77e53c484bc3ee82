"""Artifacts that several methods use, with an account of what each would have cost on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging


@dataclass
class Usage:
    """What was used of a shared store in a stretch of work.

    Attributes:
        seconds: what it once took to make the artifacts that were found, so that a method that comes second does not
            look cheaper than the one that happened to come first. Those made in this stretch are not in it.
        others_seconds: for how long others took the machine meanwhile (:class:`attribench.computing.others.Others`); None:
            not known, of an artifact made before that was kept.
        peak_bytes: the largest amount of memory noted when one of them was made.
        stored: bytes on disk of every artifact used, by kind and key.
    """

    seconds: float = 0.0
    others_seconds: float | None = 0.0
    peak_bytes: int = 0
    stored: dict[str, int] = field(default_factory=dict)


class SharedStore:
    """A view of an artifact store that remembers what was used.

    A builder may note ``peak_bytes`` in the artifact's info (:meth:`attribench.store.artifacts.Staging.note`).
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._seen: set[str] = set()
        self._watching: list[Usage] = []

    @property
    def store(self) -> ArtifactStore:
        """The store itself, for looks that are no use: finding out what is there."""
        return self._store

    def get_or_create(self, kind: str, spec: Spec, build: Callable[[Staging], None]) -> Artifact:
        """Like :meth:`attribench.store.artifacts.ArtifactStore.get_or_create`; counts as use."""
        built = False

        def build_here(staging: Staging) -> None:
            nonlocal built
            built = True
            build(staging)

        artifact = self._store.get_or_create(kind, spec, build_here)
        self._count(artifact, built)
        return artifact

    @contextmanager
    def watch(self) -> Iterator[Usage]:
        """Take account of what is used inside. An artifact costs its seconds once, however often it is used."""
        usage = Usage()
        self._watching.append(usage)
        try:
            yield usage
        finally:
            self._watching = [other for other in self._watching if other is not usage]

    def _count(self, artifact: Artifact, built: bool) -> None:
        name = f"{artifact.kind}/{artifact.key}"
        first = name not in self._seen
        self._seen.add(name)
        for usage in self._watching:
            usage.stored[name] = artifact.num_bytes
            usage.peak_bytes = max(usage.peak_bytes, int(artifact.info.get("peak_bytes", 0)))
            if first and not built:
                usage.seconds += float(artifact.info["seconds"])
                usage.others_seconds = added(usage.others_seconds, artifact.info.get("others_seconds"))


def added(*seconds: float | None) -> float | None:
    """The sum; None if one of them is not known."""
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None
