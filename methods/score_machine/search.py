"""How the options of ``score-machine`` are tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attribench.method import Evaluate

#: Tried unless the caller names others.
TIMESTEPS = tuple(range(100, 1000, 100))
PATCH_SIZES = (3, 5, 7, 9, 11, 15, 21)


def search_machine(evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the patch size of every timestep by that timestep's own LDS; then which timesteps, and their weighting.

    Timesteps are those of ``options``: :data:`TIMESTEPS`, or the caller's. They are added from the best one down, as long as
    each raises the LDS.
    """
    alone = [
        max(((evaluate(_together([(timestep, size)])), timestep, size) for size in PATCH_SIZES), key=lambda found: found[0])
        for timestep in sorted(set(options["timesteps"]))
    ]  # fmt: skip
    best, best_lds = {}, -2.0
    for weighting in ("epsilon", "uniform"):
        chosen: list[tuple[int, int]] = []
        lds = -2.0
        for _, timestep, size in sorted(alone, key=lambda found: -found[0]):
            trial = evaluate({**_together([*chosen, (timestep, size)]), "timestep_weighting": weighting})
            if trial > lds:
                chosen, lds = [*chosen, (timestep, size)], trial
        if lds > best_lds:
            best, best_lds = {**_together(chosen), "timestep_weighting": weighting}, lds
    return best


def _together(parts: list[tuple[int, int]]) -> dict[str, Any]:
    parts = sorted(parts)
    return {"timesteps": [timestep for timestep, _ in parts], "patch_size": [size for _, size in parts]}
