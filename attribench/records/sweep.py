"""The record of a sweep: one JSON file a (data set, preset, method, options varied)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from attribench.records.files import Frozen, MethodRecord, load_file, safe
from attribench.records.lds import CostRecord, MeasuredLDS


class Point(Frozen):
    """One combination of values.

    Attributes:
        value: of the option that is varied.
        series: of the option that tells the curves apart; None if there is none.
        results: by query set.
        cost: of the method with these values; None in records of an earlier version.
    """

    value: Any
    series: Any = None
    results: dict[str, MeasuredLDS]
    cost: CostRecord | None = None


class SweepRecord(MethodRecord):
    """A sweep of a method's options.

    Attributes:
        vary: the option that is varied.
        series_option: the option that tells the curves apart; empty if there is none.
        points: in the order they were asked for.
        num_queries: of each query set; empty in records of an earlier version.
        ground_truth_hashes: of each query set's ground truth; empty in records of an earlier version, which then belong with
            all of the same data and settings.
        undefined: why the method is not defined on a query set, by its name; no point then has a result on it.
    """

    vary: str
    series_option: str = ""
    points: list[Point]
    num_queries: dict[str, int] = Field(default_factory=dict)
    ground_truth_hashes: dict[str, str] = Field(default_factory=dict)
    undefined: dict[str, str] = Field(default_factory=dict)

    @property
    def path(self) -> Path:
        name = ".".join(safe(part) for part in (self.method, self.vary, self.series_option) if part)
        return Path("sweeps", safe(self.dataset), self.setting, f"{name}.json")

    @property
    def identity(self) -> object:
        values = [[point.value, point.series] for point in self.points]
        return [super().identity, self.vary, self.series_option, values]

    @property
    def truths(self) -> dict[str, str]:
        return self.ground_truth_hashes


def load_sweeps(results: Path, datasets: Iterable[str] | None = None) -> list[SweepRecord]:
    """All sweeps under a results folder, of the given data sets or of all, in a stable order.

    Raises:
        RecordError: one of them cannot be read.
    """
    wanted = None if datasets is None else set(datasets)
    records = [load_file(SweepRecord, path) for path in sorted((results / "sweeps").glob("*/*/*.json"))]
    return [record for record in records if wanted is None or record.dataset in wanted]
