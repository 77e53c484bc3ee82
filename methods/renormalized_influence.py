"""Renormalized influence: influence without the length of the train image's gradient."""

from __future__ import annotations

from torch import Tensor

from attribench.gradients.methods import KernelMethod
from attribench.gradients.ridge import Ridge, divide
from attribench.registry import register_method


@register_method("renormalized-influence")
class RenormalizedInfluence(KernelMethod):
    """Renormalized influence: TRAK's score over ‖φ(n)‖ (arXiv 2201.10055).

    Train images that the model does badly on have long gradients; dividing by the length stops them from being the
    answer to every query. On projected loss gradients, as in arXiv 2311.00500.
    """

    def rescale(self, scores: Tensor, ridge: Ridge) -> Tensor:
        """Divide by the lengths of the train images' features."""
        return divide(scores, ridge.norms)
