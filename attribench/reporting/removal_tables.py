"""Grouped removals as tables: functions of records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attribench.metrics.comparison import holm
from attribench.metrics.removals import OverGroups, contrasts, mean_height, over_groups
from attribench.records.removals import ASKED, KNOWN, MEASURES, RANDOM, RemovalRecord, removal_groups
from attribench.reporting.formats import MISSING, NOTHING, Column, Table
from attribench.reporting.tables import ACCESS, preset_notes, train_images


@dataclass(frozen=True, eq=False)
class Effect:
    """What a row does to its groups, by one measure.

    Attributes:
        curve: contrasts, ``(num_groups, num_sizes)``.
        height: the mean height of the curve, mean over groups.
        beyond: the mean height minus random removal's, paired by group; None for that itself, or where it is not there.
        beyond_at: the same of the curve at each number of removed images; empty likewise.
    """

    curve: Tensor
    height: float
    beyond: OverGroups | None
    beyond_at: list[OverGroups]


def removal_tables(records: Sequence[RemovalRecord]) -> list[Table]:
    """One table for each group of records that may be compared and has a control."""
    return [_table(group) for group in removal_groups(records)]


def effects(group: Sequence[RemovalRecord], measure: str) -> dict[str, Effect]:
    """What every row but the control does, by name."""
    control = group[0].measures.get(measure)
    if control is None:
        return {}
    base_group, base_controls = (values[:, 0] for values in control.tensors())
    curves = {
        record.method: (contrasts(*record.measures[measure].tensors(), base_group, base_controls), record.sizes)
        for record in group[1:]
        if measure in record.measures
    }
    heights = {name: mean_height(curve, sizes) for name, (curve, sizes) in curves.items()}

    def effect(name: str) -> Effect:
        curve, height = curves[name][0], heights[name]
        if name == RANDOM or RANDOM not in curves:
            return Effect(curve, height.mean().item(), None, [])
        at = [over_groups(column) for column in (curve - curves[RANDOM][0]).T]
        return Effect(curve, height.mean().item(), over_groups(height - heights[RANDOM]), at)

    return {name: effect(name) for name in curves}


def row_label(record: RemovalRecord) -> str:
    """What is removed, in words."""
    return {RANDOM: "random, as many", KNOWN: "what is right"}.get(record.method, record.method)


def measures_of(group: Sequence[RemovalRecord]) -> list[str]:
    """The measures of a group, in order."""
    return [name for name in MEASURES if any(name in record.measures for record in group)]


def _table(group: list[RemovalRecord]) -> Table:
    measures = measures_of(group)
    found = {measure: effects(group, measure) for measure in measures}
    columns = [Column("removed")]
    for measure in measures:
        name = MEASURES[measure][0]
        columns += [Column("mean height", group=name), Column("minus random [95 %]", group=name)]
    columns += [Column("looks at"), Column("tuned on", "note")]
    first = found[measures[0]] if measures else {}
    order = sorted(
        group[1:],
        key=lambda record: (record.kind == "random", record.kind != "known", -first[record.method].height),
    )
    rows = [_row(record, found) for record in order]
    better = {measure: _better(effect) for measure, effect in found.items()}
    bold = {
        (number, 2 + 2 * index)
        for number, record in enumerate(order)
        for index, measure in enumerate(measures)
        if record.method in better[measure]
    }
    rules = frozenset(number for number, record in enumerate(order) if record.kind == "random" and number)
    title = f"{group[0].title}: removed for {ASKED[group[0].asked]}"
    return Table(title, _notes(group), columns, rows, frozenset(bold), rules)


def _row(record: RemovalRecord, found: dict[str, dict[str, Effect]]) -> list[str]:
    cells = [row_label(record)]
    for measure, by_name in found.items():
        effect, digits = by_name.get(record.method), MEASURES[measure][1]
        cells += [
            MISSING if effect is None else f"{effect.height:+.{digits}f}",
            MISSING if effect is None or effect.beyond is None else _text(effect.beyond, digits),
        ]
    if record.kind != "method":
        return [*cells, MISSING, MISSING]
    return [*cells, ACCESS[record.access], record.tuned_on or NOTHING]


def _text(found: OverGroups, digits: int) -> str:
    low, high = found.interval.low, found.interval.high
    return f"{found.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}], p = {found.p_value:.2g}"


def _better(by_name: dict[str, Effect]) -> set[str]:
    """Rows that move their groups further than random removal does, at 5 %: methods after Holm, what is right by itself."""
    tested = {name: effect.beyond for name, effect in by_name.items() if effect.beyond is not None}
    methods = [name for name in tested if name != KNOWN]
    values = dict(zip(methods, holm([tested[name].p_value for name in methods]), strict=True))
    return {name for name, one in tested.items() if values.get(name, one.p_value) < 0.05 and one.mean > 0}


def _notes(group: Sequence[RemovalRecord]) -> list[str]:
    first, example = group[0], group[-1]
    sizes = " / ".join(map(str, example.sizes))
    said = [
        f"{train_images(first)}; {len(first.groups)} {ASKED[first.asked]}, of {len(first.groups[0])} queries each. For each "
        f"group the first {sizes} train images are removed and a model is trained without them from scratch, with each of "
        f"{len(first.train_seeds)} seed(s).",
        "A value is how far the group's queries are from where they were, beyond where retraining on everything with the same "
        "seed puts them, minus the same for the queries of the other groups. The mean height is the area under its curve over "
        "the number of removed images, divided by the largest; the mean over groups.",
        "Minus random: the same minus that of as many random images, other ones for every group and seed, paired by group, "
        "with Student's 95 % interval and p of the paired t test; what the retraining on everything does to a group cancels. "
        "Bold: above 0 at 5 %, methods adjusted by Holm over those of a measure. Groups are the sample: "
        f"{len(first.groups)} of them.",
    ]
    left = [f"{MEASURES[name][0]} ({reason.partition(':')[0].rstrip('.')})" for name, reason in first.missing.items()]
    if left:
        said.append(f"Not measured: {'; '.join(left)}.")
    return said + preset_notes(first)
