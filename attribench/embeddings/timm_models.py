"""Image models by timm's names: which weights file, which pre-processing, loaded without running code from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attribench.embeddings.backbone import Transform
from attribench.embeddings.weights import locate_on_hub, read_state_dict, safer_first, why_not_loaded
from attribench.errors import AttribenchError, UsageError, nearest

#: timm's default name on the hub.
_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class TimmModel:
    """An architecture of timm without its classifier, and the weights that belong to it.

    An embedding is what goes into the classifier: for DINOv2 the normalised class token, for a convolutional network the
    pooled features.

    Args:
        label: what messages call it.
        name: what timm calls it, with the tag of the weights if it has one.
        preprocessing: timm's data configuration: size, crop, interpolation, mean and standard deviation.
        classifier: the classifier's name among the weights, or "".
        repository: where the weights are on the Hugging Face hub, or "".
        files: their names there, the preferred one first.
    """

    label: str
    name: str
    preprocessing: Mapping[str, Any]
    classifier: str = ""
    repository: str = ""
    files: tuple[str, ...] = _FILES

    @property
    def spec(self) -> Mapping[str, Any]:
        """What the embeddings depend on apart from weights and images."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in self.preprocessing.items()}
        return {"timm": self.name, "preprocessing": plain}

    def locate(self) -> Path:
        """The weights file in the Hugging Face cache, downloaded if it is not there: one attempt a process.

        Raises:
            WeightsMissingError: it is not there and cannot be downloaded.
        """
        return locate_on_hub(self.label, self.repository, self.files)

    def load(self, weights: Path) -> tuple[nn.Module, Transform]:
        """Build the model, in float32 on the CPU and in evaluation mode, and its inference transform.

        A checkpoint may have the published classifier, another one or none: it is dropped. timm converts the original
        files of some models, DINOv2 among them, to its own names.

        Raises:
            AttribenchError: the file is damaged, holds more than weights, or does not fit the model.
        """
        import timm
        from timm.data import create_transform

        try:
            state = read_state_dict(weights)
            head = state.get(f"{self.classifier}.weight") if self.classifier else None
            classes = 0 if head is None else len(head)
            # With as many classes as the file has, timm insists that every weight is there and fits.
            overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0, "custom_load": False}
            with torch.random.fork_rng(devices=[]):  # timm draws initial weights before it loads the real ones
                model = timm.create_model(
                    self.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes
                )
            model.reset_classifier(0)
        except Exception as error:  # a damaged file can fail in any way
            raise AttribenchError(why_not_loaded(self.label, weights, error)) from error
        transform: Transform = create_transform(**self.preprocessing, is_training=False)
        return model.float().eval(), transform

    def embed(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """The embeddings of pre-processed images ``(B, 3, H, W)``."""
        embeddings: Tensor = network(pixels)
        return embeddings


def timm_names() -> frozenset[str]:
    """All names that timm knows, with and without a tag."""
    import timm

    return frozenset((*timm.list_models(), *timm.list_pretrained()))


def find_timm_model(name: str, label: str = "") -> TimmModel:
    """Look a model up by ``ARCHITECTURE`` or ``ARCHITECTURE.TAG``.

    Args:
        label: what messages call it; by default its name.

    Raises:
        UsageError: timm has no such model or tag; the nearest name is suggested.
    """
    import timm
    from timm.data import resolve_data_config

    known = timm_names()
    if name not in known:
        raise UsageError(f"Unknown timm model {name!r}.{nearest(name, known)} `timm.list_models()` lists them.")
    found = timm.get_pretrained_cfg(name)
    config = found.to_dict() if found is not None else {}
    classifier = config.get("classifier") or ""
    file = config.get("hf_hub_filename")
    return TimmModel(
        label=label or name,
        name=name,
        preprocessing=resolve_data_config(pretrained_cfg=config),
        classifier=classifier if isinstance(classifier, str) else classifier[0],
        repository=config.get("hf_hub_id") or "",
        files=safer_first(file) if file else _FILES,
    )
