"""NDA, nonparametric data attribution: which train images hold patches that explain a noisy query's (arXiv 2510.14269).

``patches`` says where patches lie and which may match; an engine (``convolution``) turns that into scores of one query,
timestep and scale; ``method`` combines them into :class:`NDA`.
"""

from attribench.methods.nda.convolution import patch_influence
from attribench.methods.nda.method import NDA

__all__ = ["NDA", "patch_influence"]
