"""The content-addressed store for everything expensive.

An artifact is a folder ``<root>/<kind>/<key>/`` whose key is the hash of its canonical specification. It holds
``spec.json``, the payload (safetensors, npy, JSON) and ``manifest.json`` with a SHA-256 sum of every file. It is written to
a hidden sibling, fsynced, then renamed: it exists only when complete. A file that fails its checksum is reported by name and
its artifact set aside, never used.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribench.computing.others import Others
from attribench.errors import ArtifactError
from attribench.store.claims import Claim, Claims, HeldError
from attribench.store.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor
from attribench.store.files import canonical, digest_text, file_sum, storage_error, sync_folder

Spec = Mapping[str, Any]
MANIFEST = "manifest.json"
SPEC = "spec.json"
_FORMAT = 1
#: Seconds between two looks at a claim that another process holds.
_LONGEST_PAUSE = 2.0
#: Seconds after which a look at a folder, or an arrival, is no longer under way.
_OLD = 24 * 3600.0
#: Before the number of the attempt, in the name of the folder that it writes to.
_TRY = "try"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class LockBusyError(ArtifactError):
    """Another process is making the same artifact."""


class Staging:
    """The folder in which an artifact's payload is written before it becomes visible."""

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        self.folder, self._check = folder, check
        self.notes: dict[str, Any] = {}

    def check(self) -> None:
        """To be called before anything is written elsewhere than here, where the next maker would find it.

        Raises:
            LockBusyError: this process had seemed dead, and another one makes the artifact by now.
        """
        self._check()

    def note(self, **notes: Any) -> None:
        """Put something into the artifact's ``info``: worth knowing, but no part of what its digest is taken of."""
        self.notes.update(notes)

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors as ``<name>.safetensors``."""
        from safetensors.torch import save

        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self.save_bytes(f"{name}.safetensors", save(contiguous))

    def save_json(self, name: str, value: object) -> None:
        """Write a JSON payload as ``<name>.json``."""
        self.save_bytes(f"{name}.json", canonical(value).encode())

    def save_bytes(self, filename: str, content: bytes) -> None:
        """Write a payload file."""
        with (self.folder / filename).open("wb") as file:
            file.write(content)

    def adopt(self, source: Path, filename: str, sha256: str) -> None:
        """Copy a finished file into the payload.

        Args:
            sha256: of its content.

        Raises:
            ArtifactError: it has another content by now.
        """
        shutil.copyfile(source, self.folder / filename)
        if file_sum(self.folder / filename) != sha256:
            self.check()
            raise ArtifactError(f"{source} was changed after it was written. Run the same command again.")


@dataclass(frozen=True)
class Artifact:
    """A complete, verified artifact.

    Attributes:
        digest: SHA-256 over the payload's checksums: two artifacts with one digest have the same payload, bit for bit.
        info: what is worth knowing but is not part of the identity (seconds it took, host, what its builder noted).
    """

    kind: str
    key: str
    folder: Path
    spec: Spec
    digest: str
    info: Mapping[str, Any]

    def load_tensors(self, name: str) -> dict[str, Tensor]:
        """Read ``<name>.safetensors`` onto the CPU."""
        from safetensors.torch import load_file

        return load_file(self.folder / f"{name}.safetensors")

    def load_json(self, name: str) -> Any:
        """Read ``<name>.json``."""
        return json.loads((self.folder / f"{name}.json").read_text("utf-8"))

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir())


class ArtifactStore:
    """All artifacts under one folder.

    Args:
        root: the folder (``--workdir``); made when first written to.
        namespace: prefix of every kind, so that a method's own artifacts stay apart from the benchmark's.
        lock_timeout: seconds to wait for another process that makes the same artifact.
        report: called with a line about each damaged artifact; standard error by default.
        dead_after: seconds without a sign of life after which a process on another machine counts as dead.
        assigned: names the assignment that a worker carries out; whoever gives it out again knows that the worker before is
            gone. Empty for processes that take their work themselves.
        doer: what ``status`` calls this process; its number and machine by default.
    """

    def __init__(
        self,
        root: Path,
        namespace: str = "",
        lock_timeout: float = 6 * 3600.0,
        report: Callable[[str], None] | None = None,
        *,
        dead_after: float = 120.0,
        assigned: str = "",
        doer: str = "",
    ) -> None:
        self.root = Path(root)
        self.namespace = namespace
        self.lock_timeout = lock_timeout
        self.report = report or _say
        self.dead_after, self.assigned, self.doer = dead_after, assigned, doer
        self._verified: set[Path] = set()
        #: Bytes on disk of every artifact that was found or made through this object, by kind and key.
        self.used: dict[str, int] = {}
        #: The artifacts that were made through this object and its views.
        self.made: list[Artifact] = []

    def __getstate__(self) -> dict[str, Any]:
        # A display does not travel to a worker process: there, damage is reported on standard error.
        return {**vars(self), "report": _say, "_verified": set(), "used": {}, "made": []}

    def scoped(self, namespace: str) -> ArtifactStore:
        """A view of this store whose kinds all begin with ``namespace/``."""
        view = ArtifactStore(
            self.root, f"{self.namespace}{namespace}/", self.lock_timeout, self.report,
            dead_after=self.dead_after, assigned=self.assigned, doer=self.doer,
        )  # fmt: skip
        view.made = self.made
        return view

    def key(self, spec: Spec) -> str:
        """The name of the folder that an artifact with this specification has."""
        return digest_text(canonical(spec))[:32]

    def find(self, kind: str, spec: Spec) -> Artifact | None:
        """Return the artifact if it is there, complete and undamaged, else None.

        A damaged one is reported by file name and moved to ``<root>/.set-aside``.
        """
        kind, key = self.namespace + kind, self.key(spec)
        folder = self.root / kind / key
        if not folder.is_dir():
            return None
        try:
            artifact = self._open(kind, key, folder)
            if canonical(artifact.spec) != canonical(spec):
                raise _DamagedError(f"{folder / SPEC} holds another specification than its name says")
        except _DamagedError as damage:
            self.set_aside(folder, str(damage))
            return None
        self.used[f"{kind}/{key}"] = artifact.num_bytes
        return artifact

    def find_key(self, kind: str, key: str) -> Artifact | None:
        """Like :meth:`find`, by the folder's name."""
        folder = self.root / (self.namespace + kind) / key
        if not folder.is_dir():
            return None
        damage = self.damage(kind, key, folder)
        if damage is not None:
            self.set_aside(folder, damage)
            return None
        return self._open(self.namespace + kind, key, folder)

    def damage(self, kind: str, key: str, folder: Path) -> str | None:
        """What is wrong with an artifact in a folder, or None."""
        try:
            artifact = self._open(self.namespace + kind, key, folder)
        except _DamagedError as damage:
            return str(damage)
        return (
            None
            if self.key(artifact.spec) == key
            else f"{folder / SPEC} holds another specification than its name says"
        )

    def count(self, kind: str) -> int:
        """How many folders of a kind there are, whatever is in them: artifacts, at most."""
        try:
            return sum(1 for _ in (self.root / (self.namespace + kind)).iterdir())
        except OSError:
            return 0

    def get_or_create(self, kind: str, spec: Spec, build: Callable[[Staging], None], wait: bool = True) -> Artifact:
        """Return the artifact, building it first if need be; no two processes build the same one.

        Args:
            build: writes the payload into the staging folder it is given.
            wait: wait for another process that is at it, at most ``lock_timeout`` seconds.

        Raises:
            LockBusyError: another process is at it and ``wait`` is False, or the time-out passed.
            ArtifactError: the disk is full or not writable.
        """
        found = self.find(kind, spec)
        if found is not None:
            return found
        with self.lock(kind, spec, wait=wait) as claim:
            self._look_anew(kind, spec)
            found = self.find(kind, spec)
            if found is None:
                found = self._create(kind, spec, build, claim)
            claim.finish()
            return found

    def working_folder(self, kind: str, spec: Spec) -> Path:
        """A folder for unfinished work on an artifact that should survive a kill; removed once the artifact exists."""
        folder = self.root / ".work" / (self.namespace + kind).replace("/", "-") / self.key(spec)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
        return folder

    @contextmanager
    def lock(self, kind: str, spec: Spec, wait: bool = True) -> Iterator[Claim]:
        """Hold the right to make an artifact; see :mod:`attribench.store.claims`. It passes on when its owner dies."""
        name, claims = self.claim_name(kind, spec), self._claims()
        end, pause = time.monotonic() + (self.lock_timeout if wait else 0), 0.1
        while True:
            try:
                claim = claims.take(name)
                break
            except HeldError as held:
                if (left := end - time.monotonic()) <= 0:
                    raise LockBusyError(f"{name} is being made by {held.owner}. Wait for it, or stop it.") from held
                pause = min(1.5 * pause, _LONGEST_PAUSE)
                time.sleep(min(pause, left))
            except OSError as error:
                raise storage_error(self.root / ".claims" / name, error) from error
        try:
            yield claim
        finally:
            claim.release()

    def maker(self, kind: str, spec: Spec) -> str | None:
        """Who is making an artifact, in words; None for nobody."""
        return self._claims().holder_words(self.claim_name(kind, spec))

    def makers(self) -> Iterator[tuple[str, str]]:
        """The :meth:`claim_name` of whatever is being made, of any kind, and who is at it, in words."""
        return self._claims().held()

    def _claims(self) -> Claims:
        return Claims(self.root / ".claims", self.dead_after, self.assigned)

    def claim_name(self, kind: str, spec: Spec) -> str:
        """What the claim of an artifact is called."""
        return f"{(self.namespace + kind).replace('/', '-')}-{self.key(spec)}"

    def _look_anew(self, kind: str, spec: Spec) -> None:
        """Make a network file system forget that an artifact was not there: it does when a folder is written to."""
        parent = self.root / (self.namespace + kind)
        look = parent / f".{self.key(spec)}.{os.getpid()}-{secrets.token_hex(4)}.look"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            look.mkdir()
            with contextlib.suppress(FileNotFoundError):
                look.rmdir()
        except OSError as error:
            raise storage_error(look, error) from error

    def artifacts(self) -> Iterator[Artifact]:
        """All complete artifacts of this namespace, without verifying their checksums."""
        base = self.root / self.namespace if self.namespace else self.root
        for manifest in sorted(base.glob(f"**/{MANIFEST}")):
            folder = manifest.parent
            parts = folder.relative_to(self.root).parts
            if any(part.startswith(".") for part in parts):
                continue
            with contextlib.suppress(_DamagedError):
                yield self._read(str(Path(*parts[:-1])), parts[-1], folder)[0]

    def _create(self, kind: str, spec: Spec, build: Callable[[Staging], None], claim: Claim) -> Artifact:
        kind, key = self.namespace + kind, self.key(spec)
        parent, folder = self.root / kind, self.root / kind / key
        temporary = parent / f".{key}.{_TRY}{claim.attempt}-{claim.owner.token}.tmp"
        started, others = time.perf_counter(), Others()

        def check() -> None:
            if claim.lost:
                raise LockBusyError(
                    f"{kind}/{key} was taken over by another process, because this one had shown no sign of life for long."
                )

        try:
            parent.mkdir(parents=True, exist_ok=True)
            for stale in parent.glob(f".{key}.*"):
                if _is_stale(stale, claim.attempt):
                    check()  # what seems to have been left by a killed process may be the work of who took over from this one
                    shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir()
            staging = Staging(temporary, check)
            build(staging)
            (temporary / SPEC).write_text(canonical(spec), "utf-8")
            seconds = round(time.perf_counter() - started, 3)
            notes = {"seconds": seconds, "others_seconds": round(others.seconds, 3), "host": socket.gethostname()}
            info = {**staging.notes, **notes}
            self._write_manifest(temporary, kind, info)
            check()
            temporary.rename(folder)
            sync_folder(parent)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            check()
            if (folder / MANIFEST).exists():
                raise LockBusyError(f"{kind}/{key} was made by another process at the same time.") from error
            raise storage_error(folder, error) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        work = self.root / ".work" / kind.replace("/", "-") / key
        shutil.rmtree(work, ignore_errors=True)
        Journal(self.root, self.doer).add(kind, key, claim.attempt, seconds)
        self._verified.add(folder)
        artifact = self._open(kind, key, folder)
        self.used[f"{kind}/{key}"] = artifact.num_bytes
        self.made.append(artifact)
        return artifact

    def _write_manifest(self, folder: Path, kind: str, info: Mapping[str, Any]) -> None:
        files = {}
        for file in sorted(folder.iterdir()):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            files[file.name] = {"sha256": file_sum(file), "bytes": file.stat().st_size}
        body = {"format": _FORMAT, "kind": kind, "files": files, "info": dict(info)}
        text = canonical({**body, "checksum": digest_text(canonical(body))})
        with (folder / MANIFEST).open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        sync_folder(folder)

    def _read(self, kind: str, key: str, folder: Path) -> tuple[Artifact, dict[str, dict[str, Any]]]:
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            claimed = manifest.pop("checksum")
            if claimed != digest_text(canonical(manifest)) or manifest["format"] != _FORMAT:
                raise _DamagedError(f"{folder / MANIFEST} does not match its own checksum")
            spec = json.loads((folder / SPEC).read_text("utf-8"))
        except FileNotFoundError as error:
            raise _DamagedError(f"{error.filename} is missing") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _DamagedError(f"{folder / MANIFEST} or {SPEC} beside it is not readable") from error
        files: dict[str, dict[str, Any]] = manifest["files"]
        digest = digest_text(canonical({name: entry["sha256"] for name, entry in files.items() if name != SPEC}))
        return Artifact(kind, key, folder, spec, digest, manifest["info"]), files

    def _open(self, kind: str, key: str, folder: Path) -> Artifact:
        artifact, files = self._read(kind, key, folder)
        if (
            folder not in self._verified
        ):  # once a process: hashing gigabytes at every look would cost more than it saves
            for name, entry in files.items():
                path = folder / name
                if not path.is_file():
                    raise _DamagedError(f"{path} is missing")
                if path.stat().st_size != entry["bytes"] or file_sum(path) != entry["sha256"]:
                    raise _DamagedError(f"{path} does not match its checksum")
            self._verified.add(folder)
        return artifact

    def discard(self, kind: str, spec: Spec) -> None:
        """Remove an artifact that is of no more use."""
        folder = self.root / (self.namespace + kind) / self.key(spec)
        gone = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(OSError):  # it is not there, or another process was quicker
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        self._verified.discard(folder)
        self.used.pop(f"{self.namespace}{kind}/{folder.name}", None)

    def renamed(self, before: Path, now: Path | None) -> None:
        """A folder has another name, or is no more: what was verified need not be hashed again."""
        if before in self._verified and now is not None:
            self._verified.add(now)
        self._verified.discard(before)

    def set_aside(self, folder: Path, damage: str) -> None:
        """Move a damaged folder of this store to ``<root>/.set-aside`` and report what is wrong with it."""
        name = "-".join(folder.relative_to(self.root).parts).lstrip(".")
        target = self.root / ".set-aside" / f"{name}-{secrets.token_hex(4)}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
        except FileNotFoundError:
            return  # another process was quicker
        except OSError as error:
            raise storage_error(folder, error) from error
        self._verified.discard(folder)
        self.report(f"Damaged artifact: {damage}. Set aside as {target}; it will be rebuilt.")


def _is_stale(path: Path, attempt: int) -> bool:
    """Whether a hidden folder beside an artifact that this attempt is to make was left by a killed process."""
    what, suffix = path.suffixes[-2:] if len(path.suffixes) > 1 else ("", path.suffix)
    if suffix == ".tmp":
        number = what.removeprefix(f".{_TRY}").partition("-")[0]
        return not (what.startswith(f".{_TRY}") and number.isdigit() and int(number) > attempt)
    # Others may be looking or sending just now.
    with contextlib.suppress(OSError):
        return suffix in (".look", ".arrived") and time.time() - path.stat().st_mtime > _OLD
    return False


class _DamagedError(Exception):
    """An artifact on disk is not what its manifest says."""
