"""Files written whole or not at all, and the one JSON form of a value that hashes are taken of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path

from attribench.errors import ArtifactError


def canonical(spec: object) -> str:
    """The one JSON text of a specification: sorted keys, dataclasses and tuples made plain.

    Raises:
        TypeError: something in it has no JSON form (a tensor, a path, a class).
    """
    return json.dumps(plain(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def digest_text(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> ArtifactError:
    """Say what went wrong with the disk, where, and what to do."""
    where = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        from humanize import naturalsize

        free = naturalsize(shutil.disk_usage(where).free, binary=True)
        return ArtifactError(
            f"The disk of {where} is full ({free} free). Free some space or pass another --workdir, then run the "
            "same command again: everything finished is kept."
        )
    return ArtifactError(f"Cannot write {path}: {error.strerror or error}.")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sum(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
