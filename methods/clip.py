"""CLIP: train images that look alike to a model of images and text."""

from __future__ import annotations

from torch import Tensor

from attribench.computing.similarity import Kind, check_kind
from attribench.computing.similarity import similarity as compare
from attribench.data.copies import Copies
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.method import Access, AttributionContext, AttributionMethod, Queries
from attribench.registry import register_method
from attribench.store.files import canonical, digest_text


@register_method("clip")
class CLIP(AttributionMethod):
    """Similarity of CLIP image embeddings: dot product, or cosine between -1 and 1.

    Args:
        similarity: ``dot`` of the embeddings as the model gives them, or ``cosine``.
        model: a name of ``open_clip.list_models()``, or the path of a JSON model configuration in open_clip's format.
        pretrained: open_clip's tag of the weights; activation and pre-processing follow it, also for a checkpoint.
        checkpoint: a local weights file (safetensors, or a state_dict) in place of the download.
        batch_size: images the model sees at a time.

    Raises:
        UsageError: no such similarity, model, tag or file.
    """

    access = Access.DATA

    def __init__(
        self,
        similarity: Kind = "cosine",
        model: str = "ViT-B-32",
        pretrained: str = "openai",
        checkpoint: str | None = None,
        batch_size: int = 64,
    ) -> None:
        self._similarity = check_kind(similarity)
        self._embedder = ImageEmbedder(
            model, pretrained, checkpoint, batch_size, checkpoint_option="--method clip --method.checkpoint"
        )

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Name the weights that are missing; they are downloaded where that is possible."""
        if context.train.image_shape[0] not in (1, 3):
            return f"CLIP needs grey or RGB images; these have {context.train.image_shape[0]} channels."
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
