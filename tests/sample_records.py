"""A made-up record to test what is made from records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from attribench.configuration.resolution import resolve
from attribench.records.lds import CostRecord, IntervalRecord, PublishedBootstrap, QuerySetResult, Record


def sample_result(lds: float = 0.5, undefined: int = 0) -> QuerySetResult:
    return QuerySetResult(
        lds=lds,
        interval=IntervalRecord(low=lds - 0.1, high=lds + 0.1, level=0.95, resampled="queries and subsets"),
        published_bootstrap=PublishedBootstrap(mean=lds - 0.01, std=0.02, num_resamples=64),
        standard_error=0.03,
        undefined_queries=undefined,
        per_query=[lds, lds],
        query_ids=["a", "b"],
        queries_hash="q",
        ground_truth_hash="g",
    )


def sample_record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "dataset": "digits",
        "preset": "small",
        "method": "nda",
        "method_class": "attribench.methods.nda.method.NDA",
        "options": {"top_k": 100},
        "access": "DATA",
        "tuned_on": "",
        "settings": asdict(resolve("digits", "small", [], {}).settings),
        "data": {"num_train": 500},
        "num_train": 500,
        "image_shape": [1, 8, 8],
        "train_hash": "t",
        "setting_hash": "s",
        "results": {"validation": sample_result(0.5), "generation": sample_result(0.4)},
        "cost": CostRecord(prepare_seconds=1.5, seconds_per_query=0.25, peak_bytes=2**25, stored_bytes=2**20),
        "versions": {"attribench": "0.1.0"},
        "hardware": {"machine": "x86_64"},
        "created": "2026-01-01T00:00:00Z",
    }
    return Record(**{**values, **changes})
