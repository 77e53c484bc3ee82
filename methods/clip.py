"""CLIP: train images that look alike to a model of images and text."""

from __future__ import annotations

from attribench.computing.similarity import Kind
from attribench.embeddings.clip_models import DEFAULT_MODEL, DEFAULT_PRETRAINED, find_model
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.embeddings.method import EmbeddingMethod
from attribench.registry import register_method


@register_method("clip")
class CLIP(EmbeddingMethod):
    """Similarity of CLIP image embeddings: dot product, or cosine between -1 and 1.

    The same as ``embedding`` with the backbone ``clip``, or with another one of open_clip's.

    Args:
        similarity: ``dot`` of the embeddings as the model gives them, or ``cosine``.
        model: a name of ``open_clip.list_models()``, or the path of a JSON model configuration in open_clip's format.
        pretrained: open_clip's tag of the weights; activation and pre-processing follow it, also for a checkpoint.
        checkpoint: a local weights file (safetensors, or a state_dict) in place of the download.
        batch_size: images the model sees at a time.

    Raises:
        UsageError: no such similarity, model, tag or file.
    """

    def __init__(
        self,
        similarity: Kind = "cosine",
        model: str = DEFAULT_MODEL,
        pretrained: str = DEFAULT_PRETRAINED,
        checkpoint: str | None = None,
        batch_size: int = 64,
    ) -> None:
        backbone = find_model(model, pretrained, own_weights=checkpoint is not None)
        option = "--method clip --method.checkpoint"
        super().__init__(similarity, ImageEmbedder(backbone, checkpoint, batch_size, checkpoint_option=option))
