"""Seeds by named axis.

Every random choice takes its seed from the names of what varies (setting, subset, seed index, sample id, timestep, …)
and never from the order of calls, so the number of workers, the batch size and resuming cannot change a result.
"""

from __future__ import annotations

import hashlib


def derive_seed(*axes: int | str) -> int:
    """Return a seed in ``[0, 2**63)`` that depends on the values and types of ``axes`` alone.

    ``derive_seed(42, "training", "subset", 3)`` is the same number in every process and on every machine.
    """
    text = "\x1f".join(f"{type(axis).__name__}:{axis}" for axis in axes)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
