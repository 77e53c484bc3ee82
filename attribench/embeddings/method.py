"""What the methods that compare embeddings have in common."""

from __future__ import annotations

from torch import Tensor

from attribench.computing.similarity import Kind, check_kind
from attribench.computing.similarity import similarity as compare
from attribench.data.copies import Copies
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.method import Access, AttributionContext, AttributionMethod, Queries
from attribench.store.files import canonical, digest_text


class EmbeddingMethod(AttributionMethod):
    """Similarity of image embeddings.

    Args:
        similarity: ``dot`` of the embeddings as the backbone gives them, or ``cosine``.
        embedder: a backbone with its weights.

    Raises:
        UsageError: no such similarity.
    """

    access = Access.DATA

    def __init__(self, similarity: Kind, embedder: ImageEmbedder) -> None:
        self._similarity = check_kind(similarity)
        self._embedder = embedder

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Name the weights that are missing; they are downloaded where that is possible."""
        if context.train.image_shape[0] not in (1, 3):
            label = self._embedder.backbone.label
            return f"{label} needs grey or RGB images; these have {context.train.image_shape[0]} channels."
        return self._embedder.unavailable()

    def inputs_hash(self) -> str:
        """Architecture, pre-processing and weights."""
        return digest_text(canonical(self._embedder.spec))

    def prepare(self, context: AttributionContext) -> None:
        """Embed the train images, or take their embeddings from the store."""
        self._copies = Copies.of(context.train_images)  # equal images are embedded once, so that they score alike
        distinct = self._copies.distinct(context.train_images)
        embeddings = self._embedder.embed_stored(distinct, context.device, context.store, context.progress)
        self._train = embeddings.to(context.device)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``."""
        device = self.context.device
        embeddings = self._embedder.embed(queries.images, device).to(device)
        return compare(embeddings, self._train, self._similarity)[:, self._copies.which.to(device)]
