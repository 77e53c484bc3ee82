"""From an experiment's store to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attribench.data import ImageSet
from attribench.diffusion.training.tuning import lora_config, trained_weights
from attribench.errors import UsageError
from attribench.settings import QUERY_SETS, Settings
from attribench.truth.base import StoredBase
from attribench.truth.bundle import BASE, LORA, MASKS, MODEL, PEFT_PREFIX, TRAIN, image_files
from attribench.truth.bundle_files import Header, QuerySetHeader, write_bundle_files
from attribench.truth.experiment import Experiment
from attribench.truth.ground_truth import GroundTruth


@dataclass(frozen=True, eq=False)
class MeasuredQueries:
    """A query set, and what retrained models make of it.

    Attributes:
        images: the queries.
        truth: the ground truth on them.
        passed_on: whether the images may be in the bundle.
    """

    images: ImageSet
    truth: GroundTruth
    passed_on: bool


def export_bundle(
    experiment: Experiment, path: Path, identity: Mapping[str, Any], made: Mapping[str, Any], with_images: bool
) -> Header:
    """Write a ground truth that is complete in the store as a bundle.

    Args:
        experiment: prepared.
        path: the file to write.
        identity: the header's ``name``, ``dataset``, ``data``, ``preset``, ``overrides``, ``data_licence``.
        made: how it was made; the time is added.
        with_images: whether the data set's images may be passed on. Generated images are the model's, and always are.
    """
    passed_on = {"validation": with_images, "generation": True}
    query_sets = {
        name: MeasuredQueries(experiment.query_images(name), experiment.ground_truth(name), passed_on[name])
        for name in QUERY_SETS
    }
    return write_bundle(
        path,
        experiment.train,
        query_sets,
        experiment.settings,
        identity,
        made,
        with_images,
        _model_files(experiment),
        _checkpoint_files(experiment),
    )


def write_bundle(
    path: Path,
    train: ImageSet,
    query_sets: Mapping[str, MeasuredQueries],
    settings: Settings,
    identity: Mapping[str, Any],
    made: Mapping[str, Any],
    with_images: bool,
    model_files: Mapping[str, bytes] | None = None,
    checkpoints: Sequence[str] = (),
) -> Header:
    """Write a ground truth as a bundle.

    Args:
        query_sets: by name, at least one; all with the same masks and bands.
        settings: what its models were trained with.
        model_files: the target model and its checkpoints; without them it holds no model.
        checkpoints: those of the files that are weights, oldest first.
    """
    from safetensors.torch import save

    first = next(iter(query_sets.values())).truth
    files = {
        MASKS: save({"masks": first.masks.byte().contiguous()}),
        **image_files(TRAIN, train, with_images),
        **(model_files or {}),
    }
    for name, queries in query_sets.items():
        files[f"{name}.losses.safetensors"] = save({"losses": queries.truth.by_band.contiguous()})
        files.update(image_files(f"{name}.safetensors", queries.images, queries.passed_on))
    header = {
        **identity,
        "settings": settings.stated,
        "num_train": len(train),
        "image_shape": train.image_shape,
        "train_hash": train.content_hash,
        "train_images": with_images,
        "bands": [(band.first, band.last, band.count) for band in first.bands],
        "query_sets": {name: _query_set(queries) for name, queries in query_sets.items()},
        "checkpoints": list(checkpoints),
        "made": {**made, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    return write_bundle_files(path, header, files)


def _query_set(queries: MeasuredQueries) -> QuerySetHeader:
    images = queries.images
    return QuerySetHeader(
        num_queries=len(images), content=images.content_hash, images=queries.passed_on, truth=queries.truth.hash
    )


def check_exportable(experiment: Experiment) -> None:
    """Refuse to pass on what is others'.

    Raises:
        UsageError: LoRA was trained on a base from a folder.
    """
    if isinstance(experiment.base, StoredBase) and experiment.bundle is None:
        raise UsageError(
            f"The models are LoRA on {experiment.settings.model.base}, somebody's pretrained model, which a ground truth does "
            "not pass on; export works where --model.base is DATASET:PRESET."
        )


def _checkpoint_files(experiment: Experiment) -> list[str]:
    """The last checkpoint is the target model itself, so it is not kept twice."""
    model = MODEL if experiment.base is None else LORA
    names = experiment.target.checkpoint_names()
    return [f"checkpoints/{name.removesuffix('.safetensors')}/{Path(model).name}" for name in names[:-1]] + [model]


def _model_files(experiment: Experiment) -> dict[str, bytes]:
    """As ``UNet2DModel.from_pretrained`` reads them: a folder with configuration and weights for each; of LoRA as peft does."""
    job, store = experiment.target, experiment.store
    networks = [job.load_checkpoint(store, name) for name in job.checkpoint_names()[:-1]] + [job.load(store)]
    files: dict[str, bytes] = {}
    for name, network in zip(_checkpoint_files(experiment), networks, strict=True):
        files[name] = _weights(network, "" if experiment.base is None else PEFT_PREFIX)
        config = "config.json" if experiment.base is None else "adapter_config.json"
        files[str(Path(name).with_name(config))] = _json(
            _network_config(network) if experiment.base is None else lora_config(network)
        )
    if experiment.base is not None:
        network = experiment.base.load(store)
        files[BASE] = _weights(network)
        files[str(Path(BASE).with_name("config.json"))] = _json(_network_config(network))
    return files


def _network_config(network: nn.Module) -> dict[str, Any]:
    config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # type: ignore[arg-type]
    return {"_class_name": type(network).__name__, **config}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _weights(network: nn.Module, prefix: str = "") -> bytes:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {
        f"{prefix}{name}": value.contiguous() for name, value in trained_weights(network).items()
    }
    return save(tensors, metadata={"format": "pt"})
