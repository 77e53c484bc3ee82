"""GAS: gradient similarity along the training."""

from __future__ import annotations

from attribench.gradients.methods import SimilarityMethod
from attribench.method import Access
from attribench.registry import register_method


@register_method("gas")
class GAS(SimilarityMethod):
    """GAS (arXiv 2201.10055): cosines of loss gradients, averaged over training checkpoints.

    TracInCP without the influence of how long a gradient is. The checkpoints are those that the target model's training
    stored, with equal weights.
    """

    access = Access.CHECKPOINTS
    kind = "cosine"
