"""What a page says of the train images, and groups of them, that stand out from decoys."""

from __future__ import annotations

import math
from typing import Any

from attribench.records.answers import Attributed
from attribench.records.judgement import Groups, Judgement

#: Groups of a kind in a table of a query.
_MOST_GROUPS = 8


def summary(result: Attributed) -> str:
    """What was found, in a sentence or two; empty without decoys."""
    judgement = result.judgement
    if judgement is None:
        return ""
    counts = [len(judgement.stands_out(query)) for query in range(len(result.queries))]
    some, rate = sum(count > 0 for count in counts), f"{100 * judgement.rate:g} % false discovery"
    found = (
        f"Train images stand out for {some} of {len(counts)} queries, {sum(counts)} in all, at {rate}."
        if some
        else f"Nothing here stands out, for any query, at {rate}."
    )
    return f"{found} Decoys, scored beside the train images: {judgement.decoys}."


def overall(result: Attributed) -> list[dict[str, Any]]:
    """The groups' totals over all queries."""
    return [] if result.judgement is None else _tables(result.judgement, len(result.queries))


def of_query(result: Attributed, query: int) -> dict[str, Any]:
    """The verdict on a query, and the groups' totals; nothing without decoys."""
    judgement = result.judgement
    if judgement is None:
        return {"verdict": "", "found": False, "groups": []}
    return {
        "verdict": judgement.verdict(query),
        "found": bool(judgement.stands_out(query)),
        "groups": _tables(judgement, query),
    }


def mark(judgement: Judgement | None, query: int, index: int) -> dict[str, Any]:
    """What is said of one train image."""
    if judgement is None:
        return {"p_value": "", "stands_out": False}
    return {
        "p_value": f"{float(judgement.p_values[query, index]):.2g}",
        "stands_out": bool(judgement.adjusted[query, index] <= judgement.rate),
    }


def _tables(judgement: Judgement, row: int) -> list[dict[str, Any]]:
    return [_table(judgement, groups, row) for groups in judgement.groups]


def _table(judgement: Judgement, groups: Groups, row: int) -> dict[str, Any]:
    """The groups with the lowest p-values; of equal ones those with the largest totals."""
    found = [judgement.stands_out(query) for query in range(len(judgement.p_values))]
    if row < len(found):
        found = [found[row]]
    p_values, totals = groups.p_values[row].tolist(), groups.totals[row].tolist()
    order = sorted(range(len(groups.names)), key=lambda number: (p_values[number], -totals[number]))
    return {
        "kind": "Contributors" if groups.kind == "contributor" else "Near duplicates",
        "left_out": max(0, len(order) - _MOST_GROUPS),
        "rows": [
            {
                "name": groups.names[number],
                "images": len(groups.members[number]),
                "total": f"{totals[number]:.4g}",
                "share": _percent(float(groups.shares[row, number])),
                "p_value": f"{p_values[number]:.2g}",
                "stand_out": sum(len(set(one) & set(groups.members[number])) for one in found),
                "stands_out": bool(groups.adjusted[row, number] <= judgement.rate),
            }
            for number in order[:_MOST_GROUPS]
        ],
    }


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"
