"""The pretrained network that LoRA is trained on, as jobs find it in the store."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attribench.diffusion.spaces import PixelSpace, Space
from attribench.errors import ArtifactError
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.files import canonical, digest_text, plain

KIND = "bases"

#: The classes of diffusers that a configuration may name.
_KINDS = {
    None: "UNet2DModel", "UNet2DModel": "UNet2DModel", "UNet2DConditionModel": "UNet2DConditionModel",
    "AutoencoderKL": "AutoencoderKL",
}  # fmt: skip


class Base(Protocol):
    """A pretrained network in the store: a plain picklable value, as the jobs are that it is part of."""

    @property
    def content(self) -> str:
        """Hash of the weights and of how they are used, see :func:`content_of`: what models trained on it are bound to."""

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        """Kinds and specifications of the artifacts that it is read from."""

    def load(self, store: ArtifactStore) -> nn.Module:
        """The network in evaluation mode, on the CPU; another object at every call.

        Raises:
            ArtifactError: it is not in the store.
        """

    def skeleton(self) -> nn.Module:
        """The network with any weights, on torch's default device."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The captions that images are generated with, in order; none for a network that is told no text."""

    def space(self, store: ArtifactStore, device: torch.device) -> Space:
        """What the network works in."""

    def stand_in(self, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], dict[str, tuple[int, ...]]]:
        """Shapes of one image as the network is given it, and of what it is told: to count what these take."""


@dataclass(frozen=True)
class StoredBase:
    """A network of diffusers that lies in the store by its content.

    Args:
        content: see :func:`content_of`.
        config: how it is built, as JSON.
    """

    content: str
    config: str

    @property
    def spec(self) -> dict[str, Any]:
        return {"content": self.content, "config": digest_text(self.config)}

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        return [(KIND, self.spec)]

    def load(self, store: ArtifactStore) -> nn.Module:
        artifact = store.find(KIND, self.spec)
        if artifact is None:
            raise ArtifactError(f"The base {self.content[:12]} is not in {store.root}; run the whole command again.")
        network = self.skeleton()
        network.load_state_dict(artifact.load_tensors("model"))
        return network.float().eval()

    def skeleton(self) -> nn.Module:
        import diffusers

        config = json.loads(self.config)
        network: nn.Module = getattr(diffusers, _KINDS[config.get("_class_name")]).from_config(config)
        return network

    @property
    def prompts(self) -> tuple[str, ...]:
        return ()

    def space(self, store: ArtifactStore, device: torch.device) -> Space:
        return PixelSpace()

    def stand_in(self, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], dict[str, tuple[int, ...]]]:
        return image_shape, {}


def store_base(store: ArtifactStore, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> StoredBase:
    """Put a network of diffusers into the store, unless it is there.

    Args:
        config: as diffusers writes it into ``config.json``; of what begins with ``_`` the class alone counts.
        weights: its state.
    """
    kept = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    described = StoredBase("", canonical(kept))
    with torch.device("meta"):
        network = described.skeleton()
    base = replace(described, content=content_of(network, weights))

    def build(staging: Staging) -> None:
        staging.save_json("config", kept)
        staging.save_tensors("model", weights)

    store.get_or_create(KIND, base.spec, build)
    return base


def content_of(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Identify a network of diffusers by its weights and by what its configuration makes of them, wherever it is from.

    The same weights compute something else with another activation or ε. What a configuration leaves out, or says as the
    constructor would have it anyway, does not count: an older or a newer diffusers writes fewer or more options.

    Args:
        network: has the configuration; its own weights do not matter.
        weights: its state.
    """
    config: Mapping[str, Any] = network.config  # type: ignore[assignment]
    usual = {
        name: parameter.default for name, parameter in inspect.signature(type(network).__init__).parameters.items()
    }
    options = {name: value for name, value in config.items() if name in usual and plain(value) != plain(usual[name])}
    return digest_text(canonical([type(network).__name__, options, weights_hash(weights)]))


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Identify weights by names, types, shapes and bits, wherever they lie."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
