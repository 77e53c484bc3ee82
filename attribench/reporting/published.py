"""Published numbers, each with the source it was read from; ``configs/published.yaml`` holds them as printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

from attribench.settings import QUERY_SETS

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class PublishedMethod:
    """A row of a published table.

    Attributes:
        name: as a paper calls it; K, the timesteps of gradients, is 10 where it gives none.
        row: what our tables call the same; None if we have no such method.
        also: named configurations that are the same where they have these options: name → option → value.
        looks_at: ``"data"``, or ``"model"``.
    """

    name: str
    row: str | None = None
    looks_at: str = "model"
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def is_also(self, row: str, options: Mapping[str, Any]) -> bool:
        """Whether a row of ours is the same under another name.

        Args:
            options: of the row, all of them.
        """
        wanted = self.also.get(row)
        return wanted is not None and all(options.get(name) == value for name, value in wanted.items())


@dataclass(frozen=True)
class Source:
    """Where numbers were read.

    Attributes:
        name: what a footnote calls it.
        where: its address.
        cells: method → data set → a text for each query set, in the order of ``QUERY_SETS``; None where there is none.
    """

    name: str
    where: str
    cells: Mapping[str, Mapping[str, list[str | None]]]

    def text(self, method: str, dataset: str, query_set: str) -> str | None:
        """A cell, its minus sign a hyphen as in our own numbers; None if this source has none."""
        found = self.cells.get(method, {}).get(dataset)
        text = found[QUERY_SETS.index(query_set)] if found else None
        return None if text is None else text.replace("−", "-")


@dataclass(frozen=True)
class Erratum:
    """Cells of one data set and query set in which a later source prints something else than the first.

    Attributes:
        methods: by name.
        note: what went wrong, as far as can be told.
    """

    dataset: str
    query_set: str
    methods: list[str]
    note: str


@dataclass(frozen=True)
class PublishedCell:
    """A published number.

    Attributes:
        text: ``"26.79 ± 0.33"``.
        source: where it was read.
        mark: of the footnote that says what another source prints; empty if none does.
    """

    text: str
    source: Source
    mark: str = ""


@dataclass(frozen=True)
class Published:
    """All published numbers.

    Attributes:
        methods: in the order of rows.
        sources: the one whose numbers are shown first.
        errata: in the order of footnotes.
        remarks: data set → what is to be known of all its numbers.
    """

    methods: list[PublishedMethod]
    sources: list[Source]
    errata: list[Erratum]
    remarks: Mapping[str, str]

    def cell(self, method: str, dataset: str, query_set: str) -> PublishedCell | None:
        """What is shown of a method, by its published name; None if nobody published it."""
        for source in self.sources:
            text = source.text(method, dataset, query_set)
            if text is not None:
                return PublishedCell(text, source, self._mark(method, dataset, query_set))
        return None

    def has(self, method: str, datasets: Iterable[str]) -> bool:
        """Whether anything of a method was published on one of the data sets."""
        return any(source.cells.get(method, {}).keys() & set(datasets) for source in self.sources)

    @property
    def datasets(self) -> set[str]:
        """Those with published numbers."""
        return {dataset for source in self.sources for row in source.cells.values() for dataset in row}

    def notes(self, datasets: Iterable[str]) -> list[str]:
        """The sources, footnotes and remarks of tables that show these data sets, in full sentences."""
        shown = list(datasets)
        used = [source for source in self.sources if any(row.keys() & set(shown) for row in source.cells.values())]
        named = "; ".join(f"{source.name} ({source.where})" for source in used)
        said = [
            f"Published: {named}; their options were chosen on the queries and subsets reported. Gradients are "
            "averaged over K = 10 timesteps where no other K is given."
        ]
        said += [self._footnote(erratum) for erratum in self.errata if erratum.dataset in shown]
        return said + [f"{dataset}: {remark}" for dataset, remark in self.remarks.items() if dataset in shown]

    def _mark(self, method: str, dataset: str, query_set: str) -> str:
        for number, erratum in enumerate(self.errata):
            if (erratum.dataset, erratum.query_set) == (dataset, query_set) and method in erratum.methods:
                return footnote_mark(number)
        return ""

    def _footnote(self, erratum: Erratum) -> str:
        said: dict[str, list[str]] = {}
        for method in erratum.methods:
            shown = self.cell(method, erratum.dataset, erratum.query_set)
            for source in self.sources:
                text = source.text(method, erratum.dataset, erratum.query_set)
                if shown and text not in (None, shown.text):
                    said.setdefault(source.name, []).append(f"{text} for {method}")
        others = "; ".join(f"{source} prints {', '.join(cells)}" for source, cells in said.items())
        return f"{footnote_mark(self.errata.index(erratum))} {erratum.dataset}, {erratum.query_set}: {others}: {erratum.note}."


def footnote_mark(number: int) -> str:
    """The mark of a footnote, by the number of its erratum from 0: ``¹``, ``²``, … ``¹⁰``."""
    return str(number + 1).translate(_SUPERSCRIPTS)


def load_published() -> Published:
    """Read ``configs/published.yaml``."""
    text = resources.files("attribench.configs").joinpath("published.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return Published(
        methods=[PublishedMethod(**entry) for entry in content["methods"]],
        sources=[Source(**entry) for entry in content["sources"]],
        errata=[Erratum(**entry) for entry in content.get("errata", [])],
        remarks=content.get("remarks", {}),
    )
