"""What leaderboards say, before it is a table, a figure or a page: records that may be compared, ranked and tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from attribench.metrics.comparison import PairedComparison, compare_lds, tied_with_best
from attribench.records.attributability import AttributabilityResult, load_attributability
from attribench.records.files import load_attachment
from attribench.records.lds import CeilingRecord, Record
from attribench.settings import QUERY_SETS


@dataclass(frozen=True, eq=False)
class Board:
    """One setting's leaderboard.

    Attributes:
        records: one a method, the best first; a method without one of its cells has no row mean, and goes last.
        attachments: of each method; empty where none is at hand.
        attributability: of each query set's ground truth, by query set; without those it was not measured of.
    """

    records: list[Record]
    attachments: Mapping[str, Mapping[str, Tensor]]
    attributability: Mapping[str, AttributabilityResult] = field(default_factory=dict)

    @property
    def first(self) -> Record:
        """A record, for what all of them share."""
        return self.records[0]

    @property
    def title(self) -> str:
        """The setting in words."""
        if self.first.protocol == "strict":
            return (
                f"{self.first.title}, strict protocol (reported on queries and subsets that no options were chosen on)"
            )
        return self.first.title

    @property
    def num_subsets(self) -> int:
        """Subsets that the numbers rest on: under the strict protocol those that no options were chosen on."""
        every = int(self.first.settings["ground_truth"]["num_subsets"])
        return every - (every // 2 if self.first.protocol == "strict" else 0)

    @property
    def query_sets(self) -> tuple[str, ...]:
        """Those that any record has, in the order tables show them."""
        return query_sets_of(self.records)

    def ids(self, query_set: str) -> list[str]:
        """The names of a query set's queries; empty where no record has it."""
        found = (record.results[query_set].query_ids for record in self.records if query_set in record.results)
        return next(found, [])

    def ceiling(self, query_set: str) -> CeilingRecord | None:
        """The noise ceiling of a query set, if the records have it."""
        found = (record.results[query_set].ceiling for record in self.records if query_set in record.results)
        return next((ceiling for ceiling in found if ceiling is not None), None)

    @cached_property
    def comparisons(self) -> dict[str, dict[tuple[str, str], PairedComparison]]:
        """For each query set, every pair of methods whose predictions are at hand."""
        return {name: self._compare(name) for name in QUERY_SETS}

    @cached_property
    def best(self) -> dict[str, set[str]]:
        """For each query set, the best method and those not distinguishable from it.

        What is given retrained models is a reference, no rival.
        """
        means = {
            name: {
                record.method: record.results[name].lds
                for record in self.records
                if name in record.results and record.access != "RETRAINED"
            }
            for name in QUERY_SETS
        }
        return {name: tied_with_best(means[name], self.comparisons[name]) for name in QUERY_SETS}

    def tested(self, query_set: str) -> bool:
        """Whether there was anything to tell the methods apart by."""
        return bool(self.comparisons[query_set])

    def _compare(self, query_set: str) -> dict[tuple[str, str], PairedComparison]:
        predictions: dict[str, Tensor] = {}
        outputs: Tensor | None = None
        for record in self.records:
            tensors = self.attachments.get(record.method, {})
            if f"{query_set}.predictions" not in tensors or query_set not in record.results:
                continue
            measured = tensors[f"{query_set}.outputs"].double()
            outputs = measured if outputs is None else outputs
            if torch.equal(measured, outputs):  # else it is of another machine's models: not paired with the others
                predictions[record.method] = tensors[f"{query_set}.predictions"].double()
        # From one query alone nothing can be said about others.
        return {} if outputs is None or outputs.shape[1] < 2 else compare_lds(predictions, outputs)


def boards(records: Sequence[Record], results: Path | None = None) -> list[Board]:
    """One board for each group of records that may be compared: same data, same setting, same ground truth.

    Args:
        records: any.
        results: the folder they are filed in; without it methods are not tested against each other, and attributability is not
            looked up.

    Raises:
        RecordError: an attachment, or a record of attributability, is damaged.
    """
    groups: dict[tuple[str, str, str, str], list[list[Record]]] = {}
    for record in records:
        settings = groups.setdefault((record.dataset, record.preset, record.protocol, record.setting_hash), [])
        group = next((group for group in settings if all(record.same_truth(other) for other in group)), None)
        if group is None:
            settings.append([record])
        else:
            group.append(record)
    measured = _measured(results, {record.dataset for record in records})
    return [_board(group, results, measured) for settings in groups.values() for group in settings]


def _measured(results: Path | None, datasets: set[str]) -> dict[str, AttributabilityResult]:
    """What is known of attributability, by the hash of the ground truth it is of."""
    found = [] if results is None else load_attributability(results, datasets)
    return {result.ground_truth_hash: result for one in found for point in one.points for result in point.results}


def _board(records: list[Record], results: Path | None, measured: Mapping[str, AttributabilityResult]) -> Board:
    query_sets = query_sets_of(records)  # what all of them lack keeps none from its place
    ordered = sorted(records, key=lambda record: -row_mean(record, query_sets))
    attachments = (
        {} if results is None else {record.method: load_attachment(record, results) or {} for record in records}
    )
    truths = {name: result.ground_truth_hash for record in records for name, result in record.results.items()}
    return Board(ordered, attachments, {name: measured[truth] for name, truth in truths.items() if truth in measured})


def query_sets_of(records: Sequence[Record]) -> tuple[str, ...]:
    """The query sets that any record has, in the order tables show them: published ground truth may lack one."""
    return tuple(name for name in QUERY_SETS if any(name in record.results for record in records))


def row_mean(record: Record, query_sets: Sequence[str] = QUERY_SETS) -> float:
    """Mean LDS over some query sets, −∞ if one is missing."""
    values = [record.results[name].lds for name in query_sets if name in record.results]
    return sum(values) / len(values) if values and len(values) == len(query_sets) else float("-inf")
