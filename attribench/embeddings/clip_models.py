"""CLIP models by open_clip's names: which architecture, which weights file, loaded without running code from it.

open_clip's ``ViT-B-32`` computes with GELU, while OpenAI's weights were trained with QuickGELU; since version 3 open_clip
only warns of that. Here the pretrained tag decides activation and pre-processing, for a local file as for a download.
"""

from __future__ import annotations

import functools
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from attribench.errors import AttribenchError, UsageError, nearest
from attribench.store.files import canonical, digest_text

Transform = Callable[[Image.Image], Tensor]

DEFAULT_MODEL, DEFAULT_PRETRAINED = "ViT-B-32", "openai"

#: Read by safetensors, or by ``torch.load(weights_only=True)``, which builds tensors and containers and nothing else.
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_TIMEOUT_SECONDS = 5.0


class WeightsMissingError(AttribenchError):
    """The weights are neither here nor to be had; the message says what to download."""


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
        found = _fetch(self.repository, self.files) if self.repository else "open_clip gives no place on the hub"
        if isinstance(found, Path):
            return found
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repository, self.files[0]) if self.repository else "them"
        raise WeightsMissingError(
            f"The weights '{self.pretrained}' of {self.label} are not in the local cache and cannot be downloaded "
            f"({found}): download {url}"
        )

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
            raise AttribenchError(_why(self.label, weights, error)) from error
        return model.eval(), transform


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
        files=_safer_first(file or "open_clip_pytorch_model.bin"),
    )


def check_checkpoint(path: Path) -> None:
    """Refuse what is certainly no weights file, before any work.

    Raises:
        UsageError: no such file, or another suffix than :data:`CHECKPOINT_SUFFIXES`.
    """
    if not path.is_file():
        raise UsageError(f"There is no checkpoint file {path}.")
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise UsageError(f"A checkpoint is a file {', '.join(CHECKPOINT_SUFFIXES)}; got {path}.")


def _safer_first(file: str) -> tuple[str, ...]:
    if file == "open_clip_pytorch_model.bin":  # open_clip's default name; its safetensors twin is called otherwise
        return "open_clip_model.safetensors", file
    stem, dot, suffix = file.rpartition(".")
    return (f"{stem}{dot}safetensors", file) if suffix in ("bin", "pth") else (file,)


@functools.cache
def _fetch(repository: str, files: tuple[str, ...]) -> Path | str:
    """The first of ``files`` that is in the cache or can be downloaded, or why there is none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in files:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    for file in files:
        try:
            # Asked first, because a download of the hub's retries for half a minute where there is no network.
            get_hf_file_metadata(hf_hub_url(repository, file), timeout=_TIMEOUT_SECONDS)
            return Path(hf_hub_download(repository, file, etag_timeout=_TIMEOUT_SECONDS))
        except Exception as error:  # of whatever HTTP library the hub's client is built on
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # the repository has the other file only
            return f"{type(error).__name__}: {_first_line(error)}"
    return "no such file there"


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
        raise UsageError(f"{path} is not a JSON model configuration: {_first_line(error)}.") from error
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


def _why(model: str, weights: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return (
            f"{weights} is a TorchScript archive, which holds code: it is not loaded. Pass the weights alone, e.g. the "
            "safetensors file of the same model on the Hugging Face hub."
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{weights} is damaged, or holds Python objects beside weights, which could run code: it is not loaded. Pass "
            "a safetensors file or a plain state_dict."
        )
    if "loading state_dict" in text or "size mismatch" in text:
        details = [line.strip() for line in text.splitlines()[1:] if line.strip()] or [_first_line(error)]
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        return f"The weights in {weights} do not fit the model {model}: {details[0][:200].rstrip('.')}{more}."
    what = f"{type(error).__name__}: {_first_line(error)}" if text else type(error).__name__
    return f"{weights} is damaged, or no weights of the model {model} ({what})."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
