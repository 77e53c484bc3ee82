"""Records on disk: a versioned JSON file each, with tensors beside it where numbers and images are too many for JSON."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attribench.computing.progress import Progress, silent_progress
from attribench.errors import RecordError
from attribench.store.files import atomic_write, digest_text, plain, storage_error

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION: Literal[1] = 1

R = TypeVar("R", bound="RecordFile")
M = TypeVar("M", bound="MethodRecord")

#: Where records go whose name another one takes; nothing reads them there.
SUPERSEDED = "superseded"


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
        access: what the method declared it looks at; UNKNOWN for scores computed elsewhere.
        tuned_on: which data the options were chosen on; empty if nothing was tuned.
        settings: all settings the numbers depend on, in full.
        data: the data set's own options.
        setting_hash: identifies data and settings; records of one table share it.
        ground_truth: name of the ground truth that was used; empty where the models were retrained here.
        variant: of the setting's folder, where records of other data or settings have the plain one; else empty.
    """

    dataset: str
    preset: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    method: str
    method_class: str
    options: dict[str, Any]
    access: Literal["DATA", "MODEL", "CHECKPOINTS", "RETRAINED", "UNKNOWN"]
    tuned_on: str
    settings: dict[str, Any]
    data: dict[str, Any]
    num_train: int
    image_shape: list[int]
    train_hash: str
    setting_hash: str
    ground_truth: str = ""
    variant: str = ""
    versions: dict[str, str]
    hardware: dict[str, Any]

    @property
    def setting(self) -> str:
        """The preset with what was changed, as a folder's name."""
        name = safe(self.preset) + (f"+{slug(self.overrides)}" if self.overrides else "")
        return f"{name}-{self.variant}" if self.variant else name

    @property
    def title(self) -> str:
        """The setting in words: data set, preset, and what was changed."""
        text = f"{self.dataset}, preset {self.preset}"
        if self.overrides:
            text += ", changed: " + ", ".join(f"{key}={value}" for key, value in sorted(self.overrides.items()))
        if self.variant:
            text += f", setting {self.variant}"
        return text

    @property
    def identity(self) -> object:
        """What a record must share with the one before it to take its place."""
        return plain([self.dataset, self.method, self.method_class, self.options])

    @property
    def truths(self) -> dict[str, str]:
        """The hash of each query set's ground truth, as far as it is known."""
        return {}

    def same_truth(self, other: MethodRecord) -> bool:
        """Whether both rest on one ground truth, on every query set for which both know theirs."""
        common = self.truths.keys() & other.truths.keys()
        return all(self.truths[name] == other.truths[name] for name in common)


def safe(text: str) -> str:
    """``text`` as part of a file's name; with a hash of it where something had to be replaced or cut off."""
    cleaned = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).strip(".")[:100] or "_"
    return cleaned if cleaned == text else f"{cleaned}-{digest_text(text)[:8]}"


def slug(values: Mapping[str, Any]) -> str:
    """Changed options as part of a file name: readable, and with a hash once it would be too long."""
    return shortened(",".join(safe(f"{key}={value}") for key, value in sorted(values.items())))


def shortened(text: str) -> str:
    """``text``, with a hash in place of its end if it is long."""
    return text if len(text) <= 80 else f"{text[:70]}-{digest_text(text)[:8]}"


def save_file(
    record: M, results: Path, tensors: Mapping[str, Tensor] | None = None, progress: Progress = silent_progress
) -> tuple[M, Path]:
    """File a record and its tensors; one that says the same already is left as it is, its date too.

    It takes the place of an earlier record of the same method, options, data and settings alone. Where records of other
    data or settings lie, it gets a folder of its own. A record of another method or other options, or one that cannot be
    read, is moved into a subfolder ``superseded``, and ``progress`` says so.

    Returns:
        The record as filed, and the path of its JSON file.
    """
    record = _placed(record, results)
    path = results / record.path
    content = _encoded(tensors) if tensors else b""
    digest = hashlib.sha256(content).hexdigest() if content else ""
    record = record.model_copy(update={"attachment": digest})
    if path.exists():
        before: M | None = None
        with suppress(RecordError):
            before = load_file(type(record), path)
            same = before.model_dump(exclude={"created"}) == record.model_dump(exclude={"created"})
            if same and load_attachment(before, results) is not None:
                return before, path
        if before is None or before.identity != record.identity or not before.same_truth(record):
            truth = (before.ground_truth or "models retrained here") if before else ""
            what = f"of {before.method_class}, {before.options}, ground truth: {truth}" if before else "not readable"
            progress.message(f"{path} was {what}; it is kept as {_set_aside(path)}.")
    attached = _attachment_path(path, digest) if content else None
    if attached:  # first, and under a name of its own: whenever this is cut short, the record names what is there
        atomic_write(attached, content)
    atomic_write(path, (json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode())
    for other in _attachments(path):
        if other != attached:
            other.unlink(missing_ok=True)
    return record, path


def _placed(record: M, results: Path) -> M:
    """The record in the plain folder of its setting, or in one of its own where others have that."""
    path = results / record.path
    apart = record.model_copy(update={"variant": record.setting_hash[:8]})
    if path.exists() and _setting_hash(path) == record.setting_hash:
        return record
    others = any(_setting_hash(file) not in (record.setting_hash, None) for file in path.parent.glob("*.json"))
    return apart if others or (results / apart.path).parent.is_dir() else record


def _setting_hash(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text("utf-8"))["setting_hash"]
    except (OSError, ValueError, TypeError, KeyError):
        return None  # no record
    return str(found)


def _set_aside(path: Path) -> Path:
    kept = path.parent / SUPERSEDED / f"{path.stem}.{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.json"
    try:
        kept.parent.mkdir(exist_ok=True)
        for file in _attachments(path):
            file.replace(kept.parent / file.name)
        path.replace(kept)
    except OSError as error:
        raise storage_error(kept, error) from error
    return kept


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


def _attachments(path: Path) -> list[Path]:
    """What lies beside a record as its own; not that of ``<stem>.strict`` or other longer names."""
    found = path.parent.glob(f"{glob.escape(path.stem)}.*.safetensors")
    return [file for file in found if file.name.removeprefix(path.stem).count(".") == 2]


def _attachment_path(path: Path, digest: str) -> Path:
    return path.with_name(f"{path.stem}.{digest[:8]}.safetensors")


def _encoded(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})
