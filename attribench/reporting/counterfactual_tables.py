"""Counterfactual evaluations as tables: functions of records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from attribench.metrics.comparison import PairedComparison, compare_values, tied_with_best
from attribench.metrics.counterfactual import median_interval
from attribench.records.counterfactual import CONTROL, CounterfactualRecord, groups
from attribench.reporting.formats import MISSING, NOTHING, Column, Table
from attribench.reporting.tables import ACCESS, preset_notes, train_images

#: Every pair of rows, compared.
Comparisons = dict[tuple[str, str], PairedComparison]

#: Measure → its name, its digits, and whether a larger value means a larger effect of the removal.
MEASURES = {"l2": ("pixel L2", 2, True), "clip": ("CLIP cosine", 3, False)}


def counterfactual_tables(records: Sequence[CounterfactualRecord]) -> list[Table]:
    """One table for each group of records that may be compared."""
    return [_table(group) for group in groups(records)]


def compared(group: Sequence[CounterfactualRecord], measure: str) -> Comparisons:
    """Every pair of rows of a group, the control among them, on the same queries."""
    values = {record.method: found for record in group if (found := record.per_query(measure)) is not None}
    return compare_values(values)


def strongest(group: Sequence[CounterfactualRecord], measure: str, comparisons: Comparisons) -> set[str]:
    """The method whose removals move images furthest, and those not distinguishable from it; the control is none."""
    larger = MEASURES[measure][2]
    means = {
        record.method: float(found.mean() if larger else -found.mean())
        for record in group
        if not record.is_control and (found := record.per_query(measure)) is not None
    }
    return tied_with_best(means, comparisons)


def _table(group: list[CounterfactualRecord]) -> Table:
    measures = [name for name in MEASURES if any(record.per_query(name) is not None for record in group)]
    columns = [Column("removed by")]
    for measure in measures:
        name = MEASURES[measure][0]
        columns += [Column("median [95 %]", group=name), Column("minus control [95 %]", group=name)]
    columns += [Column("looks at"), Column("tuned on", "note")]
    order = sorted(group, key=lambda record: (not record.is_control, -_mean(record)))
    comparisons = {measure: compared(group, measure) for measure in measures}
    rows = [_row(record, comparisons) for record in order]
    best = {measure: strongest(group, measure, comparisons[measure]) for measure in measures}
    bold = {
        (number, 1 + 2 * index)
        for number, record in enumerate(order)
        for index, measure in enumerate(measures)
        if record.method in best[measure]
    }
    rules = frozenset({1}) if order[0].is_control and len(order) > 1 else frozenset[int]()
    return Table(f"{group[0].title}: counterfactual", _notes(group), columns, rows, frozenset(bold), rules)


def _mean(record: CounterfactualRecord) -> float:
    values = record.per_query("l2")
    return float("-inf") if values is None else float(values.mean())


def row_label(record: CounterfactualRecord) -> str:
    """What a row's retrainings leave out."""
    return "nothing (control)" if record.is_control else record.method


def _row(record: CounterfactualRecord, comparisons: Mapping[str, Comparisons]) -> list[str]:
    cells = [row_label(record)]
    for measure, found in comparisons.items():
        values, digits = record.per_query(measure), MEASURES[measure][1]
        cells += [_median(values, digits), _difference(record, found, digits)]
    if record.is_control:
        return [*cells, MISSING, MISSING]
    return [*cells, ACCESS[record.access], record.tuned_on or NOTHING]


def _median(values: NDArray[np.float64] | None, digits: int) -> str:
    if values is None:
        return MISSING
    interval = median_interval(values)
    return f"{np.median(values):.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _difference(record: CounterfactualRecord, comparisons: Comparisons, digits: int) -> str:
    for (first, second), found in comparisons.items():
        if {first, second} == {record.method, CONTROL} and not record.is_control:
            sign = 1 if first == record.method else -1
            low, high = sorted((sign * found.interval.low, sign * found.interval.high))
            return f"{sign * found.difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return MISSING


def _notes(group: Sequence[CounterfactualRecord]) -> list[str]:
    first = group[0]
    removed = max(record.num_removed for record in group)
    said = [
        f"{train_images(first)}; for each of {len(first.query_ids)} generated queries the {removed} highest-scored ones are "
        f"removed, a model is trained without them from scratch with each of {len(first.train_seeds)} seed(s), and the query "
        "is generated again from its own noise; a query's value is the mean over seeds.",
        "Median over queries with its 95 % bootstrap interval over queries; difference of means from the control, which is "
        "retrained on all train images with other seeds, with Student's 95 % interval, paired by query.",
        "Bold: the strongest effect and those not distinguishable from it (paired t and Wilcoxon's test do not both reject "
        "at 5 %, adjusted by Holm over all pairs).",
    ]
    if first.settings["counterfactual"]["target_seed"]:
        said.append("The first retraining without proponents has the target model's own seed, as published.")
    missing = sorted({record.clip_missing for record in group if record.clip_missing})
    if missing:
        said.append("There is no CLIP cosine: CLIP's weights were not at hand.")
    return said + preset_notes(first)
