"""How the methods with a kernel or a curvature are tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attribench.errors import UsageError
from attribench.method import Evaluate

#: λ as a share of the mean squared feature length: from hardly any to so much that only the dot product is left.
REGULARIZATIONS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0)
#: λ as a share of the mean of a layer's curvature, likewise.
DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
#: Timesteps to average gradients over, beside the configured number: the published numbers.
NUM_TIMESTEPS = (10, 100)


def search_ridge(evaluate: Evaluate, options: Mapping[str, Any], outputs: Sequence[str] = ()) -> dict[str, Any]:
    """Choose the output f and λ together at the configured number of timesteps, then that number, then λ at it.

    Args:
        outputs: outputs f to try; none leaves f as it is.
    """
    return search_number(evaluate, options, "regularization", REGULARIZATIONS, outputs)


def search_number(
    evaluate: Evaluate, options: Mapping[str, Any], name: str, values: Sequence[float], outputs: Sequence[str] = ()
) -> dict[str, Any]:
    """Choose an option, and the output f with it, at the configured number of timesteps; then that number; then it anew.

    The gradients of an output and number of timesteps are computed once, whatever is tried on them.

    Args:
        name: of the option.
        values: to try.
        outputs: outputs f to try; none leaves f as it is.
    """
    candidates = [{**({"f": output} if output else {}), name: value} for output in outputs or ("",) for value in values]
    best = max(candidates, key=evaluate)
    numbers = dict.fromkeys((options["num_timesteps"], *NUM_TIMESTEPS))
    best = max(({**best, "num_timesteps": number} for number in numbers), key=evaluate)
    if best["num_timesteps"] == options["num_timesteps"]:
        return best
    return max(({**best, name: value} for value in dict.fromkeys((best[name], *values))), key=evaluate)


def check_damping(damping: float) -> None:
    """Refuse a damping that no curvature can be made invertible with.

    Raises:
        UsageError: it is not positive, or infinite: nothing but zeros would come out.
    """
    if not (damping > 0 and math.isfinite(damping)):
        raise UsageError(f"damping must be positive and finite; got {damping}.")
