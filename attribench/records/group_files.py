"""Totals of groups of train images, as files beside an answer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from attribench.records.answers import Attributed
from attribench.store.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


def group_table(result: Attributed) -> pd.DataFrame:
    """A row a query and group: ``kind``, ``group``, ``images``, ``query``, ``total``, ``share``, ``stand_out``, ``p_value``,
    ``adjusted``.

    The query ``*`` stands for all of them together. ``share`` is of the total of all train images, missing where
    one of these scores is negative. ``stand_out`` counts the group's images that stand out by themselves.
    """
    import pandas as pd

    judgement = result.judgement
    assert judgement is not None
    rows = []
    names = [*result.queries.ids, "*"]
    found = [set(judgement.stands_out(query)) for query in range(len(result.queries))]
    for groups in judgement.groups:
        for number, (name, members) in enumerate(zip(groups.names, groups.members, strict=True)):
            for row, query in enumerate(names):
                own = found if query == "*" else [found[row]]
                rows.append(
                    (
                        groups.kind,
                        name,
                        len(members),
                        query,
                        float(groups.totals[row, number]),
                        float(groups.shares[row, number]),
                        sum(len(one & set(members)) for one in own),
                        float(groups.p_values[row, number]),
                        float(groups.adjusted[row, number]),
                    )
                )
    columns = ["kind", "group", "images", "query", "total", "share", "stand_out", "p_value", "adjusted"]
    return pd.DataFrame(rows, columns=columns)


def save_groups(result: Attributed, path: Path) -> None:
    """Write :func:`group_table` as a Parquet file, and the train images of each group as ``<name>-members.parquet``."""
    import pandas as pd

    assert result.judgement is not None
    members = pd.DataFrame(
        [
            (groups.kind, name, result.train.ids[index])
            for groups in result.judgement.groups
            for name, indices in zip(groups.names, groups.members, strict=True)
            for index in indices
        ],
        columns=["kind", "group", "train"],
    )
    for table, target in ((group_table(result), path), (members, path.with_name(f"{path.stem}-members.parquet"))):
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        atomic_write(target, buffer.getvalue())
