"""Where a command writes, looked at before it works: hours must not end at a folder that cannot be written to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from attribench.errors import AttribenchError, UsageError


def writable_folder(option: str, folder: str | Path) -> Path:
    """The folder as a path, after a file was written into it and removed; nothing is left behind.

    Args:
        option: what a message calls it, as ``--out``.
        folder: what was passed; if it is missing, the nearest folder above is looked at, where it would be made.

    Raises:
        UsageError: it is a file, or lies below one.
        AttribenchError: nothing can be written into it.
    """
    path = Path(folder)
    try:
        there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            raise UsageError(f"{option} {path} must be a folder, and {there} is not one: name another.")
        with tempfile.NamedTemporaryFile(dir=there, prefix=".attribench-"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise AttribenchError(f"{option} {path} cannot be written to ({reason}): name another folder.") from error
    return path


def new_folder(option: str, folder: str | Path) -> Path:
    """The folder as a path, after it was looked at like :func:`writable_folder`: nothing may be in it yet.

    Raises:
        UsageError: it holds something, is a file, or lies below one.
        AttribenchError: nothing can be written into it.
    """
    path = writable_folder(option, folder)
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{option} {path} is not empty: name a new folder.")
    return path


def writable_file(option: str, file: str | Path) -> Path:
    """The file as a path, after its folder was looked at like :func:`writable_folder`.

    Raises:
        UsageError: it is a folder, or lies below a file.
        AttribenchError: nothing can be written into its folder.
    """
    path = Path(file)
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file.")
    writable_folder(option, path.parent)
    return path
