"""Opening a setting from a configuration, and describing it in records."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.data import AttributionDataModule
from attribench.errors import UsageError
from attribench.records.lds import row_name
from attribench.registry import DATAMODULES
from attribench.settings import Runtime
from attribench.store.files import canonical, digest_text
from attribench.store.json_values import json_value
from attribench.truth.bundle import Bundle
from attribench.truth.experiment import Experiment
from attribench.workflows.scoring import Scoring


def open_experiment(config: Config, runtime: Runtime, progress: Progress) -> Experiment:
    """Load the data and put it together with the setting.

    Raises:
        UsageError: the data set's label is another known data set's name, so their results would be mixed, or its
            options are such as no record can hold.
    """
    resolve_device(runtime.accelerator)  # a wrong --accelerator fails before any work
    recorded_data(config)
    data: AttributionDataModule = config.data_class(**config.data)
    if data.label != config.dataset and data.label in DATAMODULES.names():
        raise UsageError(f"This data set may not be called {data.label!r}: another data set is. Change its label.")
    bundle = Bundle(Path(config.ground_truth)) if config.ground_truth else None
    return Experiment(data, config.settings, runtime, progress, bundle=bundle)


def recorded_data(config: Config) -> dict[str, Any]:
    """The data set's options as records have them.

    Where data lies and whether it may be downloaded is this machine's affair; what it holds is in the hash.

    Raises:
        UsageError: one of them has no JSON form.
    """
    return {
        key: json_value(value, f"data.{key}") for key, value in config.data.items() if key not in ("root", "download")
    }


def setting_description(config: Config, experiment: Experiment) -> dict[str, Any]:
    """Fields of a :class:`~attribench.records.files.MethodRecord` that all rows of a table share."""
    return {
        "dataset": experiment.label,
        "preset": config.preset,
        "data": recorded_data(config),
        "num_train": len(experiment.train),
        "image_shape": list(experiment.train.image_shape),
        "train_hash": experiment.train.content_hash,
        "ground_truth": experiment.bundle.header.name if experiment.bundle else "",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def lds_description(config: Config, experiment: Experiment) -> dict[str, Any]:
    """The same, and what else records of LDS say of their setting: all but the counterfactuals'."""
    return {
        **setting_description(config, experiment),
        "overrides": json_value(config.overrides_without("counterfactual")),
        "settings": config.settings.without("counterfactual"),
        "setting_hash": setting_hash(experiment, config),
    }


def method_description(method: MethodConfig, scoring: Scoring) -> dict[str, Any]:
    """Fields of a :class:`~attribench.records.files.MethodRecord` that describe a method and its scores."""
    return {
        "method": row_name(method.name, method.changed),
        "method_class": f"{method.cls.__module__}.{method.cls.__qualname__}",
        "options": json_value(method.options),
        "access": method.cls.access.name,
        "tuned_on": method.tuned_on,
        "versions": scoring.versions,
        "hardware": scoring.hardware,
    }


def setting_hash(experiment: Experiment, config: Config) -> str:
    """Identifies data and settings: what records of one table share, and what a choice of options is bound to."""
    hashes = [experiment.train.content_hash, experiment.validation.content_hash]
    if experiment.base is not None:  # settings have its name alone
        hashes.append(experiment.base.content)
    return digest_text(canonical([*hashes, config.settings.without("counterfactual")]))[:32]
