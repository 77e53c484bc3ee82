"""How the methods with a ridge kernel are tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attribench.method import Evaluate

#: λ as a share of the mean squared feature length: from hardly any to so much that only the dot product is left.
REGULARIZATIONS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)
#: Timesteps to average gradients over, beside the configured number: the published numbers.
NUM_TIMESTEPS = (10, 100)


def search_ridge(evaluate: Evaluate, options: Mapping[str, Any], outputs: Sequence[str] = ()) -> dict[str, Any]:
    """Choose the output f and λ together at the configured number of timesteps, then that number.

    The gradients of an output and number of timesteps are computed once, whatever λ is tried on them.

    Args:
        outputs: outputs f to try; none leaves f as it is.
    """
    candidates = [
        {**({"f": output} if output else {}), "regularization": regularization}
        for output in outputs or ("",)
        for regularization in REGULARIZATIONS
    ]
    best = max(candidates, key=evaluate)
    numbers = dict.fromkeys((options["num_timesteps"], *NUM_TIMESTEPS))
    return max(({**best, "num_timesteps": number} for number in numbers), key=evaluate)
