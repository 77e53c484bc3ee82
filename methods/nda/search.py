"""How NDA's options are tuned: per timestep, then which timesteps (arXiv 2510.14269, section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attribench.method import Evaluate

#: Tried unless the caller names others: later ones hardly hold anything but noise.
TIMESTEPS = tuple(range(50, 501, 50))
PATCH_SIZES = (3, 5, 7, 9, 11, 15, 21)
LOW_RESOLUTION_PATCH_SIZES = (4, 6, 10, 14, 18, 22)
ALPHAS = (0.25, 0.5, 0.75)
TOP_KS = (1, 10, 100)


def search_per_timestep(evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
    """Choose patch sizes and α of every timestep by that timestep's own LDS, then the timesteps, then top-k.

    Single scales come first, then mixtures of the best two. Timesteps are those of ``options``, :data:`TIMESTEPS` or the
    caller's: all up to one of them, as the paper does; all from one of them on, where the small ones mislead; or one alone.
    """
    chosen = [_best_at(timestep, evaluate) for timestep in sorted(options["timesteps"])]
    numbers = range(len(chosen))
    runs = [chosen[: number + 1] for number in numbers] + [chosen[number:] for number in numbers]
    best = max([_together(run) for run in (*runs, *([one] for one in chosen))], key=evaluate)
    return max(({**best, "top_k": top_k} for top_k in {options["top_k"]: None, **dict.fromkeys(TOP_KS)}), key=evaluate)


def _best_at(timestep: int, evaluate: Evaluate) -> dict[str, Any]:
    def option(size: int, low: int, alpha: float) -> dict[str, Any]:
        return _together([{"timestep": timestep, "size": size, "low": low, "alpha": alpha}])

    # A scale of weight 0 is not computed, so its size is free: the smallest.
    size = max(PATCH_SIZES, key=lambda candidate: evaluate(option(candidate, LOW_RESOLUTION_PATCH_SIZES[0], 1.0)))
    low = max(LOW_RESOLUTION_PATCH_SIZES, key=lambda candidate: evaluate(option(PATCH_SIZES[0], candidate, 0.0)))
    alpha = max((1.0, 0.0, *ALPHAS), key=lambda candidate: evaluate(option(size, low, candidate)))
    return {"timestep": timestep, "size": size, "low": low, "alpha": alpha}


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "timesteps": [part["timestep"] for part in parts],
        "patch_size": [part["size"] for part in parts],
        "low_resolution_patch_size": [part["low"] for part in parts],
        "alpha": [part["alpha"] for part in parts],
    }
