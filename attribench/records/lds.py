"""The result record: one JSON file a (data set, preset, method, configuration). Tables and figures are made from these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from attribench.computing.progress import Progress, silent_progress
from attribench.records.files import Frozen, MethodRecord, load_file, safe, save_file, shortened
from attribench.store.json_values import json_value

if TYPE_CHECKING:
    from torch import Tensor


class IntervalRecord(Frozen):
    """A confidence interval of the mean LDS, in the LDS's own unit (−1…1).

    Attributes:
        level: nominal coverage, e.g. 0.95.
        resampled: what the bootstrap resampled.
    """

    low: float
    high: float
    level: float
    resampled: str


class MeasuredLDS(Frozen):
    """A mean LDS, in −1…1; tables show it × 100.

    Attributes:
        interval: of the mean over queries; None where there is one query alone.
    """

    lds: float
    interval: IntervalRecord | None = None

    @property
    def low(self) -> float:
        """The interval's lower end, the LDS itself where there is none."""
        return self.lds if self.interval is None else self.interval.low

    @property
    def high(self) -> float:
        """The interval's upper end, the LDS itself where there is none."""
        return self.lds if self.interval is None else self.interval.high

    @property
    def text(self) -> str:
        """LDS × 100 with its interval: ``51.4 [48.2, 54.4]``."""
        shown = f"{100 * self.lds:.1f}"
        return shown if self.interval is None else f"{shown} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class PublishedBootstrap(Frozen):
    """The statistic that published tables give: mean and standard deviation over resamples of the subsets only."""

    mean: float
    std: float
    num_resamples: int


class CeilingRecord(MeasuredLDS):
    """The noise ceiling of a query set's ground truth: what a perfect method would reach, in 0…1.

    See :func:`attribench.metrics.noise_ceiling`.

    Attributes:
        replicates: what was compared: ``training seeds``, or ``noise draws`` of one seed (the ceiling is then too high).
        num_replicates: how many of them.
        agreement: mean Spearman correlation between two of them.
    """

    replicates: Literal["training seeds", "noise draws"]
    num_replicates: int
    agreement: float


class BandResult(MeasuredLDS):
    """The LDS on the losses at some noise levels alone; its intervals are of 200 resamples.

    Attributes:
        first: the band's first timestep.
        last: the one after its last.
        ceiling: what a perfect method would reach in it; None where nothing was measured twice.
    """

    first: int
    last: int
    ceiling: CeilingRecord | None = None


class QuerySetResult(MeasuredLDS):
    """The LDS of one method on one query set.

    Attributes:
        per_query: the LDS of every query, in the order of ``query_ids``.
        undefined_queries: queries whose correlation is undefined (constant prediction or output); each counts as 0.
        standard_error: of the mean, over queries alone; None where there is one alone.
        ceiling: what a perfect method would reach on this ground truth; None where nothing was measured twice.
        bands: the same by noise level, from little noise to much; empty where losses are of one band alone.
    """

    published_bootstrap: PublishedBootstrap
    standard_error: float | None = None
    undefined_queries: int
    per_query: list[float]
    query_ids: list[str]
    queries_hash: str
    ground_truth_hash: str
    ceiling: CeilingRecord | None = None
    bands: list[BandResult] = Field(default_factory=list)


class CostRecord(Frozen):
    """What the method cost, by phase, on ``hardware``.

    Attributes:
        prepare_seconds: the train side's work, once.
        seconds_per_query: scoring of one query against all train images, mean.
        peak_bytes: most memory above the start of the phase, of both phases.
        stored_bytes: kept on disk by the method.
        compile_seconds: compilation, once a machine; no part of the other figures.
        others_share: how much of the machine's CPUs other processes took meanwhile, in [0, 1]: the times are longer for it.
            None: not known.
    """

    prepare_seconds: float
    seconds_per_query: float
    peak_bytes: int
    stored_bytes: int
    compile_seconds: float = 0.0
    others_share: float | None = None


class Record(MethodRecord):
    """The LDS of one method: a row of a table.

    Its attachment holds, for each query set, ``<set>.predictions`` and ``<set>.outputs`` (int16 ``(num_subsets,
    num_queries)``, twice the ranks over subsets: what comparisons of methods need), and of some queries the images with
    their proponents and opponents (see :mod:`attribench.records.gallery`), unless galleries are off.

    Attributes:
        protocol: ``strict`` if the numbers are of the halves nothing was chosen on.
        results: by query set.
        undefined: why the method is not defined on a query set, by its name; the set is then not among the results.
        cost: None where it is not known: scores computed elsewhere.
    """

    protocol: Literal["standard", "strict"] = "standard"
    results: dict[str, QuerySetResult]
    undefined: dict[str, str] = Field(default_factory=dict)
    cost: CostRecord | None

    @property
    def path(self) -> Path:
        suffix = "" if self.protocol == "standard" else f".{self.protocol}"
        return Path("records", safe(self.dataset), self.setting, f"{safe(self.method)}{suffix}.json")

    @property
    def identity(self) -> object:
        return [super().identity, self.protocol, dict(sorted(self.truths.items()))]

    @property
    def truths(self) -> dict[str, str]:
        return {name: result.ground_truth_hash for name, result in self.results.items()}


def row_name(name: str, changed: dict[str, Any]) -> str:
    """``"nda"``, or ``"nda[top_k=5]"`` when options were changed by the caller."""
    text = ",".join(f"{key}={value}" for key, value in sorted(json_value(changed).items()))
    return f"{name}[{shortened(text)}]" if text else name


def save_record(
    record: Record, results: Path, tensors: Mapping[str, Tensor] | None = None, progress: Progress = silent_progress
) -> tuple[Record, Path]:
    """File a record; see :func:`attribench.records.files.save_file`."""
    return save_file(record, results, tensors, progress)


def load_record(path: Path) -> Record:
    """Read a record.

    Raises:
        RecordError: it is not JSON, of another schema version, or has unknown or missing fields.
    """
    return load_file(Record, path)


def load_records(results: Path, datasets: Iterable[str] | None = None) -> list[Record]:
    """All records under a results folder, of the given data sets or of all, in a stable order."""
    wanted = None if datasets is None else set(datasets)
    records = [load_record(path) for path in sorted((results / "records").glob("*/*/*.json"))]
    return [record for record in records if wanted is None or record.dataset in wanted]
