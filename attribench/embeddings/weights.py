"""Files of weights: where they are, what is refused, and how they are read without running code from them."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attribench.errors import AttribenchError, UsageError

#: Read by safetensors, or by ``torch.load(weights_only=True)``, which builds tensors and containers and nothing else.
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

#: What training programs wrap a state_dict in; the first that is there counts: averaged weights are meant to be used.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")

_TIMEOUT_SECONDS = 5.0


class WeightsMissingError(AttribenchError):
    """The weights are neither here nor to be had; the message says what to download."""


def check_checkpoint(path: Path) -> None:
    """Refuse what is certainly no weights file, before any work.

    Raises:
        UsageError: no such file, or another suffix than :data:`CHECKPOINT_SUFFIXES`.
    """
    if not path.is_file():
        raise UsageError(f"There is no checkpoint file {path}.")
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise UsageError(f"A checkpoint is a file {', '.join(CHECKPOINT_SUFFIXES)}; got {path}.")


def locate_on_hub(label: str, repository: str, files: Sequence[str], tag: str = "") -> Path:
    """The weights file in the Hugging Face cache, downloaded if it is not there: one attempt a process.

    Args:
        label: what messages call the model.
        repository: where the weights are on the hub, or "".
        files: their names there, the preferred one first.
        tag: which weights of the model; "" where there is no choice.

    Raises:
        WeightsMissingError: it is not there and cannot be downloaded.
    """
    found = fetch(repository, tuple(files)) if repository else "no place on the hub is known"
    if isinstance(found, Path):
        return found
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository, files[0]) if repository else "them"
    which = f"The weights {tag!r}" if tag else "The weights"
    raise WeightsMissingError(
        f"{which} of {label} are not in the local cache and cannot be downloaded ({found}): download {url}"
    )


@functools.cache
def fetch(repository: str, files: tuple[str, ...]) -> Path | str:
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
            return f"{type(error).__name__}: {first_line(error)}"
    return "no such file there"


def safer_first(file: str) -> tuple[str, ...]:
    """The names under which the hub may have a file, its safetensors twin first."""
    if file == "open_clip_pytorch_model.bin":  # open_clip's default name; its safetensors twin is called otherwise
        return "open_clip_model.safetensors", file
    stem, dot, suffix = file.rpartition(".")
    return (f"{stem}{dot}safetensors", file) if suffix in ("bin", "pth") else (file,)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint onto the CPU, out of what a training program may have wrapped them in.

    Raises:
        ValueError: there are no weights in it.
        Exception: of whatever kind a damaged file, or one that holds code, makes the readers raise.
    """
    content: object
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        content = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds no weights")
    return {str(key).removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def why_not_loaded(model: str, weights: Path, error: Exception) -> str:
    """Say in one line why loading ``weights`` into ``model`` failed."""
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
        details = [line.strip() for line in text.splitlines()[1:] if line.strip()] or [first_line(error)]
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        return f"The weights in {weights} do not fit the model {model}: {details[0][:200].rstrip('.')}{more}."
    what = f"{type(error).__name__}: {first_line(error)}" if text else type(error).__name__
    return f"{weights} is damaged, or no weights of the model {model} ({what})."


def first_line(error: Exception) -> str:
    """What an error says, in one short line."""
    return (str(error).strip().splitlines() or [""])[0][:200]
