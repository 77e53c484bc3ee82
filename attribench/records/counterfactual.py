"""The record of a counterfactual evaluation: one JSON file a (data set, preset, method), and one for the control."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attribench.records.files import Frozen, MethodRecord, load_file, safe

#: The method name of the control: retrained on all train images.
CONTROL = "control"


class ClipValues(Frozen):
    """Cosines of CLIP embeddings of original and regenerated image.

    Attributes:
        model: architecture.
        weights: open_clip's tag, or the name of the local file.
        sha256: of the weights.
        values: ``[query][seed]``, in -1…1.
    """

    model: str
    weights: str
    sha256: str
    values: list[list[float]]


class CounterfactualRecord(MethodRecord):
    """How far generated images move when a method's strongest proponents are removed before training.

    Its attachment holds ``originals`` (uint8 ``(num_queries, C, H, W)``) and ``regenerated`` (uint8 ``(num_queries,
    num_seeds, C, H, W)``), unless galleries are off, and, but for the control, ``removed`` (int32 ``(num_queries,
    num_removed)``, train images by number).

    Attributes:
        query_ids: the generated images explained.
        queries_hash: identifies them by content.
        num_removed: train images removed for each query; 0 for the control.
        train_seeds: the retrainings' seeds.
        l2: ``[query][seed]``: distance of the pixels in [0, 1], original to regenerated.
        clip: the same by CLIP, or None.
        clip_missing: why there is no CLIP.
    """

    query_ids: list[str]
    queries_hash: str
    num_removed: int
    train_seeds: list[int]
    l2: list[list[float]]
    clip: ClipValues | None = None
    clip_missing: str = ""

    @property
    def path(self) -> Path:
        return Path("counterfactual", safe(self.dataset), self.setting, f"{safe(self.method)}.json")

    @property
    def is_control(self) -> bool:
        """Whether this is the control."""
        return self.method == CONTROL

    def per_query(self, measure: str) -> NDArray[np.float64] | None:
        """``l2`` or ``clip`` averaged over seeds, ``(num_queries,)``; None if it was not measured."""
        values = self.l2 if measure == "l2" else self.clip.values if self.clip else None
        return None if values is None else np.asarray(values, np.float64).mean(axis=1)


def load_counterfactuals(results: Path, datasets: Iterable[str] | None = None) -> list[CounterfactualRecord]:
    """All counterfactual records under a results folder, of the given data sets or of all, in a stable order.

    Raises:
        RecordError: one of them cannot be read.
    """
    wanted = None if datasets is None else set(datasets)
    paths = sorted((results / "counterfactual").glob("*/*/*.json"))
    records = [load_file(CounterfactualRecord, path) for path in paths]
    return [record for record in records if wanted is None or record.dataset in wanted]


def groups(records: Iterable[CounterfactualRecord]) -> list[list[CounterfactualRecord]]:
    """Records that may be compared: same data, setting and queries. The control comes first."""
    found: dict[tuple[str, str, str, str], list[CounterfactualRecord]] = {}
    for record in records:
        key = (record.dataset, record.preset, record.setting_hash, record.queries_hash)
        found.setdefault(key, []).append(record)
    return [sorted(group, key=lambda record: not record.is_control) for group in found.values()]
