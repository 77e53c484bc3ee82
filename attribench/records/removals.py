"""The record of a grouped removal: one JSON file a (data set, setting, question, row)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from attribench.records.files import Frozen, MethodRecord, load_file, safe

#: Names of the rows that are no methods: retrained on everything; on all but as many random images; the right answer itself.
CONTROL, RANDOM, KNOWN = "control", "size-matched-random", "known-answer"

#: What is asked, in the order pages show it.
Asked = Literal["generation", "class", "copies"]
ASKED: dict[str, str] = {
    "generation": "groups of generated images that are alike",
    "class": "groups of held-out images of one class",
    "copies": "groups of images that were copied into the train set",
}

#: Measure → its name and digits. Each is a distance from how things were: larger is further.
MEASURES = {
    "loss": ("loss × 1000", 2),
    "l2": ("pixel L2", 3),
    "ssim": ("1 − SSIM", 3),
    "lpips": ("LPIPS", 3),
    "clip": ("1 − CLIP cosine", 3),
}


class Distances(Frozen):
    """One measure, ``[group][size][seed]`` each.

    Attributes:
        on_group: mean over the queries of the group that the images were removed for.
        on_controls: mean over the queries of the other groups.
    """

    on_group: list[list[list[float]]]
    on_controls: list[list[list[float]]]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both as float64 ``(num_groups, num_sizes, num_seeds)``."""
        return (
            torch.tensor(self.on_group, dtype=torch.float64),
            torch.tensor(self.on_controls, dtype=torch.float64),
        )


class RemovalRecord(MethodRecord):
    """How far queries move when the strongest train images of their group are removed before training.

    Its attachment holds ``removed`` (int32 ``(num_groups, 1 or num_seeds, largest size)``: train images by number, in order of
    removal), but for the control, and for each measure ``values.<measure>`` (float32 ``(num_groups, num_sizes, num_seeds,
    num_queries)``, queries group after group).

    Attributes:
        kind: what the row is; ``known`` removes what is known to be right.
        asked: what the groups are.
        group_names: one a group.
        groups: the ids of each group's queries.
        queries_hash: identifies the queries by content.
        sizes: how many images were removed, ascending; ``[0]`` for the control.
        train_seeds: the retrainings' seeds, the same for all rows.
        measures: by name, see :data:`MEASURES`.
        missing: why a measure is not there, by name.
    """

    kind: Literal["control", "random", "known", "method"]
    asked: Asked
    group_names: list[str]
    groups: list[list[str]]
    queries_hash: str
    sizes: list[int]
    train_seeds: list[int]
    measures: dict[str, Distances]
    missing: dict[str, str]

    @property
    def path(self) -> Path:
        return Path("removals", safe(self.dataset), f"{self.setting}.{self.asked}", f"{safe(self.method)}.json")


def load_removals(results: Path, datasets: Iterable[str] | None = None) -> list[RemovalRecord]:
    """All such records under a results folder, of the given data sets or of all, in a stable order.

    Raises:
        RecordError: one of them cannot be read.
    """
    wanted = None if datasets is None else set(datasets)
    records = [load_file(RemovalRecord, path) for path in sorted((results / "removals").glob("*/*/*.json"))]
    return [record for record in records if wanted is None or record.dataset in wanted]


def removal_groups(records: Iterable[RemovalRecord]) -> list[list[RemovalRecord]]:
    """Records that may be compared: same data, setting, question, queries and sizes, with their control; it comes first.

    Records whose control is not there are left out, and a control that stands alone: nothing can be said of them.
    """
    found: dict[tuple[str, ...], list[RemovalRecord]] = {}
    for record in records:
        key = (record.dataset, record.preset, record.setting_hash, record.asked, record.queries_hash)
        found.setdefault(key, []).append(record)
    order = {"control": 0, "known": 1, "method": 2, "random": 3}
    sorted_groups = [sorted(group, key=lambda record: order[record.kind]) for group in found.values()]
    return [group for group in sorted_groups if group[0].kind == "control" and len(group) > 1]
