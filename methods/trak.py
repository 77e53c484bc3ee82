"""TRAK: influence through a kernel of projected loss gradients."""

from __future__ import annotations

from attribench.gradients.methods import KernelMethod
from attribench.registry import register_method


@register_method("trak")
class TRAK(KernelMethod):
    """TRAK on diffusion models: φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n) with the gradients of the loss (arXiv 2303.14186).

    One model, and no weight for how well it does on the train image, as D-TRAK's authors ran it (arXiv 2311.00500).
    """
