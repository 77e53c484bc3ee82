"""Ground truth that others have published, made a bundle that methods can be run on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attribench.computing.progress import Progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.data import AttributionDataModule, ImageSet
from attribench.data.decoding import Channels, read_images
from attribench.errors import DataError, UsageError
from attribench.records.lds import QuerySetResult
from attribench.registry import METHODS
from attribench.settings import Runtime
from attribench.truth.bundle import Bundle
from attribench.truth.experiment import Experiment, generated_ids
from attribench.truth.exporting import MeasuredQueries, write_bundle
from attribench.truth.published.dattri_files import read_dattri
from attribench.truth.published.dtrak_files import generated_files, read_dtrak
from attribench.truth.published.imported import ImportedTruth, Indices
from attribench.truth.published.matching import ground_truths, numbers_in_ids, order_of
from attribench.workflows.checks import instances
from attribench.workflows.evaluation import Evaluation
from attribench.workflows.scoring import scorings, versions
from attribench.workflows.truths import bundle_name, identity_of


def import_dtrak(
    folder: Path,
    config: Config,
    out: Path,
    progress: Progress,
    *,
    name: str | None = None,
    setting: str | None = None,
    num_bands: int = 1,
    complete_only: bool = False,
) -> AttributionDataModule:
    """Write D-TRAK's ground truth as a bundle; see :func:`attribench.truth.published.dtrak_files.read_dtrak`.

    Their indices are rows of the data set, which are the numbers that its ids end with. Generated queries are in the bundle
    if their images are in the folder.

    Returns:
        The data set it is of.

    Raises:
        UsageError: the name cannot be a file's, or options contradict the files.
        DataError: the files are not whole, or not of this data set.
    """
    name = bundle_name(name, out)
    data: AttributionDataModule = config.data_class(**config.data)
    numbers = {"train": numbers_in_ids(data.train), "validation": numbers_in_ids(data.validation)}

    def accept(published: Mapping[str, Indices]) -> None:
        for what, indices in published.items():
            order_of(indices, numbers[what], what)

    files = generated_files(folder, setting)
    generated = _generated(files, data.train) if files else None
    truth = read_dtrak(
        folder, setting=setting, num_bands=num_bands, complete_only=complete_only, progress=progress, accept=accept
    )
    if "generation" in truth.losses:
        numbers["generation"] = truth.query_indices["generation"]
        if len(files) != len(numbers["generation"]):
            truth = _without_generation(truth, len(files), progress)
    made = {"by": "attribench ground-truth import-dtrak", "setting": setting or "", "complete_only": complete_only}
    _write(truth, numbers, generated, data, config, out, name, made)
    return data


def import_dattri(
    folder: Path, config: Config, out: Path, progress: Progress, *, name: str | None = None
) -> AttributionDataModule:
    """Write dattri's ground truth as a bundle; see :func:`attribench.truth.published.dattri_files.read_dattri`.

    Their indices are positions among the train samples, which must be the data set's train images in their order; the test
    samples must be its validation queries.

    Returns, Raises:
        As :func:`import_dtrak`.
    """
    name = bundle_name(name, out)
    data: AttributionDataModule = config.data_class(**config.data)
    numbers = {"train": np.arange(len(data.train)), "validation": np.arange(len(data.validation))}
    truth = read_dattri(folder, num_train=len(data.train))
    _write(truth, numbers, None, data, config, out, name, {"by": "attribench ground-truth import-dattri"})
    return data


def self_test(
    data: AttributionDataModule, out: Path, runtime: Runtime, progress: Progress
) -> Iterator[tuple[str, str, QuerySetResult]]:
    """The LDS of raw pixels on a bundle: a wrong order of images or queries would bring it to 0.

    Yields:
        Method, query set, result.
    """
    bundle = Bundle(out)
    experiment = Experiment(data, bundle.settings, runtime, progress, bundle=bundle)
    parts = {name: Evaluation.of(experiment, name) for name in experiment.query_sets}
    pixel = METHODS.load("pixel")
    methods = [MethodConfig(f"pixel-{kind}", pixel, {"similarity": kind}) for kind in ("cosine", "dot")]
    for config, scoring in scorings(experiment, instances(methods), {}):
        scores = scoring.scores({name: part.asked for name, part in parts.items()})
        for name, part in parts.items():
            yield config.name, name, part.evaluate(scores[name])


def _write(
    truth: ImportedTruth,
    numbers: Mapping[str, Indices],
    generated: ImageSet | None,
    data: AttributionDataModule,
    config: Config,
    out: Path,
    name: str,
    made: Mapping[str, Any],
) -> None:
    config = _as_published(config, truth)
    images = {"validation": data.validation, **({"generation": generated} if generated else {})}
    with_images = config.data_class.licence is not None
    query_sets = {
        query_set: MeasuredQueries(images[query_set], found, with_images or query_set == "generation")
        for query_set, found in ground_truths(truth, numbers).items()
    }
    provenance = {"subsets": list(truth.subsets), "seeds": list(truth.seeds), "draws": list(truth.draws)}
    made = {**made, **provenance, "versions": versions()}
    identity = identity_of(config, name, data.label)
    write_bundle(out, data.train, query_sets, config.settings, identity, made, with_images)


def _as_published(config: Config, truth: ImportedTruth) -> Config:
    """The configuration with the sizes that the files have."""
    settings = config.settings
    num_subsets, num_seeds, num_draws = len(truth.subsets), len(truth.seeds), len(truth.draws)
    sizes: dict[str, Any] = {
        "num_subsets": num_subsets,
        "num_seeds": num_seeds,
        "num_noise_draws": num_draws,
        "subset_fraction": round(float(truth.masks.mean()), 6),
        "timestep_stride": 1000 // max(1, sum(len(band) for band in truth.bands)),
    }
    changes = {
        "ground_truth": {key: value for key, value in sizes.items() if getattr(settings.ground_truth, key) != value}
    }
    if "generation" in truth.losses:
        count = len(truth.query_indices["generation"])
        changes["generation"] = {"num_images": count} if settings.generation.num_images != count else {}
    dotted = {f"{section}.{key}": value for section, values in changes.items() for key, value in values.items()}
    for option, value in dotted.items():
        if option in config.overrides:
            raise UsageError(f"--{option} {config.overrides[option]}: the files have {value}; leave it out.")
    changed = {section: replace(getattr(settings, section), **values) for section, values in changes.items()}
    return replace(config, settings=replace(settings, **changed), overrides={**config.overrides, **dotted})


def _without_generation(truth: ImportedTruth, num_images: int, progress: Progress) -> ImportedTruth:
    count = len(truth.query_indices["generation"])
    reason = f"there are losses on {count} of them, and {num_images} images saved/*/gen/0.png, 1.png, …"
    if len(truth.losses) == 1:
        raise DataError(f"There is nothing to attribute: no losses on validation queries; of generated ones {reason}.")
    progress.message(f"Generated queries are left out: {reason}.")
    return replace(truth, losses={name: losses for name, losses in truth.losses.items() if name != "generation"})


def _generated(files: list[Path], train: ImageSet) -> ImageSet:
    channels: Channels = "grey" if train.image_shape[0] == 1 else "RGB"
    images = torch.from_numpy(read_images(files, channels=channels))
    if tuple(images.shape[1:]) != train.image_shape:
        raise DataError(
            f"{files[0]} is of shape {tuple(images.shape[1:])}, the train images are of {train.image_shape} (channels, "
            "height, width)."
        )
    return ImageSet(images, generated_ids(len(images)))
