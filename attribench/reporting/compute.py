"""What more compute buys: sweeps over how many timesteps and noise draws a method averages, by their cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from attribench.records.lds import CostRecord, MeasuredLDS
from attribench.records.sweep import SweepRecord
from attribench.reporting.formats import MISSING, NOTHING, Column, Table, duration
from attribench.reporting.tables import disturbed, preset_notes
from attribench.settings import QUERY_SETS

#: Options of methods that buy precision with time.
COMPUTE_OPTIONS = ("num_timesteps", "timesteps", "noise_draws")

#: A setting has converged when its LDS × 100 on validation queries is no more than this below the method's best,
#: and a more expensive one was tried.
TOLERANCE = 1.0


@dataclass(frozen=True)
class Setting:
    """A method at one setting.

    Attributes:
        method: the row's name.
        text: the options that were varied, as ``num_timesteps=100``, and any others that tell settings of the method apart.
        options: all of them.
        tuned_on: which data the options that were not varied were chosen on; empty for none.
        seconds: a query, with its share of the preparation.
        others_share: of the machine, which others took meanwhile; None if that is not known.
        results: by query set.
    """

    method: str
    text: str
    options: Mapping[str, Any]
    tuned_on: str
    seconds: float
    others_share: float | None
    results: dict[str, MeasuredLDS]


@dataclass(frozen=True)
class Comparison:
    """Sweeps of one data set, setting and ground truth.

    Attributes:
        first: one of them, for what all share.
        settings: of each method, the quickest first.
    """

    first: SweepRecord
    settings: dict[str, list[Setting]]

    @property
    def query_sets(self) -> list[str]:
        """Those that any setting has results on, in the order tables show them."""
        settings = [setting for rows in self.settings.values() for setting in rows]
        return [name for name in QUERY_SETS if any(name in setting.results for setting in settings)]

    def converged(self, method: str) -> Setting | None:
        """The quickest setting of a method whose LDS is within :data:`TOLERANCE` of its best.

        On validation queries, or on the generated ones where it has no other results. None where that is the most expensive
        one that was tried: what more compute would do is not known.
        """
        settings = self.settings[method]
        name = next(name for name in QUERY_SETS if any(name in setting.results for setting in settings))
        found = [(setting, setting.results[name].lds) for setting in settings if name in setting.results]
        best = max(lds for _, lds in found)
        quickest = next(setting for setting, lds in found if 100 * (best - lds) <= TOLERANCE)
        return None if quickest is found[-1][0] else quickest

    @property
    def open_ended(self) -> list[str]:
        """The methods that have not converged within what was tried."""
        return [method for method in self.settings if self.converged(method) is None]

    @property
    def disturbed_note(self) -> list[str]:
        """Which times were taken beside other work, in a sentence; nothing if none were, as far as is known."""
        shares = {
            f"{method} {setting.text}": setting.others_share
            for method, settings in self.settings.items()
            for setting in settings
        }
        found = disturbed(shares)
        return (
            [f"Times were taken while others used part of the machine's CPUs, and are too long: {found}."]
            if found
            else []
        )

    @property
    def open_note(self) -> str:
        """Which methods have not converged, in a sentence; empty if all have."""
        if not self.open_ended:
            return ""
        return f"Not converged within what was tried: {', '.join(self.open_ended)}."


def comparisons(sweeps: Sequence[SweepRecord]) -> list[Comparison]:
    """The sweeps over :data:`COMPUTE_OPTIONS` whose cost is known, those together that may be compared."""
    settings_of: dict[tuple[str, str, str], list[list[SweepRecord]]] = {}
    for sweep in sweeps:
        if sweep.vary in COMPUTE_OPTIONS and sweep.series_option in ("", *COMPUTE_OPTIONS):
            groups = settings_of.setdefault((sweep.dataset, sweep.preset, sweep.setting_hash), [])
            group = next((group for group in groups if all(sweep.same_truth(other) for other in group)), None)
            if group is None:
                groups.append([sweep])
            else:
                group.append(sweep)
    found = []
    for group in (group for groups in settings_of.values() for group in groups):
        settings: dict[str, list[Setting]] = {}
        for sweep in group:
            for setting in _settings(sweep):
                if setting.options not in [other.options for other in settings.setdefault(setting.method, [])]:
                    settings[setting.method].append(setting)
        ordered = {
            name: sorted(_told_apart(rows), key=lambda row: row.seconds)
            for name, rows in sorted(settings.items())
            if rows
        }
        if ordered:
            found.append(Comparison(group[0], ordered))
    return found


def compute_table(comparison: Comparison) -> Table:
    """A row a setting: what it costs a query, and the LDS on each query set; what has converged is in bold."""
    columns = [Column("method"), Column("setting"), *(Column("LDS×100 [95 %]", group=name) for name in QUERY_SETS)]
    columns += [Column("a query"), Column("tuned on", "note")]
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    rules: set[int] = set()
    for method, settings in comparison.settings.items():
        rules.add(len(rows))
        converged = comparison.converged(method)
        for setting in settings:
            if setting is converged:
                bold |= {(len(rows), column) for column in range(len(columns))}
            lds = [setting.results[name].text if name in setting.results else MISSING for name in QUERY_SETS]
            rows.append([method, setting.text, *lds, duration(setting.seconds), setting.tuned_on or NOTHING])
    first = comparison.first
    said = [
        "A query: seconds on the machine of the records, with its share of the preparation. In bold: the quickest setting "
        f"whose LDS×100 on validation queries (on generated ones, for a method that is not defined on others) is within "
        f"{TOLERANCE:g} of the method's best: there it has converged. "
        "No row is in bold where that is the most expensive setting tried.",
        *([comparison.open_note] if comparison.open_ended else []),
        *comparison.disturbed_note,
        *preset_notes(first),
    ]
    return Table(
        f"{first.title}: compute against quality", said, columns, rows, frozenset(bold), frozenset(rules - {0})
    )


def _settings(sweep: SweepRecord) -> Iterator[Setting]:
    for point in sweep.points:
        if point.cost is not None and any(name in point.results for name in QUERY_SETS):
            shown = [(sweep.vary, point.value), *([(sweep.series_option, point.series)] if sweep.series_option else [])]
            text = ", ".join(f"{name}={_short(value)}" for name, value in sorted(shown))
            options, seconds = {**sweep.options, **dict(shown)}, _seconds(point.cost, sweep)
            yield Setting(sweep.method, text, options, sweep.tuned_on, seconds, point.cost.others_share, point.results)


def _told_apart(settings: Sequence[Setting]) -> list[Setting]:
    """With what differs between those of one text added to it: sweeps of several files may differ in what none varied."""
    found = []
    for setting in settings:
        same = [other for other in settings if other.text == setting.text]
        differ = [
            name for name, value in setting.options.items() if any(other.options.get(name) != value for other in same)
        ]
        added = [f"{name}={_short(setting.options[name])}" for name in sorted(differ)]
        found.append(replace(setting, text=", ".join([setting.text, *added])))
    return found


def _seconds(cost: CostRecord, sweep: SweepRecord) -> float:
    queries = sum(sweep.num_queries.values())
    return cost.prepare_seconds / max(queries, 1) + cost.seconds_per_query


def _short(value: Any) -> str:
    """A list of evenly spaced timesteps by their number and range."""
    numbers = isinstance(value, list) and len(value) > 2 and all(isinstance(one, int) for one in value)
    if numbers and len({later - one for one, later in pairwise(value)}) == 1:
        return f"{len(value)} of {value[0]}…{value[-1]}"
    return str(value)
