"""Everything under a results folder that figures and the page are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attribench.errors import AttribenchError
from attribench.records.attributability import AttributabilityRecord, load_attributability
from attribench.records.counterfactual import CounterfactualRecord, groups, load_counterfactuals
from attribench.records.files import MethodRecord, load_attachment
from attribench.records.gallery import Gallery
from attribench.records.known_answers import KnownAnswers, load_known_answers
from attribench.records.lds import load_records
from attribench.records.removals import RemovalRecord, load_removals, removal_groups
from attribench.records.sweep import SweepRecord, load_sweeps
from attribench.reporting.boards import Board, boards
from attribench.reporting.compute import Comparison, comparisons
from attribench.reporting.figures import charts, pictures, removals, sizes
from attribench.reporting.retrainings import Yardstick, yardsticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


R = TypeVar("R", bound=MethodRecord)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CounterfactualGroup:
    """Counterfactual records that may be compared, with their images."""

    records: list[CounterfactualRecord]
    attachments: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure that can be drawn.

    Attributes:
        name: a path without suffix, ``dataset/setting/what``.
        caption: what it shows, in a sentence.
        draw: draws it; None where there is nothing to draw after all.
    """

    name: str
    caption: str
    draw: Callable[[], Figure | None]


@dataclass(frozen=True, eq=False)
class Draughtsman:
    """Draws figure after figure; one that cannot be drawn is remembered and does not keep the others from being drawn."""

    failed: dict[str, Exception] = field(default_factory=dict)

    def draw(self, drawing: Drawing, use: Callable[[Figure], T]) -> T | None:
        """What ``use`` makes of the figure, a file say; None where there is nothing to draw, or it could not be done."""
        try:
            figure = drawing.draw()
            return None if figure is None else use(figure)
        except Exception as error:
            self.failed[drawing.name] = error
            return None

    def check(self) -> None:
        """Tell what could not be drawn, once all the others are.

        Raises:
            AttribenchError: something; the message names figures and says why.
        """
        if not self.failed:
            return
        said = [f"{name} ({type(error).__name__}: {error})" for name, error in self.failed.items()]
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise AttribenchError(f"All figures were drawn but {len(said)}: {'; '.join(said[:3])}{more}.") from next(
            iter(self.failed.values())
        )


@dataclass(frozen=True, eq=False)
class Collection:
    """The records of a results folder, of one data set and preset or of all.

    Args:
        results: the folder.
        dataset: only this one.
        preset: only this one.
    """

    results: Path
    dataset: str | None = None
    preset: str | None = None

    @cached_property
    def boards(self) -> list[Board]:
        """Leaderboards, in order of data set and setting."""
        return boards(self._wanted(load_records(self.results)), self.results)

    @cached_property
    def counterfactuals(self) -> list[CounterfactualGroup]:
        """Counterfactual evaluations."""
        return [
            CounterfactualGroup(group, {record.method: load_attachment(record, self.results) or {} for record in group})
            for group in groups(self._wanted(load_counterfactuals(self.results)))
        ]

    @cached_property
    def known_answers(self) -> list[KnownAnswers]:
        """What methods make of questions whose answers are known; of no data set."""
        return load_known_answers(self.results)

    @cached_property
    def removals(self) -> list[list[RemovalRecord]]:
        """Grouped removals that may be compared, each with its control."""
        return removal_groups(self._wanted(load_removals(self.results)))

    @cached_property
    def sweeps(self) -> list[SweepRecord]:
        """Sweeps of options."""
        return self._wanted(load_sweeps(self.results))

    @cached_property
    def series(self) -> list[AttributabilityRecord]:
        """Attributability over numbers of train images."""
        return [
            record
            for record in load_attributability(self.results)
            if record.is_series and self.dataset in (None, record.dataset) and self.preset in (None, record.preset)
        ]

    def drawings(self) -> Iterator[Drawing]:
        """Every figure there is, each of its own name: of boards of a setting on two ground truths the second has a number."""
        names: Counter[str] = Counter()
        for drawing in self._drawings():
            names[drawing.name] += 1
            number = names[drawing.name]
            yield drawing if number == 1 else replace(drawing, name=f"{drawing.name}-{number}")

    def _drawings(self) -> Iterator[Drawing]:
        for board in self.boards:
            yield from board_drawings(board)
        for sweep in self.sweeps:
            yield sweep_drawing(sweep)
        for comparison in comparisons(self.sweeps):
            yield compute_drawing(comparison)
        for yardstick in yardsticks(self.boards, self.sweeps):
            yield retrainings_drawing(yardstick)
        for group in self.counterfactuals:
            yield from counterfactual_drawings(group)
        for rows in self.removals:
            yield removal_drawing(rows)
        for record in self.series:
            yield series_drawing(record)

    def _wanted(self, records: Sequence[R]) -> list[R]:
        return [
            record
            for record in records
            if self.dataset in (None, record.dataset) and self.preset in (None, record.preset)
        ]


def board_drawings(board: Board) -> Iterator[Drawing]:
    """The figures of a leaderboard."""
    where = folder(board.first) + (".strict" if board.first.protocol == "strict" else "")
    yield Drawing(
        f"{where}/lds",
        f"LDS of every method with its 95 % interval over queries and subsets. {board.title}.",
        partial(charts.lds_by_method, board),
    )
    if any(result.bands for record in board.records for result in record.results.values()):
        yield Drawing(
            f"{where}/noise-levels",
            "LDS on the losses at each noise level alone, from little noise to much, with 95 % intervals; scores are the same "
            "throughout.",
            partial(charts.lds_by_noise_level, board),
        )
    for name in board.query_sets:
        yield Drawing(
            f"{where}/cost-{name}",
            f"Cost against LDS on {name} queries; seconds on the machine of the records, preparation divided by the queries.",
            partial(charts.cost_against_lds, board, name),
        )
        for number in range(gallery_size(board, name)):
            yield Drawing(
                f"{where}/gallery-{name}-{number}",
                f"Proponents and opponents of a {name} query by every method, with their scores.",
                partial(pictures.gallery, board, name, number),
            )


def sweep_drawing(sweep: SweepRecord) -> Drawing:
    """The figure of a sweep."""
    series = f", a curve for each {sweep.series_option.replace('_', ' ')}" if sweep.series_option else ""
    return Drawing(
        f"{folder(sweep)}/{sweep.path.stem}",
        f"LDS of {sweep.method} against {sweep.vary.replace('_', ' ')}{series}, with 95 % intervals. Nothing is chosen here.",
        partial(charts.sweep_lines, sweep),
    )


def compute_drawing(comparison: Comparison) -> Drawing:
    """The figure of what more timesteps and noise draws buy."""
    return Drawing(
        f"{folder(comparison.first)}/compute",
        "LDS against what a query costs, for each method at several numbers of timesteps and noise draws, with 95 % intervals; "
        "filled where the LDS on validation queries comes within a point of the method's best.",
        partial(charts.compute_against_lds, comparison),
    )


def retrainings_drawing(yardstick: Yardstick) -> Drawing:
    """The figure of how many retrained models each method is worth."""
    return Drawing(
        f"{folder(yardstick.sweep)}/{yardstick.sweep.method}.retrainings",
        f"LDS of {yardstick.sweep.method} by the number of retrained models it learns from, with 95 % intervals, and where "
        "each method stands.",
        partial(charts.retrainings, yardstick),
    )


def series_drawing(record: AttributabilityRecord) -> Drawing:
    """The figure of how attributability changes with the number of train images."""
    return Drawing(
        f"{record.path.parent.name}/{record.path.stem.removesuffix('.sizes')}/attributability",
        "How much of the variance of a query's loss between models is due to which images they were trained on, and how many "
        f"validation queries respond at all, by the number of train images, with 95 % intervals. {record.title}.",
        partial(sizes.attributability_by_size, record),
    )


def removal_drawing(group: Sequence[RemovalRecord]) -> Drawing:
    """The figure of a grouped removal."""
    return Drawing(
        f"{folder(group[0])}/removals",
        "How far a group of queries moves, beyond the queries of the other groups, by how many of the train images ranked "
        "first for it are removed before training; means over groups. Bars: 95 % intervals of the difference from random "
        "removal (dashed), paired by group.",
        partial(removals.removal_curves, group),
    )


def counterfactual_drawings(group: CounterfactualGroup) -> Iterator[Drawing]:
    """The figures of a counterfactual evaluation."""
    where = folder(group.records[0])
    yield Drawing(
        f"{where}/counterfactual",
        "How far a generated image moves when its strongest proponents are removed and the model is trained again: a value "
        "a query, averaged over retraining seeds; boxes show quartiles, the control is retrained on all images.",
        partial(charts.counterfactual_boxes, group.records),
    )
    yield Drawing(
        f"{where}/counterfactual-images",
        "Generated images before and after: from the same noise, by models trained without each method's proponents, "
        "with the first of the seeds.",
        partial(pictures.before_and_after, group.records, group.attachments),
    )


def gallery_size(board: Board, query_set: str) -> int:
    """How many queries any method's gallery shows."""
    shown = (Gallery.from_tensors(tensors, f"{query_set}.gallery") for tensors in board.attachments.values())
    return max((len(gallery.queries) for gallery in shown if gallery is not None), default=0)


def folder(record: MethodRecord) -> str:
    """``dataset/setting``."""
    return record.path.parent.relative_to(record.path.parts[0]).as_posix()
