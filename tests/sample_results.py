"""A results folder with a bit of everything, made up: several data sets and settings, tests, galleries, missing cells."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sample_records import sample_record, sample_result
from torch import Tensor

from attribench.configuration.resolution import resolve
from attribench.data import ImageSet
from attribench.method import Queries
from attribench.metrics.comparison import ranks_over_subsets
from attribench.records.counterfactual import CONTROL, CounterfactualRecord
from attribench.records.files import save_file
from attribench.records.gallery import Gallery
from attribench.records.lds import BandResult, CeilingRecord, IntervalRecord, MeasuredLDS, save_record
from attribench.records.sweep import Point, SweepRecord
from attribench.settings import QUERY_SETS

METHODS = {"nda": ("DATA", 0.6), "dtrak": ("MODEL", 0.55), "tracincp": ("CHECKPOINTS", 0.1), "random": ("DATA", 0.0)}


def write_results(folder: Path, galleries: bool = True) -> Path:
    """Fill ``folder`` with records, with or without images beside them; returns it."""
    train = images(20, 0)
    for number, (method, (access, quality)) in enumerate(METHODS.items()):
        changes: dict[str, Any] = {"method": method, "access": access, "created": f"2026-01-0{number + 1}T00:00:00Z"}
        results = {name: result(quality - 0.1 * index) for index, name in enumerate(QUERY_SETS)}
        if method == "tracincp":
            del results["generation"]
        beside = attachment(method, train, number)
        beside = beside if galleries else {name: value for name, value in beside.items() if "gallery" not in name}
        save_record(sample_record(**changes, results=results), folder, beside)
    for method in ("nda", "random"):
        save_record(sample_record(method=method, preset="smoke", setting_hash="smoke"), folder)
    save_record(sample_record(dataset="cifar2", preset="paper", setting_hash="c", image_shape=[3, 32, 32]), folder)
    save_file(sweep(), folder)
    for name, shift in ((CONTROL, 0.0), ("nda", 1.5), ("random", 0.1)):
        record, _, pictures = counterfactual(name, shift, folder)
        save_file(record, folder, pictures if galleries else {})
    return folder


def images(count: int, seed: int, channels: int = 1) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"image-{seed}-{i}" for i in range(count)))


def result(lds: float) -> Any:
    interval = IntervalRecord(low=0.7, high=0.8, level=0.95, resampled="queries and subsets")
    ceiling = CeilingRecord(lds=0.75, interval=interval, replicates="training seeds", num_replicates=3, agreement=0.4)
    bands = [
        BandResult(first=100 * k, last=100 * k + 100, lds=lds - 0.02 * k, interval=interval, ceiling=ceiling)
        for k in range(10)
    ]
    return sample_result(lds).model_copy(update={"ceiling": ceiling, "bands": bands})


def attachment(method: str, train: ImageSet, seed: int) -> dict[str, Tensor]:
    """The model's method is as good as the best one, and the others far below."""
    quality = 0.6 if method == "dtrak" else METHODS[method][1]
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(40, 12, generator=torch.Generator().manual_seed(99))
    predictions = quality * truth + (1 - quality) * torch.randn(40, 12, generator=generator)
    tensors = {}
    for name in QUERY_SETS:
        tensors[f"{name}.predictions"] = ranks_over_subsets(predictions)
        tensors[f"{name}.outputs"] = ranks_over_subsets(-truth)
        queries = Queries.of(images(2, 7), name)
        tensors |= Gallery.of(queries, torch.randn(2, 20, generator=generator), train).tensors(f"{name}.gallery")
    return tensors


def common(**changes: Any) -> dict[str, Any]:
    base = sample_record().model_dump(exclude={"results", "cost", "protocol", "settings", "undefined"})
    return {**base, "settings": asdict(resolve("digits", "small", [], {}).settings), **changes}


def sweep() -> SweepRecord:
    points = []
    for series in ([50], [50, 100]):
        for value in (3, 5, 7):
            lds = 0.1 * value / len(series)
            interval = IntervalRecord(low=lds - 0.05, high=lds + 0.05, level=0.95, resampled="queries and subsets")
            points.append(
                Point(
                    value=value,
                    series=series,
                    results={name: MeasuredLDS(lds=lds, interval=interval) for name in QUERY_SETS},
                )
            )
    return SweepRecord(**common(), vary="patch_size", series_option="timesteps", points=points)


def counterfactual(name: str, shift: float, folder: Path) -> tuple[CounterfactualRecord, Path, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    distances = 2 + 0.2 * torch.rand(10, 2, generator=generator) + shift
    record = CounterfactualRecord(
        **common(method=name),
        query_ids=[f"generation-{i}" for i in range(10)],
        queries_hash="q",
        num_removed=0 if name == CONTROL else 100,
        train_seeds=[1, 2],
        l2=distances.tolist(),
        clip_missing="no weights",
    )
    regenerated = torch.randint(0, 256, (10, 2, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return record, folder, {"originals": images(10, 3).images, "regenerated": regenerated}
