"""Artifacts on their way from one store to another: all files with their checksums, looked at when they arrive."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attribench.errors import ArtifactError
from attribench.store.artifacts import MANIFEST, Artifact, ArtifactStore, Spec
from attribench.store.files import atomic_write, storage_error, sync_folder

Bytes = NDArray[np.uint8]


class DamagedParcelError(ArtifactError):
    """What arrived is not what was sent, or not what was asked for."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """An artifact as bytes.

    Attributes:
        kind, key: what it is called in every store.
        files: by name, manifest and specification among them.
    """

    kind: str
    key: str
    files: Mapping[str, Bytes]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(content.nbytes for content in self.files.values())


def pack(artifact: Artifact) -> Parcel:
    """All of an artifact."""
    return Parcel(artifact.kind, artifact.key, read_files(artifact.folder))


def read_files(folder: Path) -> dict[str, Bytes]:
    """The files of a folder that are not being written, by name."""
    return {
        file.name: np.fromfile(file, np.uint8)
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix != ".tmp"
    }


def adopt(store: ArtifactStore, parcel: Parcel) -> Artifact:
    """Take an artifact into a store; it is verified before it becomes visible there.

    Args:
        store: a whole one, of no namespace.

    Raises:
        DamagedParcelError: a file is missing or does not match its checksum, or the parcel is not what its label says.
        ArtifactError: the disk is full or not writable.
    """
    _check_label(parcel)
    parent, folder = store.root / parcel.kind, store.root / parcel.kind / parcel.key
    temporary = parent / f".{parcel.key}.{os.getpid()}-{secrets.token_hex(4)}.arrived"
    try:
        temporary.mkdir(parents=True)
        for name, content in parcel.files.items():
            with (temporary / name).open("wb") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        damage = store.damage(parcel.kind, parcel.key, temporary) or _additional(parcel)
        if damage is not None:
            raise DamagedParcelError(f"A {parcel.kind} artifact was damaged on its way: {damage}.")
        try:
            temporary.rename(folder)
            store.renamed(temporary, folder)
        except OSError:
            if not (folder / MANIFEST).is_file():  # else it is there already
                raise
        sync_folder(parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        store.renamed(temporary, None)
    shutil.rmtree(store.root / ".work" / parcel.kind.replace("/", "-") / parcel.key, ignore_errors=True)
    found = store.find_key(parcel.kind, parcel.key)
    if found is None:
        raise DamagedParcelError(f"The {parcel.kind} artifact {parcel.key} that was there already is damaged.")
    return found


def _additional(parcel: Parcel) -> str | None:
    named = {MANIFEST, *json.loads(parcel.files[MANIFEST].tobytes())["files"]}
    return None if set(parcel.files) == named else "it has files that its manifest does not name"


def _check_label(parcel: Parcel) -> None:
    parts = [*parcel.kind.split("/"), parcel.key, *parcel.files]
    if any(part in ("", ".", "..") or Path(part).name != part for part in parts):
        raise DamagedParcelError("An artifact arrived under names that are no names.")


def unfinished(store: ArtifactStore, kind: str, spec: Spec) -> dict[str, Bytes]:
    """What there is of an artifact that is being made."""
    return read_files(store.working_folder(kind, spec))


def restore_unfinished(store: ArtifactStore, kind: str, spec: Spec, files: Mapping[str, Bytes]) -> None:
    """Put unfinished work into a store, for whoever goes on; what uses it looks at its checksums itself."""
    folder = store.working_folder(kind, spec)
    for name, content in files.items():
        if Path(name).name == name:
            atomic_write(folder / name, content.tobytes())


class Outbox:
    """Unfinished work that changes: what is new since it was last asked for.

    Args:
        folder: where it lies.
        last: the file that is written last, and names the others.
        known: what it was begun from: no news.
    """

    def __init__(self, folder: Callable[[], Path], last: str, known: Mapping[str, Bytes] | None = None) -> None:
        self._folder, self._last, self._known = folder, last, known
        self._sent: Any = None

    def news(self) -> dict[str, Bytes]:
        """All files, if there is something new; else none."""
        try:
            folder = self._folder()
            seen = _stamp(folder / self._last)
            if seen == self._sent:
                return {}
            files = read_files(folder)
            if _stamp(folder / self._last) != seen:
                return {}  # written anew meanwhile: it may name files that were not there yet; next time
        except OSError:
            return {}  # it is not there yet, or no more
        self._sent, known, self._known = seen, self._known, None
        return {} if known and _same(files, known) else files


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_ino


def _same(files: Mapping[str, Bytes], others: Mapping[str, Bytes]) -> bool:
    return files.keys() == others.keys() and all(np.array_equal(files[name], others[name]) for name in files)
