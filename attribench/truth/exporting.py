"""From an experiment's store to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attribench.data import ImageSet
from attribench.settings import QUERY_SETS
from attribench.truth.bundle import MASKS, MODEL, TRAIN, image_files
from attribench.truth.bundle_files import Header, QuerySetHeader, write_bundle_files
from attribench.truth.experiment import Experiment


def export_bundle(
    experiment: Experiment, path: Path, identity: Mapping[str, Any], made: Mapping[str, Any], with_images: bool
) -> Header:
    """Write a ground truth that is complete in the store as a bundle.

    Args:
        experiment: prepared.
        path: the file to write.
        identity: the header's ``name``, ``data``, ``preset``, ``overrides``, ``data_licence``.
        made: how it was made; the time is added.
        with_images: whether the data set's images may be passed on. Generated images are the model's, and always are.
    """
    from safetensors.torch import save

    truths = {name: experiment.ground_truth(name) for name in QUERY_SETS}
    images = {name: experiment.query_images(name) for name in QUERY_SETS}
    passed_on = {"validation": with_images, "generation": True}
    first = truths[QUERY_SETS[0]]
    files = {
        MASKS: save({"masks": first.masks.byte()}),
        **image_files(TRAIN, experiment.train, with_images),
        **_model_files(experiment),
    }
    for name in QUERY_SETS:
        files[f"{name}.losses.safetensors"] = save({"losses": truths[name].by_band.contiguous()})
        files.update(image_files(f"{name}.safetensors", images[name], passed_on[name]))
    header = {
        **identity,
        "dataset": experiment.label,
        "settings": asdict(experiment.settings),
        "num_train": len(experiment.train),
        "image_shape": experiment.train.image_shape,
        "train_hash": experiment.train.content_hash,
        "train_images": with_images,
        "bands": [(band.first, band.last, band.count) for band in first.bands],
        "query_sets": {name: _query_set(images[name], passed_on[name], truths[name].hash) for name in QUERY_SETS},
        "checkpoints": _checkpoint_files(experiment),
        "made": {**made, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    return write_bundle_files(path, header, files)


def _query_set(images: ImageSet, passed_on: bool, truth: str) -> QuerySetHeader:
    return QuerySetHeader(num_queries=len(images), content=images.content_hash, images=passed_on, truth=truth)


def _checkpoint_files(experiment: Experiment) -> list[str]:
    """The last checkpoint is the target model itself, so it is not kept twice."""
    names = experiment.target.checkpoint_names()
    return [f"checkpoints/{name.removesuffix('.safetensors')}/{Path(MODEL).name}" for name in names[:-1]] + [MODEL]


def _model_files(experiment: Experiment) -> dict[str, bytes]:
    """As ``UNet2DModel.from_pretrained`` reads them: a folder with configuration and weights for each."""
    job, store = experiment.target, experiment.store
    networks = [job.load_checkpoint(store, name) for name in job.checkpoint_names()[:-1]] + [job.load(store)]
    files: dict[str, bytes] = {}
    for name, network in zip(_checkpoint_files(experiment), networks, strict=True):
        files[name] = _weights(network)
        config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # type: ignore[arg-type]
        content = {"_class_name": type(network).__name__, **config}
        files[str(Path(name).with_name("config.json"))] = json.dumps(content, indent=1, sort_keys=True).encode()
    return files


def _weights(network: nn.Module) -> bytes:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {name: value.contiguous() for name, value in network.state_dict().items()}
    return save(tensors, metadata={"format": "pt"})
