"""Figures of leaderboards, sweeps and counterfactuals, a function each, from records alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attribench.records.counterfactual import CounterfactualRecord
from attribench.records.files import MethodRecord
from attribench.records.lds import Record
from attribench.records.sweep import SweepRecord
from attribench.reporting.boards import Board
from attribench.reporting.compute import Comparison
from attribench.reporting.counterfactual_tables import MEASURES
from attribench.reporting.figures.style import ACCESS_COLOURS, ACCESS_MARKERS, COLOURS, MUTED, styled
from attribench.reporting.retrainings import Yardstick
from attribench.settings import QUERY_SETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_LOOKS_AT = {
    "DATA": "data alone",
    "MODEL": "the model",
    "CHECKPOINTS": "checkpoints",
    "RETRAINED": "retrained models",
    "UNKNOWN": "unknown",
}

#: Names of methods beside each other below a figure.
_NAMES_ACROSS = 3


def lds_by_method(board: Board) -> Figure:
    """Every method's LDS with its 95 % interval, a panel a query set; the noise ceiling as a line with its interval."""
    records = board.records
    with styled():
        figure = _figure(7.2, 1.1 + 0.27 * len(records))
        panels = figure.subplots(1, len(board.query_sets), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, board.query_sets, strict=True):
            _grid(axes, "x")
            axes.axvline(0, color=MUTED, linewidth=0.8)
            for position, record in enumerate(reversed(records)):
                result = record.results.get(name)
                if result is None:
                    continue
                low, high = 100 * (result.lds - result.low), 100 * (result.high - result.lds)
                axes.errorbar(
                    100 * result.lds, position, xerr=[[low], [high]], fmt=ACCESS_MARKERS[record.access], markersize=5,
                    color=ACCESS_COLOURS[record.access], capsize=2.5, linewidth=1.3,
                )  # fmt: skip
            ceiling = board.ceiling(name)
            if ceiling is not None:
                axes.axvspan(100 * ceiling.low, 100 * ceiling.high, color=MUTED, alpha=0.15, linewidth=0)
                axes.axvline(100 * ceiling.lds, color=MUTED, linestyle="--", linewidth=1)
            axes.set(xlabel="LDS × 100", title=f"{name} queries", ylim=(-0.6, len(records) - 0.4))
        panels[0].set_yticks(range(len(records)), [record.method for record in reversed(records)])
        _access_legend(
            figure, records, "noise ceiling" if any(board.ceiling(name) for name in board.query_sets) else ""
        )
        figure.suptitle(_title(board.first), fontsize=9)
    return figure


def lds_by_noise_level(board: Board) -> Figure:
    """Every method's LDS on the losses of each band of timesteps, with 95 % intervals; a panel a query set."""
    shown = [record for record in board.records if any(result.bands for result in record.results.values())]
    with styled():
        # The names of many methods take more room than there is beside the panels.
        figure = _figure(7.2, 3.3 + 0.17 * math.ceil((len(shown) + 1) / _NAMES_ACROSS))
        panels = figure.subplots(1, len(board.query_sets), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, board.query_sets, strict=True):
            _grid(axes, "y")
            axes.axhline(0, color=MUTED, linewidth=0.8)
            ceilings: dict[float, float] = {}
            for number, record in enumerate(shown):
                bands = record.results[name].bands if name in record.results else []
                middle = np.array([(band.first + band.last - 1) / 2 for band in bands])
                lds, low, high = (
                    100 * np.array([getattr(band, what) for band in bands]) for what in ("lds", "low", "high")
                )
                colour = _series_colour(number, len(shown))
                axes.plot(middle, lds, "o-", color=colour, markersize=3, linewidth=1.2, label=record.method)
                axes.fill_between(middle, low, high, color=colour, alpha=0.15 if len(shown) < 4 else 0.05, linewidth=0)
                ceilings |= {at: 100 * band.ceiling.lds for at, band in zip(middle, bands, strict=True) if band.ceiling}
            axes.plot(list(ceilings), list(ceilings.values()), "--", color=MUTED, linewidth=1, label="noise ceiling")
            axes.set(xlabel="timestep of the losses", title=f"{name} queries")
        panels[0].set_ylabel("LDS × 100")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=_NAMES_ACROSS)
        figure.suptitle(_title(board.first), fontsize=9)
    return figure


def cost_against_lds(board: Board, query_set: str = "generation") -> Figure:
    """What a method costs, all its work divided by the queries scored, against its LDS with the 95 % interval."""
    with styled():
        figure = _figure(7.2, 3.6)
        axes = figure.subplots()
        _grid(axes, "both")
        points = {}
        for record in board.records:
            result = record.results.get(query_set)
            seconds = seconds_per_query(record)
            if result is None or seconds is None:
                continue
            low, high = 100 * (result.lds - result.low), 100 * (result.high - result.lds)
            axes.errorbar(
                seconds, 100 * result.lds, yerr=[[low], [high]], fmt=ACCESS_MARKERS[record.access], markersize=5,
                color=ACCESS_COLOURS[record.access], capsize=2, linewidth=1,
            )  # fmt: skip
            points[record.method] = (seconds, 100 * result.lds)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        _name_at_the_side(axes, points)
        axes.set(xlabel="seconds a query, preparation included", ylabel=f"LDS × 100, {query_set} queries")
        _access_legend(figure, [record for record in board.records if record.cost is not None])
        figure.suptitle(_title(board.first), fontsize=9)
    return figure


def _plain_numbers(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis as ``0.001``: matplotlib's own powers of ten are TeX, which is off."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""  # it knows which ticks have room for a label

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain(labelOnlyBase=False))


def _name_at_the_side(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names in a column right of the axes, each led to its point: beside points of similar methods they would overlap."""
    from scipy.optimize import isotonic_regression

    names = sorted(points, key=lambda name: points[name][1])
    if not names:
        return
    low, high = axes.get_ylim()
    gap = 1 / max(16, len(names) - 1)  # of the axes' height
    wanted = [(points[name][1] - low) / (high - low) for name in names]
    # The heights nearest to the wanted ones that are in the same order, at least a gap apart, and beside the axes.
    steps = gap * np.arange(len(names))
    heights = np.clip(isotonic_regression(np.array(wanted) - steps).x, 0, 1 - steps[-1]) + steps
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name, points[name], xytext=(1.04, height), textcoords="axes fraction", fontsize=7, va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def seconds_per_query(record: Record) -> float | None:
    """Preparation divided by the queries scored, and scoring; at least a microsecond, for a logarithmic axis.

    None where the cost is unknown.
    """
    if record.cost is None:
        return None
    queries = sum(len(result.per_query) for result in record.results.values())
    return max(1e-6, record.cost.prepare_seconds / max(queries, 1) + record.cost.seconds_per_query)


def sweep_lines(record: SweepRecord) -> Figure:
    """The LDS against the option that was varied, a curve a series, with 95 % intervals; a panel a query set."""
    with styled():
        figure = _figure(7.2, 3.0)
        query_sets = [name for name in QUERY_SETS if any(name in point.results for point in record.points)]
        panels = figure.subplots(1, len(query_sets), sharey=True, squeeze=False)[0]
        series = list({str(point.series): point.series for point in record.points}.values())
        for axes, name in zip(panels, query_sets, strict=True):
            _grid(axes, "y")
            for number, which in enumerate(series):
                points = [point for point in record.points if point.series == which and name in point.results]
                positions = _positions([point.value for point in points], axes)
                lds = np.array([100 * point.results[name].lds for point in points])
                low = np.array([100 * point.results[name].low for point in points])
                high = np.array([100 * point.results[name].high for point in points])
                colour = _series_colour(number, len(series))
                axes.plot(
                    positions,
                    lds,
                    "o-",
                    color=colour,
                    markersize=3.5,
                    linewidth=1.3,
                    label=_series_label(record, which),
                )
                axes.fill_between(
                    positions, low, high, color=colour, alpha=0.15 if len(series) < 4 else 0.07, linewidth=0
                )
            axes.set(xlabel=_axis_label(record), title=f"{name} queries")
        panels[0].set_ylabel("LDS × 100")
        if len(series) > 1:
            panels[-1].legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), title=record.series_option.replace("_", " ")
            )
        figure.suptitle(f"{record.method}: {_title(record)}", fontsize=9)
    return figure


def compute_against_lds(comparison: Comparison) -> Figure:
    """The LDS of each method against the seconds a query costs, a point a setting; where it has converged, filled."""
    with styled():
        figure = _figure(7.2, 3.6)
        panels = figure.subplots(1, len(comparison.query_sets), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, comparison.query_sets, strict=True):
            _grid(axes, "both")
            for number, (method, settings) in enumerate(comparison.settings.items()):
                shown = [setting for setting in settings if name in setting.results]
                found = [setting.results[name] for setting in shown]
                seconds, lds = [max(s.seconds, 1e-6) for s in shown], [100 * result.lds for result in found]
                errors = [[100 * (r.lds - r.low) for r in found], [100 * (r.high - r.lds) for r in found]]
                colour, converged = _series_colour(number, len(comparison.settings)), comparison.converged(method)
                axes.errorbar(
                    seconds, lds, yerr=errors, fmt="o-", color=colour, label=textwrap.fill(method, 36), markersize=4,
                    linewidth=1, capsize=2, markerfacecolor="white",
                )  # fmt: skip
                for second, value, setting in zip(seconds, lds, shown, strict=True):
                    if setting is converged:
                        axes.plot([second], [value], "o", color=colour, markersize=5, zorder=5)
            axes.set_xscale("log")
            _plain_numbers(axes.xaxis)
            axes.set(xlabel="seconds a query, preparation included", title=f"{name} queries")
        panels[0].set_ylabel("LDS × 100")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.suptitle("\n".join([_title(comparison.first), *textwrap.wrap(comparison.open_note, 90)]), fontsize=9)
    return figure


def retrainings(yardstick: Yardstick) -> Figure:
    """The LDS of what learns from retrained models, by their number; a line a method at its LDS."""
    measured = yardstick.measured
    with styled():
        figure = _figure(7.2, max(3.4, 1.2 + 0.17 * len(measured)))
        panels = figure.subplots(1, len(yardstick.query_sets), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, yardstick.query_sets, strict=True):
            _grid(axes, "y")
            curve = yardstick.curve(name)
            for record in measured:
                if name in record.results:
                    axes.axhline(
                        100 * record.results[name].lds, color=ACCESS_COLOURS[record.access], linewidth=0.8, alpha=0.7
                    )
            errors = [[100 * (r.lds - r.low) for _, r in curve], [100 * (r.high - r.lds) for _, r in curve]]
            axes.errorbar(
                [number for number, _ in curve], [100 * result.lds for _, result in curve], yerr=errors, fmt="v-",
                color=ACCESS_COLOURS["RETRAINED"], markersize=4, linewidth=1.3, capsize=2,
            )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks([number for number, _ in curve], [str(number) for number, _ in curve], minor=False)
            axes.minorticks_off()
            axes.set(xlabel="retrained models it learns from", title=f"{name} queries")
        panels[0].set_ylabel("LDS × 100")
        name = yardstick.query_sets[-1]
        shown = sorted((r for r in measured if name in r.results), key=lambda record: record.results[name].lds)
        places = _spread([100 * record.results[name].lds for record in shown], *panels[-1].get_ylim())
        for record, place in zip(shown, places, strict=True):
            panels[-1].annotate(
                record.method, (1.0, 100 * record.results[name].lds), (1.04, place),
                xycoords=panels[-1].get_yaxis_transform(), textcoords=panels[-1].get_yaxis_transform(), fontsize=6,
                va="center", color=ACCESS_COLOURS[record.access],
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": MUTED, "relpos": (0.0, 0.5)},
            )  # fmt: skip
        figure.suptitle(f"{yardstick.sweep.method}: {_title(yardstick.sweep)}", fontsize=9)
    return figure


def _spread(values: Sequence[float], low: float, high: float) -> list[float]:
    """Places for labels beside ascending values, a line of text apart, within an axis."""
    gap = (high - low) / max(18, len(values))
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + gap) if places else value)
    ceiling = high
    for number in reversed(range(len(places))):
        places[number] = ceiling = min(places[number], ceiling)
        ceiling -= gap
    return places


def counterfactual_boxes(group: Sequence[CounterfactualRecord]) -> Figure:
    """How far images move, a box a method over queries (each the mean over retraining seeds); the control first."""
    measures = [name for name in MEASURES if any(record.per_query(name) is not None for record in group)]
    with styled():
        figure = _figure(3.6 * len(measures), 1.2 + 0.34 * len(group))
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        labels = ["nothing\n(control)" if record.is_control else record.method for record in group]
        for axes, measure in zip(panels, measures, strict=True):
            _grid(axes, "x")
            positions, values, colours = [], [], []
            for number, record in enumerate(group):
                found = record.per_query(measure)
                if found is not None:
                    positions.append(len(group) - 1 - number)
                    values.append(found)
                    colours.append(MUTED if record.is_control else ACCESS_COLOURS[record.access])
            boxes = axes.boxplot(values, positions=positions, orientation="horizontal", widths=0.6, patch_artist=True)
            for box, colour in zip(boxes["boxes"], colours, strict=True):
                box.set(facecolor=colour, alpha=0.35, linewidth=0.8)
            for line in boxes["medians"]:
                line.set(color="black", linewidth=1.4)
            for points in boxes["fliers"]:
                points.set(markersize=3, markeredgewidth=0.5)
            axes.set_xlabel(
                "L2 distance to the original, pixels in [0, 1]" if measure == "l2" else "CLIP cosine to the original"
            )
        panels[0].set_yticks(range(len(group)), labels[::-1])
        figure.suptitle(_title(group[0]), fontsize=9)
    return figure


def _series_colour(number: int, count: int) -> Any:
    import matplotlib as mpl

    return COLOURS[number] if count <= len(COLOURS) - 2 else mpl.colormaps["viridis"](number / max(count - 1, 1) * 0.9)


def _positions(values: Sequence[Any], axes: Axes) -> list[float]:
    found = numeric(values)
    if found is not None and len(set(found)) == len(found):
        if len(found) <= 10:
            axes.set_xticks(found, [f"{value:g}" for value in found])
        if len(found) > 2 and min(found) > 0 and max(found) / min(found) >= 50:
            axes.set_xscale("log")
            axes.set_xticks(found, [f"{value:g}" for value in found], minor=False)
            axes.minorticks_off()
        return found
    axes.set_xticks(range(len(values)), [str(value) for value in values])
    return [float(number) for number in range(len(values))]


def _axis_label(record: SweepRecord) -> str:
    name = record.vary.replace("_", " ")
    lists = any(isinstance(point.value, list) and len(point.value) > 1 for point in record.points)
    return f"{name}, up to" if lists else name


def _series_label(record: SweepRecord, value: Any) -> str:
    return str(value[0]) if isinstance(value, list) and len(value) == 1 else str(value)


def _access_legend(figure: Figure, records: Sequence[Record], ceiling: str = "") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=ACCESS_COLOURS[access], marker=ACCESS_MARKERS[access], linestyle="", label=f"looks at {what}"
        )
        for access, what in _LOOKS_AT.items()
        if any(record.access == access for record in records)
    ]
    if ceiling:
        handles.append(Line2D([], [], color=MUTED, linestyle="--", label=ceiling))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _title(record: MethodRecord) -> str:
    return record.title if len(record.title) < 90 else f"{record.title[:87]}…"


def _grid(axes: Axes, which: Any) -> None:
    axes.grid(True, axis=which)
    axes.set_axisbelow(True)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def numeric(values: Sequence[Any]) -> list[float] | None:
    """Values as numbers on an axis: numbers as they are, lists of numbers by their last one; None for anything else."""
    found = []
    for value in values:
        last = value[-1] if isinstance(value, list) and value else value
        if isinstance(last, bool) or not isinstance(last, int | float):
            return None
        found.append(float(last))
    return found
