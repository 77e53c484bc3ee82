"""CLIP models by open_clip's names: which architecture, which weights file, loaded without running code from it.

open_clip's ``ViT-B-32`` computes with GELU, while OpenAI's weights were trained with QuickGELU; since version 3 open_clip
only warns of that. Here the pretrained tag decides activation and pre-processing, for a local file as for a download.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attribench.embeddings.backbone import Transform
from attribench.embeddings.weights import first_line, locate_on_hub, safer_first, why_not_loaded
from attribench.errors import AttribenchError, UsageError, nearest
from attribench.store.files import canonical, digest_text

DEFAULT_MODEL, DEFAULT_PRETRAINED = "ViT-B-32", "openai"

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class ClipModel:
    """An architecture and the weights that belong to it.

    Args:
        label: what messages call it.
        name: what open_clip calls it.
        architecture: open_clip's configuration.
        pretrained: open_clip's tag of the weights; "" for weights that open_clip does not know.
        quick_gelu: the tag asks for QuickGELU.
        preprocessing: mean, standard deviation, interpolation and resize mode; open_clip's defaults where not given.
        repository: where the weights are on the Hugging Face hub, or "".
        files: their names there, the preferred one first.
    """

    label: str
    name: str
    architecture: Mapping[str, Any]
    pretrained: str = ""
    quick_gelu: bool = False
    preprocessing: Mapping[str, Any] | None = None
    repository: str = ""
    files: tuple[str, ...] = ()

    @property
    def spec(self) -> Mapping[str, Any]:
        """What the embeddings depend on apart from weights and images."""
        return {
            "architecture": self.architecture,
            "quick_gelu": self.quick_gelu or bool(self.architecture.get("quick_gelu")),
            "preprocessing": self.preprocessing or {},
        }

    def locate(self) -> Path:
        """The weights file in the Hugging Face cache, downloaded if it is not there: one attempt a process.

        Raises:
            WeightsMissingError: it is not there and cannot be downloaded.
        """
        return locate_on_hub(self.label, self.repository, self.files, self.pretrained)

    def load(self, weights: Path) -> tuple[nn.Module, Transform]:
        """Build the model, in float32 on the CPU and in evaluation mode, and its inference transform.

        Raises:
            AttribenchError: the file is damaged, holds more than weights, or does not fit the model.
        """
        import open_clip

        options = {f"image_{key}": value for key, value in (self.preprocessing or {}).items()}
        try:
            with torch.random.fork_rng(devices=[]):  # open_clip draws initial weights before it loads the real ones
                model, _, transform = open_clip.create_model_and_transforms(
                    self.name,
                    pretrained=str(weights.absolute()),
                    force_quick_gelu=self.quick_gelu,
                    pretrained_text=False,
                    weights_only=True,
                    **options,
                )
        except Exception as error:  # a damaged file can fail in any way
            raise AttribenchError(why_not_loaded(self.label, weights, error)) from error
        return model.eval(), transform

    def embed(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """The embeddings of pre-processed images ``(B, 3, H, W)``."""
        embeddings: Tensor = network.encode_image(pixels)  # type: ignore[operator]
        return embeddings


def find_model(model: str, pretrained: str, own_weights: bool) -> ClipModel:
    """Look a model and its weights up.

    Args:
        model: a name of ``open_clip.list_models()``, or the path of a JSON file in open_clip's format (a model
            configuration, or an ``open_clip_config.json``).
        pretrained: a tag of ``open_clip.list_pretrained()``.
        own_weights: a file will be given in place of the download, so that an unknown default tag does not matter.

    Raises:
        UsageError: no such model, tag or file; the nearest name is suggested.
    """
    import open_clip

    if model.endswith(".json"):
        name, preprocessing = _register(Path(model))
    else:
        name, preprocessing = model.replace("/", "-"), None
    architecture = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if architecture is None:
        suggestion = nearest(name, open_clip.list_models())
        raise UsageError(
            f"Unknown open_clip model {model!r}.{suggestion} `open_clip.list_models()` lists them; the path of a JSON "
            "model configuration will do too."
        )
    found = open_clip.get_pretrained_cfg(name, pretrained)
    if not found:
        if own_weights and pretrained == DEFAULT_PRETRAINED:
            return ClipModel(model, name, architecture, preprocessing=preprocessing)
        tags = open_clip.list_pretrained_tags_by_model(name)
        known = f"{nearest(pretrained, tags)} It has: {', '.join(tags)}." if tags else " Pass a checkpoint file."
        raise UsageError(f"open_clip has no weights {pretrained!r} for {model}.{known}")
    repository, _, file = str(found.get("hf_hub", "")).rpartition("/")
    return ClipModel(
        label=model,
        name=name,
        architecture=architecture,
        pretrained=pretrained,
        quick_gelu=bool(found.get("quick_gelu")),
        preprocessing={key: found[key] for key in _PREPROCESSING if key in found},
        repository=repository,
        files=safer_first(file or "open_clip_pytorch_model.bin"),
    )


def _register(path: Path) -> tuple[str, Mapping[str, Any] | None]:
    """Make a model configuration file known to open_clip, under a name that cannot be another model's."""
    try:
        content = json.loads(path.read_text("utf-8"))
        architecture = dict(content.get("model_cfg", content))
        given = content.get("preprocess_cfg", {})
        preprocessing = {key: given[key] for key in _PREPROCESSING if key in given}
    except OSError as error:
        raise UsageError(f"Cannot read the model configuration {path}: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a JSON model configuration: {first_line(error)}.") from error
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in architecture]
    if missing:
        raise UsageError(f"{path} is not an open_clip model configuration: it has no {', '.join(missing)}.")
    return _register_architecture(canonical(architecture), path.stem), preprocessing or None


@functools.cache
def _register_architecture(text: str, stem: str) -> str:
    import open_clip

    name = f"{stem}-{digest_text(text)[:16]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.json")
        file.write_text(text, "utf-8")
        open_clip.add_model_config(file)
    return name
