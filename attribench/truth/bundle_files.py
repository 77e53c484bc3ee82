"""The files of a bundle: a ZIP archive or a folder whose every file is listed with its checksum, opened without trust."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attribench.errors import BundleError
from attribench.store.files import atomic_write, canonical, digest_text

#: Raise it when an older attribench would misread what is written.
FORMAT: Literal[1] = 1
HEADER = "bundle.json"

_HEADER_LIMIT = 64 * 2**20


class FileEntry(BaseModel):
    """A file's checksum and size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    bytes: int


class QuerySetHeader(BaseModel):
    """A query set.

    Attributes:
        num_queries: how many.
        content: the images' content hash; empty if it is not known.
        images: whether the images are in the bundle.
        truth: hash of the ground truth on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_queries: int
    content: str = ""
    images: bool
    truth: str


class Header(BaseModel):
    """What a bundle says of itself.

    Attributes:
        name: what it is called, a file name without suffix.
        dataset: the data set's label.
        data: the data set's own options.
        preset: the preset the settings started from.
        overrides: what was changed in it, as dotted names.
        settings: all settings, by section.
        num_train: train images.
        train_hash: their content hash; empty if it is not known.
        train_images: whether they are in the bundle.
        bands: (first timestep, one after the last, timesteps measured) of each band.
        query_sets: by name.
        checkpoints: file of each checkpoint's weights, oldest first; empty if the target model is not in the bundle.
        data_licence: of the images.
        made: how, when, and with which versions and hardware.
        files: every file but this one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$")
    dataset: str
    data: dict[str, Any]
    preset: str
    overrides: dict[str, Any]
    settings: dict[str, Any]
    num_train: int
    image_shape: tuple[int, int, int]
    train_hash: str
    train_images: bool
    bands: list[tuple[int, int, int]]
    query_sets: dict[str, QuerySetHeader]
    checkpoints: list[str] = []
    data_licence: str = ""
    made: dict[str, Any]
    files: dict[str, FileEntry]


def write_bundle_files(path: Path, header: Mapping[str, Any], files: Mapping[str, bytes]) -> Header:
    """Write a bundle as one file, whole or not at all; the same content gives the same bytes.

    Args:
        path: where; an existing file is replaced.
        header: fields of :class:`Header` but ``files``.
        files: content by relative path.
    """
    entries = {name: FileEntry(sha256=_sum(content), bytes=len(content)) for name, content in sorted(files.items())}
    complete = Header(**header, files=entries)
    body = complete.model_dump(mode="json")
    text = canonical({**body, "checksum": digest_text(canonical(body))})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in ((HEADER, text.encode()), *sorted(files.items())):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # no dates: nothing but the content
    atomic_write(path, buffer.getvalue())
    return complete


class BundleFiles:
    """An open bundle; a file is verified when it is read.

    Args:
        path: the archive, or a folder with its files.

    Raises:
        BundleError: not there, not a bundle, of a newer format, or damaged; names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise BundleError(f"There is no ground truth at {path}.")
        self.header = self._read_header()

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            BundleError: it is missing or damaged.
        """
        entry = self.header.files.get(name)
        if entry is None:
            raise BundleError(f"{self.path} holds no {name}.")
        content = self._content(name, entry.bytes)
        if len(content) != entry.bytes or _sum(content) != entry.sha256:
            raise BundleError(f"{self.path}: {name} does not match its checksum; get the file again.")
        return content

    def verify(self) -> None:
        """Read every file.

        Raises:
            BundleError: one is missing or damaged, or there is one that is not listed.
        """
        for name in self.header.files:
            self.read(name)
        extra = sorted(set(self._names()) - {HEADER, *self.header.files})
        if extra:
            raise BundleError(f"{self.path}: {extra[0]} is not listed in its {HEADER}.")

    def _read_header(self) -> Header:
        try:
            content = json.loads(self._content(HEADER, _HEADER_LIMIT))
            claimed = content.pop("checksum")
            version = content["format"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"{self.path}: {HEADER} is not readable; this is no ground truth of attribench."
            ) from error
        if version != FORMAT:
            raise BundleError(
                f"{self.path} has format {version!r}; this attribench reads format {FORMAT}. Install a newer one."
            )
        if claimed != digest_text(canonical(content)):
            raise BundleError(f"{self.path}: {HEADER} does not match its own checksum; get the file again.")
        try:
            header = Header.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{self.path}: {HEADER} is not valid: {where}: {first['msg']}") from error
        for name in (*header.files, *self._names()):
            _check_name(self.path, name)
        return header

    def _names(self) -> list[str]:
        if self.path.is_dir():
            return [file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file()]
        with self._archive() as archive:
            return archive.namelist()

    def _content(self, name: str, limit: int) -> bytes:
        """At most ``limit + 1`` bytes of a file, so that nothing swells beyond what is listed."""
        try:
            if self.path.is_dir():
                if not (self.path / name).resolve().is_relative_to(self.path.resolve()):
                    raise BundleError(f"{self.path}: {name} is a link that leads out of the bundle.")
                with (self.path / name).open("rb") as file:
                    return file.read(limit + 1)
            with self._archive() as archive, archive.open(name) as member:
                return member.read(limit + 1)
        except (KeyError, FileNotFoundError) as error:
            raise BundleError(f"{self.path}: {name} is missing.") from error
        except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
            raise BundleError(f"{self.path}: {name} is not readable ({error}); get the file again.") from error

    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path} is not a ground truth of attribench, or was cut short: {error}.") from error


def _check_name(path: Path, name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise BundleError(f"{path}: the path {name!r} leads out of the bundle.")


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
