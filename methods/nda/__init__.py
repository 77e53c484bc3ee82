"""NDA, nonparametric data attribution: which train images hold patches that explain a noisy query's (arXiv 2510.14269).

To read it: ``patches`` says where patches lie and which may match; ``task`` is one comparison (query, timestep, scale);
``convolution``, with ``copies`` and ``position_sums``, is the definition, and the reference for every other engine;
``engine/`` evaluates the same much faster, and ``scorers`` chooses; ``method`` combines timesteps and scales into
:class:`NDA`. Beside these, ``search`` tunes, ``saved`` resumes, ``evidence`` and ``explanation`` show where in the pictures
a score comes from.
"""

from attribench.methods.nda.convolution import patch_influence
from attribench.methods.nda.method import NDA

__all__ = ["NDA", "patch_influence"]
