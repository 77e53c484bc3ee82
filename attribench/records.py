"""The result record: one JSON file a (data set, preset, method, configuration). Tables and figures are made from these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attribench.artifacts import atomic_write, digest_text
from attribench.errors import RecordError

SCHEMA_VERSION: Literal[1] = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IntervalRecord(_Model):
    """A confidence interval of the mean LDS, in the LDS's own unit (−1…1).

    Attributes:
        level: nominal coverage, e.g. 0.95.
        resampled: what the bootstrap resampled.
    """

    low: float
    high: float
    level: float
    resampled: str


class PublishedBootstrap(_Model):
    """The statistic that published tables give: mean and standard deviation over resamples of the subsets only."""

    mean: float
    std: float
    num_resamples: int


class QuerySetResult(_Model):
    """The LDS of one method on one query set.

    Attributes:
        lds: mean over queries, in −1…1; tables show it × 100.
        per_query: the LDS of every query, in the order of ``query_ids``.
        undefined_queries: queries whose correlation is undefined (constant prediction or output); each counts as 0.
        standard_error: of the mean, over queries alone.
    """

    lds: float
    interval: IntervalRecord
    published_bootstrap: PublishedBootstrap
    standard_error: float
    undefined_queries: int
    per_query: list[float]
    query_ids: list[str]
    queries_hash: str
    ground_truth_hash: str


class CostRecord(_Model):
    """What the method cost, by phase, on ``hardware``.

    Attributes:
        prepare_seconds: the train side's work, once.
        seconds_per_query: scoring of one query against all train images, mean.
        peak_bytes: most memory above the start of the phase, of both phases.
        stored_bytes: kept on disk by the method.
        compile_seconds: compilation, once a machine; no part of the other figures.
    """

    prepare_seconds: float
    seconds_per_query: float
    peak_bytes: int
    stored_bytes: int
    compile_seconds: float = 0.0


class Record(_Model):
    """Everything about one row of a table.

    Attributes:
        dataset: the data set's label, e.g. ``cifar2``.
        preset: the preset the settings started from.
        protocol: ``strict`` if the numbers are of the halves nothing was chosen on.
        overrides: what the caller changed in the settings, as dotted names; empty for the preset itself.
        method: the row's name.
        method_class: import path of the class.
        options: the method's full configuration.
        access: what the method declared it looks at.
        tuned_on: which data the options were chosen on; empty if nothing was tuned.
        settings: model, training, generation and ground truth in full.
        data: the data set's own options.
        setting_hash: identifies data and settings; records of one table share it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: str
    preset: str
    protocol: Literal["standard", "strict"] = "standard"
    overrides: dict[str, Any] = Field(default_factory=dict)
    method: str
    method_class: str
    options: dict[str, Any]
    access: Literal["DATA", "MODEL", "CHECKPOINTS"]
    tuned_on: str
    settings: dict[str, Any]
    data: dict[str, Any]
    num_train: int
    image_shape: list[int]
    train_hash: str
    setting_hash: str
    results: dict[str, QuerySetResult]
    cost: CostRecord
    versions: dict[str, str]
    hardware: dict[str, Any]
    created: str

    @property
    def path(self) -> Path:
        """Where the record is filed, relative to the results folder."""
        setting = self.preset if not self.overrides else f"{self.preset}+{_slug(self.overrides)}"
        suffix = "" if self.protocol == "standard" else f".{self.protocol}"
        return Path("records", _safe(self.dataset), setting, f"{_safe(self.method)}{suffix}.json")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).strip(".") or "_"


def _slug(values: dict[str, Any]) -> str:
    """Changed options as part of a file name: readable, and with a hash once it would be too long."""
    text = ",".join(_safe(f"{key}={value}") for key, value in sorted(values.items()))
    return text if len(text) <= 80 else f"{text[:70]}-{digest_text(text)[:8]}"


def row_name(name: str, changed: dict[str, Any]) -> str:
    """``"nda"``, or ``"nda[top_k=5]"`` when options were changed by the caller."""
    return f"{name}[{_slug(changed)}]" if changed else name


def save_record(record: Record, results: Path) -> Path:
    """File a record; one that says the same already is left as it is, its date too."""
    path = results / record.path
    if path.exists():
        try:
            if load_record(path).model_dump(exclude={"created"}) == record.model_dump(exclude={"created"}):
                return path
        except RecordError:
            pass  # written by another version: replaced below
    atomic_write(path, (json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode())
    return path


def load_record(path: Path) -> Record:
    """Read a record.

    Raises:
        RecordError: it is not JSON, of another schema version, or has unknown or missing fields.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a readable record: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path} has schema version {version!r}; this attribench reads {SCHEMA_VERSION}.")
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path} is not a valid record: {where}: {first['msg']}") from error


def load_records(results: Path, datasets: Iterable[str] | None = None) -> list[Record]:
    """All records under a results folder, of the given data sets or of all, in a stable order."""
    wanted = None if datasets is None else set(datasets)
    records = [load_record(path) for path in sorted((results / "records").glob("*/*/*.json"))]
    return [record for record in records if wanted is None or record.dataset in wanted]
