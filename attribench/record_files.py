"""Records on disk: a versioned JSON file each, with tensors beside it where numbers and images are too many for JSON."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attribench.artifacts import atomic_write, digest_text
from attribench.errors import RecordError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION: Literal[1] = 1

R = TypeVar("R", bound="RecordFile")


class Frozen(BaseModel):
    """A part of a record: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordFile(Frozen):
    """What every record has.

    Attributes:
        attachment: SHA-256 of the safetensors file beside the record; empty if there is none.
        created: UTC.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    attachment: str = ""
    created: str

    @property
    @abstractmethod
    def path(self) -> Path:
        """Where the record is filed, relative to the results folder."""


class MethodRecord(RecordFile):
    """What is to be said of a method's row, whatever was measured.

    Attributes:
        dataset: the data set's label, e.g. ``cifar2``.
        preset: the preset the settings started from.
        overrides: what the caller changed in the settings, as dotted names; empty for the preset itself.
        method: the row's name.
        method_class: import path of the class.
        options: the method's full configuration.
        access: what the method declared it looks at.
        tuned_on: which data the options were chosen on; empty if nothing was tuned.
        settings: all settings the numbers depend on, in full.
        data: the data set's own options.
        setting_hash: identifies data and settings; records of one table share it.
    """

    dataset: str
    preset: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    method: str
    method_class: str
    options: dict[str, Any]
    access: Literal["DATA", "MODEL", "CHECKPOINTS"]
    tuned_on: str
    settings: dict[str, Any]
    data: dict[str, Any]
    num_train: int
    image_shape: list[int]
    train_hash: str
    setting_hash: str
    versions: dict[str, str]
    hardware: dict[str, Any]

    @property
    def setting(self) -> str:
        """The preset with what was changed, as a folder's name."""
        return self.preset if not self.overrides else f"{self.preset}+{slug(self.overrides)}"

    @property
    def title(self) -> str:
        """The setting in words: data set, preset, and what was changed."""
        text = f"{self.dataset}, preset {self.preset}"
        if self.overrides:
            text += ", changed: " + ", ".join(f"{key}={value}" for key, value in sorted(self.overrides.items()))
        return text


def safe(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).strip(".") or "_"


def slug(values: Mapping[str, Any]) -> str:
    """Changed options as part of a file name: readable, and with a hash once it would be too long."""
    text = ",".join(safe(f"{key}={value}") for key, value in sorted(values.items()))
    return text if len(text) <= 80 else f"{text[:70]}-{digest_text(text)[:8]}"


def save_file(record: R, results: Path, tensors: Mapping[str, Tensor] | None = None) -> tuple[R, Path]:
    """File a record and its tensors; one that says the same already is left as it is, its date too.

    Returns:
        The record as filed, and the path of its JSON file.
    """
    path = results / record.path
    content = _encoded(tensors) if tensors else b""
    digest = hashlib.sha256(content).hexdigest() if content else ""
    record = record.model_copy(update={"attachment": digest})
    if path.exists():
        try:
            before = load_file(type(record), path)
            same = before.model_dump(exclude={"created"}) == record.model_dump(exclude={"created"})
            if same and load_attachment(before, results) is not None:
                return before, path
        except RecordError:
            pass  # written by another version, or damaged: replaced below
    attached = _attachment_path(path, digest) if content else None
    if attached:  # first, and under a name of its own: whenever this is cut short, the record names what is there
        atomic_write(attached, content)
    atomic_write(path, (json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode())
    for other in path.parent.glob(f"{glob.escape(path.stem)}.*.safetensors"):
        if other != attached and other.name.removeprefix(path.stem).count(".") == 2:  # not those of "<stem>.strict"
            other.unlink(missing_ok=True)
    return record, path


def load_file(kind: type[R], path: Path) -> R:
    """Read a record.

    Raises:
        RecordError: it is not JSON, of another schema version, or has unknown or missing fields.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a readable record: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path} has schema version {version!r}; this attribench reads {SCHEMA_VERSION}.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path} is not a valid record: {where}: {first['msg']}") from error


def load_attachment(record: RecordFile, results: Path) -> dict[str, Tensor] | None:
    """The tensors filed beside a record; empty if it has none, None if their file is not there.

    Raises:
        RecordError: the file is not the one the record names.
    """
    if not record.attachment:
        return {}
    path = _attachment_path(results / record.path, record.attachment)
    if not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.attachment:
        raise RecordError(
            f"{path} is not what the record beside it was filed with: run the command that made it again."
        )
    from safetensors.torch import load

    return load(content)


def _attachment_path(path: Path, digest: str) -> Path:
    return path.with_name(f"{path.stem}.{digest[:8]}.safetensors")


def _encoded(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
