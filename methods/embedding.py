"""Embeddings: train images that look alike to a network that was trained on other pictures."""

from __future__ import annotations

from attribench.computing.similarity import Kind
from attribench.embeddings.backbones import find_backbone
from attribench.embeddings.image_embedder import ImageEmbedder
from attribench.embeddings.method import EmbeddingMethod
from attribench.registry import register_method


@register_method("embedding")
class Embedding(EmbeddingMethod):
    """Similarity of image embeddings, of DINOv2, SSCD, CLIP or another backbone: dot product, or cosine between -1 and 1.

    Images are resized, cropped and normalised as the backbone's own configuration says.

    Args:
        backbone: ``dinov2`` (arXiv 2304.07193; ViT-S/14, or ``dinov2-base``, ``-large``, ``-giant``), ``sscd`` (arXiv
            2202.10261), ``clip`` (arXiv 2103.00020), any name of ``open_clip.list_models()`` or ``timm.list_models()``
            (``open_clip:NAME``, ``timm:NAME`` where both have it), or the path of a JSON model configuration in open_clip's
            format.
        similarity: ``dot`` of the embeddings as the backbone gives them (SSCD's have length 1), or ``cosine``.
        pretrained: open_clip's tag of the weights, ``openai`` if none is given; timm's is part of the name, ``NAME.TAG``.
        checkpoint: a local weights file (safetensors, or a state_dict) in place of the download. SSCD's is the one that ends
            in ``.torchvision.pt``: a TorchScript file holds code and is refused.
        batch_size: images the backbone sees at a time.

    Raises:
        UsageError: no such similarity, backbone, tag or file.
    """

    def __init__(
        self,
        backbone: str = "dinov2",
        similarity: Kind = "cosine",
        pretrained: str | None = None,
        checkpoint: str | None = None,
        batch_size: int = 64,
    ) -> None:
        found = find_backbone(backbone, pretrained, own_weights=checkpoint is not None)
        option = f"--method embedding --method.backbone {backbone} --method.checkpoint"
        super().__init__(similarity, ImageEmbedder(found, checkpoint, batch_size, checkpoint_option=option))
