"""How attributability changes with the number of train images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attribench.records.attributability import AttributabilityRecord
from attribench.reporting.figures.style import COLOURS, MUTED, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attributability_by_size(record: AttributabilityRecord) -> Figure:
    """The share of a loss's variance that is due to the images, and of the queries that respond, with 95 % intervals."""
    from matplotlib.figure import Figure

    sizes = [point.num_train for point in record.points]
    results = [point.results[0] for point in record.points]
    with styled():
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        drawn = (
            (
                "share of the variance due to the images",
                [(one.share, one.interval) for one in results],
                "o",
                COLOURS[0],
            ),
            (
                "queries that respond, estimated",
                [(one.responding, one.responding_interval) for one in results],
                "s",
                COLOURS[1],
            ),
        )
        for label, values, marker, colour in drawn:
            shown = [100 * value for value, _ in values]
            below = [max(0.0, 100 * (value - interval.low)) for value, interval in values]
            above = [max(0.0, 100 * (interval.high - value)) for value, interval in values]
            axes.errorbar(
                sizes, shown, yerr=[below, above], marker=marker, markersize=4, color=colour, capsize=2.5, linewidth=1.3,
                label=label,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.set(xlabel="train images", ylabel="per cent")
        axes.legend(loc="best")
        title = record.title
        figure.suptitle(title if len(title) < 70 else f"{title[:67]}…", fontsize=9)
    return figure
