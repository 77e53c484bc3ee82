"""What every image backbone has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

#: From an RGB picture to the pixels that the network takes, ``(3, H, W)``.
Transform = Callable[[Image.Image], Tensor]


class Backbone(Protocol):
    """A network that embeds images, and where its weights are."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """What the embeddings depend on apart from weights and images."""

    def locate(self) -> Path:
        """The weights file, downloaded where that is possible.

        Raises:
            WeightsMissingError: it is not here and not to be had; the message ends with what to download.
        """

    def load(self, weights: Path) -> tuple[nn.Module, Transform]:
        """Build the network, in float32 on the CPU and in evaluation mode, and its inference transform.

        Raises:
            AttribenchError: the file is damaged, holds more than weights, or does not fit the network.
        """

    def embed(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """The embeddings of transformed images ``(B, 3, H, W)``: ``(B, dimensions)``."""
