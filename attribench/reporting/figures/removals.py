"""How far groups of queries move, by how many train images were removed for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attribench.records.removals import MEASURES, RANDOM, RemovalRecord
from attribench.reporting.figures.style import COLOURS, MUTED, styled
from attribench.reporting.removal_tables import effects, measures_of, row_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The widest row of panels.
_ACROSS = 3


def removal_curves(group: Sequence[RemovalRecord]) -> Figure:
    """A panel a measure: contrast over the number of removed images, mean over groups.

    Bars are Student's 95 % intervals of the difference from random removal, paired by group.
    """
    from matplotlib.figure import Figure

    measures = measures_of(group)
    across = min(_ACROSS, len(measures))
    down = -(-len(measures) // across)
    with styled():
        figure = Figure(figsize=(1.2 + 3.0 * across, 0.9 + 2.6 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).flatten()
        for axes in panels[len(measures) :]:
            axes.set_axis_off()
        rows = [record for record in group if record.kind != "control"]
        colours = {
            record.method: COLOURS[number % len(COLOURS)]
            for number, record in enumerate(one for one in rows if one.kind != "random")
        }
        for axes, measure in zip(panels, measures, strict=False):
            axes.grid(True)
            axes.set_axisbelow(True)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            found = effects(group, measure)
            step = 0.012 * rows[0].sizes[-1]
            for number, record in enumerate(one for one in rows if one.method in found):
                effect = found[record.method]
                bars = [one.interval.high - one.mean for one in effect.beyond_at] or [0.0] * len(record.sizes)
                shift = (number - (len(rows) - 1) / 2) * step  # so that intervals do not lie on one another
                axes.errorbar(
                    [0, *(size + shift for size in record.sizes)],
                    [0, *effect.curve.mean(dim=0).tolist()],
                    yerr=[0, *bars],
                    color=MUTED if record.method == RANDOM else colours[record.method],
                    linestyle="--" if record.method == RANDOM else "-",
                    marker="o", markersize=3.5, capsize=2, linewidth=1.2, label=row_label(record),
                )  # fmt: skip
            axes.set(xlabel="removed train images", ylabel=MEASURES[measure][0])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        title = group[0].title
        figure.suptitle(title if len(title) < 90 else f"{title[:87]}…", fontsize=9)
    return figure
