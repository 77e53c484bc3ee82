"""Relative influence: how much a train image matters to a query, for how much it matters at all."""

from __future__ import annotations

from torch import Tensor

from attribench.gradients.methods import KernelMethod
from attribench.gradients.ridge import Ridge, divide
from attribench.registry import register_method


@register_method("relative-influence")
class RelativeInfluence(KernelMethod):
    """Relative influence: TRAK's score over ‖(ΦᵀΦ + λI)⁻¹φ(n)‖ (RelatIF, arXiv 2003.11630).

    The norm says how far the model moves when the train image is given more weight; dividing by it stops unusual
    train images from being the answer to every query. On projected loss gradients, as in arXiv 2311.00500.
    """

    def rescale(self, scores: Tensor, ridge: Ridge) -> Tensor:
        """Divide by how far the model moves."""
        return divide(scores, ridge.solution_norms)
