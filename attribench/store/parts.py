"""Parts of a method's work that are independent of each other, so that other machines can do them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from attribench.store.artifacts import Artifact, ArtifactStore, Spec, Staging

if TYPE_CHECKING:
    import torch


class Part(Protocol):
    """One part: a plain picklable value that makes one artifact from others, wherever it is."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def cost(self) -> float:
        """Work, in any unit, for the time left."""

    @property
    def memory(self) -> int:
        """Bytes that it takes at the peak, beside the libraries."""

    @property
    def kind(self) -> str:
        """Of the artifact that it makes, in full: with its namespace."""

    @property
    def spec(self) -> Spec:
        """Of that artifact."""

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        """Full kinds and specifications of the artifacts that it reads."""

    def make(
        self, store: ArtifactStore, device: torch.device, staging: Staging, report: Callable[[float], None]
    ) -> None:
        """Write the payload.

        Args:
            store: a whole one, of no namespace, with the inputs in it.
            report: called with the units of cost just done.
        """


#: Has parts done, in any order and anywhere, under a bar of that description; their artifacts, in order of the parts.
Distribute = Callable[[Sequence[Part], str], list[Artifact]]
