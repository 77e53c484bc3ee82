"""Raw pixels: the simplest attribution there is."""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.similarity import Kind, check_kind
from attribench.computing.similarity import similarity as compare
from attribench.data import to_unit_range
from attribench.data.copies import Copies
from attribench.method import Access, AttributionContext, AttributionMethod, Queries
from attribench.registry import register_method

#: Images that are floating point at a time; pixels are stored as uint8.
_CHUNK_BYTES = 64 * 2**20


@register_method("pixel")
class Pixel(AttributionMethod):
    """Similarity of raw pixels, or of latents: dot product or cosine of the flattened images, pixels in [-1, 1].

    Args:
        similarity: ``dot``, between -D and D for images of D values, or ``cosine``, between -1 and 1.

    Raises:
        UsageError: ``similarity`` is neither.
    """

    access = Access.DATA
    takes_latents = True

    def __init__(self, similarity: Kind = "cosine") -> None:
        self._similarity = check_kind(similarity)

    def prepare(self, context: AttributionContext) -> None:
        """Find train images that are equal: their last bits must not depend on where in a product they stand."""
        self._copies = Copies.of(context.train_images)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``, in the range that the class gives."""
        train = self._copies.distinct(self.context.train_images)
        scores = torch.empty(len(queries), len(train))
        chunk = max(1, _CHUNK_BYTES // (4 * max(1, queries.images[0].numel())))
        for start in range(0, len(train), chunk):
            columns = self._flat(train[start : start + chunk])
            for first in range(0, len(queries), chunk):
                rows = self._flat(queries.images[first : first + chunk])
                scores[first : first + chunk, start : start + chunk] = compare(rows, columns, self._similarity).cpu()
        return scores[:, self._copies.which]

    def _flat(self, images: Tensor) -> Tensor:
        moved = images.to(self.context.device)
        return (to_unit_range(moved) if moved.dtype == torch.uint8 else moved).flatten(1)
