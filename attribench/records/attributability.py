"""How much of the losses is due to which images a model was trained on: a JSON file a ground truth, or a series of sizes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from attribench.records.files import Frozen, RecordFile, load_file, safe, slug
from attribench.records.lds import CeilingRecord, IntervalRecord


class AttributabilityResult(Frozen):
    """One query set of one ground truth; see :func:`attribench.metrics.attributability`.

    Attributes:
        protocol: ``strict`` for the halves that nothing was chosen on.
        share: mean over queries of the share of a loss's variance between models that is due to the images.
        interval: of ``share``.
        per_query: the share of each query, in the order of ``query_ids``.
        p_values: of each query's test.
        found: queries that are found to respond at a false discovery rate of 5 %.
        responding: estimated share of the queries that respond, found or not.
        responding_interval: of ``responding``.
        ceiling: the noise ceiling of the same losses.
    """

    query_set: str
    protocol: Literal["standard", "strict"] = "standard"
    ground_truth_hash: str
    num_subsets: int
    num_seeds: int
    query_ids: list[str]
    share: float
    interval: IntervalRecord
    per_query: list[float]
    p_values: list[float]
    found: int
    responding: float
    responding_interval: IntervalRecord
    ceiling: CeilingRecord | None = None

    @property
    def silent(self) -> list[str]:
        """The queries that are not found to respond."""
        from scipy import stats

        adjusted = stats.false_discovery_control(self.p_values)
        return [name for name, value in zip(self.query_ids, adjusted, strict=True) if value > 0.05]

    @property
    def text(self) -> str:
        """The share in per cent with its interval: ``53 % [50, 56]``."""
        low, high = 100 * self.interval.low, 100 * self.interval.high
        return f"{100 * self.share:.0f} % [{low:.0f}, {high:.0f}]"


class AttributabilityPoint(Frozen):
    """What was found with so many train images."""

    num_train: int
    train_hash: str
    results: list[AttributabilityResult]


class AttributabilityRecord(RecordFile):
    """The attributability of a setting, or of a series of train-set sizes.

    Attributes:
        dataset: the data set's label.
        preset: the preset the settings started from.
        overrides: what the caller changed, as dotted names.
        settings: all settings the losses depend on.
        data: the data set's own options.
        ground_truth: name of the ground truth that was used; empty where the models were retrained here.
        points: one, or one a size, the smallest first.
    """

    dataset: str
    preset: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any]
    data: dict[str, Any]
    ground_truth: str = ""
    points: list[AttributabilityPoint]
    versions: dict[str, str]

    @property
    def is_series(self) -> bool:
        """Whether it is of several train-set sizes."""
        return len(self.points) > 1

    @property
    def title(self) -> str:
        """The setting in words."""
        text = f"{self.dataset}, preset {self.preset}"
        changed = ", ".join(f"{key}={value}" for key, value in sorted(self.overrides.items()))
        return f"{text}, changed: {changed}" if changed else text

    @property
    def path(self) -> Path:
        name = safe(self.preset) + (f"+{slug(self.overrides)}" if self.overrides else "")
        end = "sizes" if self.is_series else self.points[0].results[0].ground_truth_hash[:8]
        return Path("attributability", safe(self.dataset), f"{name}.{end}.json")


def load_attributability(results: Path, datasets: Iterable[str] | None = None) -> list[AttributabilityRecord]:
    """All such records under a results folder, of the given data sets or of all, in a stable order.

    Raises:
        RecordError: one of them cannot be read.
    """
    wanted = None if datasets is None else set(datasets)
    found = [load_file(AttributabilityRecord, path) for path in sorted((results / "attributability").glob("*/*.json"))]
    return [record for record in found if wanted is None or record.dataset in wanted]


def save_attributability(record: AttributabilityRecord, results: Path) -> Path:
    """File a record; it takes the place of an earlier one of the same ground truth, or series, in the same setting.

    One that says the same already is left as it is, its date too.
    """
    import json

    from attribench.errors import RecordError
    from attribench.store.files import atomic_write

    path = results / record.path
    if path.exists():
        try:
            before = load_file(AttributabilityRecord, path)
        except RecordError:
            before = None
        if before and before.model_dump(exclude={"created"}) == record.model_dump(exclude={"created"}):
            return path
    atomic_write(path, (json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode())
    return path
