"""Does it fit? Asked before any work, because finding out after hours is dear."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from humanize import naturalsize

from attribench.computing.memory import available_memory


def shortage(
    what: str, memory: int, device: torch.device, disk: int = 0, folder: Path = Path(), remedy: str = ""
) -> str | None:
    """Say that ``memory`` bytes on ``device`` or ``disk`` bytes under ``folder`` are not to be had, or return None.

    Args:
        what: what needs them, to begin the sentence with.
        folder: need not exist yet.
        remedy: what to do about it, to end with.
    """
    free_memory = available_memory(device)
    if memory > free_memory:
        kind = "GPU memory" if device.type == "cuda" else "memory"
        return f"{what} needs {_size(memory)} of {kind}; {_size(free_memory)} are available. {remedy}".strip()
    free_disk = shutil.disk_usage(_existing(folder)).free
    if disk > free_disk:
        return f"{what} needs {_size(disk)} on disk; {_size(free_disk)} are free at {folder}. {remedy}".strip()
    return None


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _size(num_bytes: int) -> str:
    return f"{naturalsize(num_bytes, binary=True, format='%.2f')} ({num_bytes} bytes)"
