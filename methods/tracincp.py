"""TracInCP: gradient similarity along the training."""

from __future__ import annotations

from attribench.gradients.methods import SimilarityMethod
from attribench.method import Access
from attribench.registry import register_method


@register_method("tracincp")
class TracInCP(SimilarityMethod):
    """TracInCP (arXiv 2002.08484): dot products of loss gradients, averaged over training checkpoints.

    Dot products depend on how long gradients are; :class:`attribench.methods.gas.GAS` uses cosines. The checkpoints are
    those that the target model's training stored, with equal weights.
    """

    access = Access.CHECKPOINTS
    kind = "dot"
