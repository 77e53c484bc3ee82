"""What stands out of an answer: train images, and groups of them, against decoys."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of train images.

    Attributes:
        kind: ``contributor`` or ``cluster`` (of near duplicates).
        names: one a group.
        members: the train images of each, by number.
        totals: sums of scores, float64 ``(num_queries + 1, num_groups)``; the last row is of all queries together.
        shares: the totals as shares of that of all train images, likewise; NaN where scores may be negative, and shares
            mean nothing.
        p_values: of the test on sums, likewise.
        adjusted: the same, adjusted for the number of groups.
    """

    kind: str
    names: list[str]
    members: list[list[int]]
    totals: Tensor
    shares: Tensor
    p_values: Tensor
    adjusted: Tensor


@dataclass(frozen=True, eq=False)
class Judgement:
    """Which train images stand out from decoys.

    Attributes:
        decoys: what they are, in words.
        num_decoys: how many.
        rate: the false discovery rate that is allowed.
        p_values: float64 ``(num_queries, num_train)``, see :func:`attribench.metrics.decoys.decoy_p_values`.
        adjusted: the same, adjusted for the number of train images.
        groups: by contributor and by cluster, as asked for and found.
    """

    decoys: str
    num_decoys: int
    rate: float
    p_values: Tensor
    adjusted: Tensor
    groups: list[Groups] = field(default_factory=list)

    def stands_out(self, query: int) -> list[int]:
        """The train images that stand out for a query, by number."""
        found: list[int] = (self.adjusted[query] <= self.rate).nonzero().flatten().tolist()
        return found

    def verdict(self, query: int) -> str:
        """``3 images stand out at 5 % false discovery``, or that nothing does."""
        count, rate = len(self.stands_out(query)), f"{100 * self.rate:g} % false discovery"
        if not count:
            return f"Nothing here stands out from the decoys at {rate}."
        return f"{count} image{'s stand' if count > 1 else ' stands'} out from the decoys at {rate}."
