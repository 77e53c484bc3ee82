"""Ground truth that travels: what a run needs, and no more, in one file that is safe to open.

A bundle holds subset masks, losses by band of noise level, the query sets, and, where they exist and may be passed on, the
train images and the target model with its checkpoints, as diffusers reads them. With it nothing is retrained.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attribench.data import ImageSet
from attribench.errors import BundleError
from attribench.settings import QUERY_SETS, Settings
from attribench.store.artifacts import Artifact, ArtifactStore, Staging
from attribench.store.files import digest_text
from attribench.truth.base import StoredBase, store_base
from attribench.truth.bundle_files import BundleFiles, Header
from attribench.truth.ground_truth import Band, GroundTruth
from attribench.truth.jobs import TrainJob

MASKS, TRAIN = "masks.safetensors", "train.safetensors"
MODEL = "model/diffusion_pytorch_model.safetensors"
#: Of LoRA, as peft and diffusers call the files: the target model's, and the network it was trained on.
LORA, BASE = "model/adapter_model.safetensors", "base/diffusion_pytorch_model.safetensors"
#: What peft puts before the names of weights in its files, and insists on when it reads one.
PEFT_PREFIX = "base_model.model."


class Bundle:
    """An open bundle.

    Args:
        path: a file, or a folder with the same files.

    Raises:
        BundleError: it cannot be opened; see :class:`attribench.truth.bundle_files.BundleFiles`.
    """

    def __init__(self, path: Path) -> None:
        self.files = BundleFiles(path)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.files.path

    @property
    def header(self) -> Header:
        """What it says of itself."""
        return self.files.header

    @property
    def query_sets(self) -> tuple[str, ...]:
        """Those it has losses on, in the order tables show them."""
        return tuple(name for name in QUERY_SETS if name in self.header.query_sets)

    @property
    def has_model(self) -> bool:
        """Whether the target model is in it."""
        return bool(self.header.checkpoints)

    @property
    def weights(self) -> str:
        """Checksum of the target model's weights and of its checkpoints'."""
        return digest_text("".join(self.header.files[name].sha256 for name in self.header.checkpoints))

    @cached_property
    def settings(self) -> Settings:
        """The settings the models were trained with."""
        return Settings.of(self.header.settings)

    @cached_property
    def masks(self) -> Tensor:
        """bool ``(num_subsets, num_train)``."""
        return self._tensors(MASKS)["masks"].bool()

    def ground_truth(self, query_set: str) -> GroundTruth:
        """Masks and losses on a query set.

        Raises:
            BundleError: it has no losses on it, or other ones than its header names.
        """
        if query_set not in self.header.query_sets:
            known = ", ".join(self.header.query_sets)
            raise BundleError(f"{self.path} has no losses on {query_set} queries; it has: {known}.")
        truth = GroundTruth(
            self.masks,
            self._tensors(f"{query_set}.losses.safetensors")["losses"],
            [Band(*b) for b in self.header.bands],
        )
        if truth.hash != self.header.query_sets[query_set].truth:
            raise BundleError(f"{self.path}: the losses on {query_set} are not those that {query_set}'s hash is of.")
        return truth

    def queries(self, query_set: str) -> ImageSet:
        """A query set's images.

        Raises:
            BundleError: they are not in it.
        """
        entry = self.header.query_sets.get(query_set)
        if entry is None or not entry.images:
            raise BundleError(f"{self.path} does not hold the images of the {query_set} queries.")
        return self._images(f"{query_set}.safetensors", entry.content)

    def train(self) -> ImageSet:
        """The train images.

        Raises:
            BundleError: they are not in it.
        """
        if not self.header.train_images:
            raise BundleError(f"{self.path} does not hold the train images.")
        return self._images(TRAIN, self.header.train_hash)

    def verify(self) -> None:
        """Read everything, and compare every hash with what it is of.

        Raises:
            BundleError: something is missing, damaged, not listed, or not what its hash says.
        """
        self.files.verify()
        for name, entry in self.header.query_sets.items():
            self.ground_truth(name)
            if entry.images:
                self.queries(name)
        if self.header.train_images:
            self.train()

    def check(self, train: ImageSet, validation: ImageSet) -> None:
        """Insist that a data set is the one the ground truth is of.

        Raises:
            BundleError: it has other train images, or other validation queries.
        """
        wanted = [("train images", self.header.train_hash, train)]
        if entry := self.header.query_sets.get("validation"):
            wanted.append(("queries", entry.content, validation))
        for what, content, images in wanted:
            if images.content_hash != content:
                raise BundleError(
                    f"The ground truth {self.header.name} ({self.path}) is of other {what} than these: their content is "
                    f"{content[:12]} there and {images.content_hash[:12]} here."
                )

    def install_target(self, store: ArtifactStore, job: TrainJob) -> Artifact:
        """Put the target model and its checkpoints into the store, the same bytes as its training would.

        Raises:
            BundleError: it is not in the bundle, or another one than ``job`` trains.
        """
        if not self.has_model:
            raise BundleError(f"The ground truth {self.header.name} ({self.path}) holds no model.")
        names = job.checkpoint_names()
        if len(names) != len(self.header.checkpoints):
            raise BundleError(f"{self.path} holds {len(self.header.checkpoints)} checkpoints; {len(names)} are needed.")

        def build(staging: Staging) -> None:
            staging.save_tensors("model", self._model(self.header.checkpoints[-1]))
            staging.save_tensors("indices", {"indices": torch.arange(job.num_images)})
            for name, file in zip(names, self.header.checkpoints, strict=True):
                staging.save_tensors(name.removesuffix(".safetensors"), self._model(file))

        return store.get_or_create("models", job.spec, build)

    def install_base(self, store: ArtifactStore) -> StoredBase:
        """Put the network that LoRA was trained on into the store.

        Raises:
            BundleError: it is not in the bundle, or is not readable.
        """
        try:
            config = json.loads(self.files.read(str(Path(BASE).with_name("config.json"))))
        except ValueError as error:
            raise BundleError(f"{self.path}: the configuration of the base is not readable.") from error
        return store_base(store, config, self._tensors(BASE))

    def _images(self, name: str, content: str) -> ImageSet:
        tensors = self._tensors(name)
        images = ImageSet(tensors["images"], tuple(self._ids(name)), tensors.get("labels"))
        if images.content_hash != content:
            raise BundleError(f"{self.path}: the images of {name} are not those that their hash is of.")
        return images

    def _ids(self, name: str) -> list[str]:
        ids: list[str] = json.loads(self.files.read(_ids_name(name)))
        return ids

    def _model(self, name: str) -> dict[str, Tensor]:
        """A model's weights by the names that jobs have for them."""
        return {key.removeprefix(PEFT_PREFIX): value for key, value in self._tensors(name).items()}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.files.read(name))
        except SafetensorError as error:
            raise BundleError(f"{self.path}: {name} is not a safetensors file: {error}.") from error


def image_files(name: str, images: ImageSet, with_images: bool) -> dict[str, bytes]:
    """Files of an image set: ids always, pixels and labels where they may be passed on."""
    from safetensors.torch import save

    files = {_ids_name(name): json.dumps(list(images.ids), ensure_ascii=False).encode()}
    if with_images:
        tensors: dict[str, Any] = {"images": images.images.contiguous()}
        if images.labels is not None:
            tensors["labels"] = images.labels
        files[name] = save(tensors)
    return files


def _ids_name(name: str) -> str:
    return name.replace(".safetensors", ".ids.json")
