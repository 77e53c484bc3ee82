"""Which queries and subsets options may be chosen on, and which are reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attribench.computing.seeding import derive_seed
from attribench.errors import UsageError

ProtocolName = Literal["standard", "strict"]
PROTOCOLS: tuple[ProtocolName, ...] = ("standard", "strict")


@dataclass(frozen=True)
class Halves:
    """Disjoint halves of the validation queries and of the subsets, by number, each in ascending order."""

    choosing_queries: list[int]
    reporting_queries: list[int]
    choosing_subsets: list[int]
    reporting_subsets: list[int]

    @classmethod
    def of(cls, num_queries: int, num_subsets: int, seed: int) -> Halves:
        """Split at random, the same way for every method.

        Raises:
            UsageError: a half of the subsets would be fewer than 2, or of the queries empty.
        """
        if num_queries < 2 or num_subsets < 4:
            raise UsageError(
                f"The strict protocol halves {num_queries} validation queries and {num_subsets} subsets: it needs at least "
                "2 queries and 4 subsets."
            )
        first, second = _halve(num_queries, derive_seed(seed, "halves", "queries"))
        third, fourth = _halve(num_subsets, derive_seed(seed, "halves", "subsets"))
        return cls(first, second, third, fourth)


def _halve(size: int, seed: int) -> tuple[list[int], list[int]]:
    import torch

    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: size // 2]), sorted(order[size // 2 :])
