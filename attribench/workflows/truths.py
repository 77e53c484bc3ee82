"""Ground truth passed on as a file, and checked by retraining some of its models."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.configuration.resolution import Config, resolve
from attribench.data import AttributionDataModule, ImageSet
from attribench.errors import BundleError, UsageError
from attribench.settings import Runtime
from attribench.store.json_values import json_value
from attribench.truth.bundle import Bundle
from attribench.truth.bundle_files import Header
from attribench.truth.catalog import differences, shipped
from attribench.truth.experiment import Experiment
from attribench.truth.exporting import check_exportable, export_bundle
from attribench.truth.ground_truth import band_means
from attribench.workflows.opening import open_experiment, recorded_data
from attribench.workflows.scoring import hardware, versions


def export(config: Config, runtime: Runtime, out: Path, name: str | None, progress: Progress) -> Header:
    """Make what is missing of a ground truth, and write it as one file.

    The data set's images go along where its licence allows it; elsewhere its user brings the same ones.

    Raises:
        UsageError: the name cannot be a file's, or the models are LoRA on somebody's pretrained model.
    """
    name = bundle_name(name, out)
    experiment = open_experiment(config, runtime, progress)
    check_exportable(experiment)
    experiment.prepare()
    made = {"by": "attribench ground-truth export", "versions": versions()}
    made["hardware"] = hardware(resolve_device(runtime.accelerator))
    identity = identity_of(config, name, experiment.label)
    return export_bundle(experiment, out, identity, made, with_images=config.data_class.licence is not None)


def bundle_name(name: str | None, out: Path) -> str:
    """What a bundle is called: as asked for, or like its file.

    Raises:
        UsageError: the name cannot be a file's.
    """
    name = name or out.stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*", name):
        raise UsageError(f"--name {name!r}: letters, digits and ._=,+- are allowed.")
    return name


def identity_of(config: Config, name: str, label: str) -> dict[str, Any]:
    """What a bundle's header says of the configuration its ground truth is of."""
    return {
        "name": name,
        "dataset": label,
        "data": recorded_data(config),
        "preset": config.preset,
        "overrides": json_value(config.overrides_without("counterfactual")),
        "data_licence": config.data_class.licence or "not passed on; bring your own",
    }


def config_of(bundle: Bundle, dataset: str, methods: list[str], options: dict[str, dict[str, object]]) -> Config:
    """The configuration that a bundle was made with, and methods for it.

    Args:
        dataset: as the caller names it; it may be a path or an import path.
        options: what the caller gives besides, by section.

    Raises:
        UsageError: the caller's options would make it another setting.
        BundleError: this attribench's preset is not the one it was made with.
    """
    header = bundle.header
    given: dict[str, dict[str, object]] = {}
    for dotted, value in header.overrides.items():
        section, _, option = dotted.partition(".")
        given.setdefault(section, {})[option] = value
    for option, value in header.data.items():
        given.setdefault("data", {}).setdefault(option, value)
    base = resolve(dataset, header.preset, methods, given)
    if found := differences(bundle, base.settings):
        raise BundleError(f"{bundle.path} was made with other settings than preset {header.preset} has: {found[0]}.")
    for section, values in options.items():
        given[section] = {**given.get(section, {}), **values}
    config = resolve(dataset, header.preset, methods, given)
    if found := differences(bundle, config.settings):
        raise UsageError(f"{found[0]}: with --ground-truth nothing is retrained, so its settings stay.")
    return config


def with_shipped(config: Config, progress: Progress) -> Config:
    """The configuration with the ground truth that ships for just these data and settings, if one does.

    Where one ships for the preset alone, ``progress`` says what keeps it from being used.
    """
    for path in shipped().values():
        bundle = Bundle(path)
        header = bundle.header
        if (header.dataset, header.preset) != (config.dataset, config.preset):
            continue
        data = recorded_data(config)
        found = differences(bundle, config.settings) + [
            f"--data.{name} {data.get(name)} (the ground truth has {header.data.get(name)})"
            for name in sorted({*data, *header.data})
            if data.get(name) != header.data.get(name)
        ]
        if not found:
            return replace(config, ground_truth=str(path))
        ground_truth = config.settings.ground_truth
        count = ground_truth.num_subsets * ground_truth.num_seeds
        progress.message(
            f"The ground truth that ships, {header.name}, is of other settings than {found[0]}: {count} retrained models are "
            "needed."
        )
    return config


def image_sets(
    bundle: Bundle, dataset: str, options: dict[str, dict[str, object]], progress: Progress
) -> dict[str, ImageSet]:
    """The images that a ground truth is of: train images first, then the query sets; rows and columns of scores in order.

    What the bundle does not hold is taken from the data set, if that is the same.

    Args:
        dataset: as the caller names it.
        options: what the caller says of the data set, by section.

    Raises:
        BundleError: the data set is another one.
    """
    header = bundle.header
    held = {name: bundle.queries(name) for name, entry in header.query_sets.items() if entry.images}
    if header.train_images:
        held["train"] = bundle.train()
    wanted = ("train", *bundle.query_sets)
    if set(wanted) - set(held):
        progress.message(f"Not all images are in {bundle.path}: they are taken from the data set {dataset}.")
        config = config_of(bundle, dataset, [], options)
        data: AttributionDataModule = config.data_class(**config.data)
        bundle.check(data.train, data.validation)
        held = {"train": data.train, "validation": data.validation, **held}
    return {name: held[name] for name in wanted}


def retrain(
    bundle: Bundle,
    dataset: str,
    options: dict[str, dict[str, object]],
    runtime: Runtime,
    count: int,
    progress: Progress,
) -> Iterator[str]:
    """Train some of a bundle's subset models anew, and say how far their losses are from the stored ones.

    They are trained in a work directory of their own, whatever the usual one holds.

    Args:
        dataset: as the caller names it.
        options: what the caller says of the data set, by section.

    Raises:
        UsageError: it does not have so many models, or was published elsewhere: from which seeds is not known.
        BundleError: its subsets are not those that its settings draw today.
    """
    if not bundle.has_model:
        raise UsageError(
            f"--retrain: the ground truth {bundle.header.name} holds no model, so none can be trained again."
        )
    if not 1 <= count <= len(bundle.masks):
        raise UsageError(f"--retrain {count}: from 1 to {len(bundle.masks)} of its models can be trained anew.")
    chosen = [(subset, 0) for subset in range(count)]
    config = config_of(bundle, dataset, [], options)
    with tempfile.TemporaryDirectory() as folder:
        experiment = open_experiment(replace(config, ground_truth=""), replace(runtime, workdir=folder), progress)
        bundle.check(experiment.train, experiment.validation)
        if not torch.equal(experiment.masks, bundle.masks):
            raise BundleError(f"{bundle.path} has other subsets than its settings draw today.")
        yield from _compared(bundle, experiment, chosen, progress)


def _compared(
    bundle: Bundle, experiment: Experiment, chosen: Sequence[tuple[int, int]], progress: Progress
) -> Iterator[str]:
    """A line on the losses of each (subset, seed) and query set, after its training."""
    timesteps = experiment.settings.ground_truth.timesteps
    models = [experiment.retrainings[subset][seed] for subset, seed in chosen]
    with progress.task(f"{bundle.header.name}: {len(models)} models anew", sum(job.cost for job in models)) as task:
        experiment.train_only(models, task)
    for name in bundle.query_sets:
        images = experiment.validation if name == "validation" else bundle.queries(name)
        stored = bundle.ground_truth(name).by_band
        for subset, seed in chosen:
            losses = experiment.losses_of(images, subset, seed)
            found, expected = band_means(losses, timesteps), stored[subset, seed]
            far = ((found - expected).abs() / expected).max().item()
            same = "bit for bit the stored ones" if far == 0 else f"within {far:.2g} of the stored ones, relatively"
            yield f"subset {subset}, seed {seed}, {name}: losses {same}"
