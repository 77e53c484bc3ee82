"""Raw pixels: the simplest attribution there is."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.similarity import Kind, check_kind
from attribench.computing.similarity import similarity as compare
from attribench.data import to_unit_range
from attribench.method import Access, AttributionMethod, Queries
from attribench.registry import register_method

#: Images that are floating point at a time; they are stored as uint8.
_CHUNK_BYTES = 64 * 2**20


@register_method("pixel")
class Pixel(AttributionMethod):
    """Similarity of raw pixels: dot product or cosine of the flattened images in [-1, 1].

    Args:
        similarity: ``dot``, between -D and D for images of D values, or ``cosine``, between -1 and 1.

    Raises:
        UsageError: ``similarity`` is neither.
    """

    access = Access.DATA

    def __init__(self, similarity: Kind = "cosine") -> None:
        self._similarity = check_kind(similarity)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``, in the range that the class gives."""
        context = self.context
        scores = torch.empty(len(queries), len(context.train))
        chunk = max(1, _CHUNK_BYTES // (4 * max(1, queries.images[0].numel())))
        for start in range(0, len(context.train), chunk):
            columns = self._flat(context.train_images[start : start + chunk])
            for first in range(0, len(queries), chunk):
                rows = self._flat(queries.images[first : first + chunk])
                scores[first : first + chunk, start : start + chunk] = compare(rows, columns, self._similarity).cpu()
        return scores

    def _flat(self, images: Tensor) -> Tensor:
        return to_unit_range(images.to(self.context.device)).flatten(1)
