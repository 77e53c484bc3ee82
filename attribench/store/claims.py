"""The right to make something, held by files alone: it works on any file system on which a rename is all or nothing.

Locks of the operating system are not to be trusted on network file systems. A claim is a folder that is renamed into place,
which one process alone can do::

    <root>/<name>/1/owner.json     who holds it: written before the rename, so that a claim never lacks it
                    beat           a number that its owner raises now and then, as long as it lives
                    released.json  there once the owner has let go without making the thing
    <root>/<name>/2/…              the next attempt: after a release, or after the owner's death

A claim is never taken away: who finds the last attempt released or its owner dead makes the next one, and of several that
try, one succeeds. All attempts are removed at once when the thing is there: it is looked for after every claim, so nobody makes
it again. Whoever seemed dead and goes on finds by ``owner.json`` and the next attempt that its claim is lost; it then leaves
alone what is another's by now.

Whether an owner on this machine lives, the operating system says. Of others its heartbeat is watched with one's own clock:
clocks of different machines are never compared.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from humanize import naturaldelta

#: Seconds between two heartbeats.
BEAT = 5.0
#: How often to begin again because the folder of attempts vanished, as it does whenever somebody has made the thing.
_TRIES = 60
#: Below the root: attempts on their way out, so that nobody ever sees half of them removed.
_GONE = ".gone"
_EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EISDIR)  # the third on Windows


@dataclass(frozen=True)
class Owner:
    """Who holds a claim.

    Attributes:
        token: of this claim alone.
        machine: the running system and the name space its process numbers are of; empty where that is not known.
        started: tells the process from a later one of the same number.
        assigned: the assignment it works on; whoever gives out the same one again knows that the former holder is gone.
        since: local time, for people.
    """

    token: str
    pid: int
    host: str
    machine: str
    started: str
    assigned: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.token else "a process on another machine"

    @classmethod
    def me(cls, assigned: str = "") -> Owner:
        """This process, as the owner of a new claim."""
        pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
        started = process_start(pid)
        return cls(secrets.token_hex(8), pid, socket.gethostname(), this_machine(), started or "", assigned, since)

    @property
    def alive(self) -> bool | None:
        """Whether its process runs; None: this machine cannot know."""
        if not self.machine or self.machine != this_machine():
            return None
        if not _runs(self.pid):
            return False
        started = process_start(self.pid)  # not known of other users' processes, where these are hidden
        return None if started is None else started == self.started


_NOBODY_KNOWN = Owner("", 0, "another machine", "", "", "", "an unknown time")


class HeldError(Exception):
    """Another process holds the claim.

    Args:
        owner: which.
    """

    def __init__(self, owner: Owner) -> None:
        super().__init__(str(owner))
        self.owner = owner


class Claims:
    """All claims under one folder.

    Args:
        root: the folder; made when first written to.
        dead_after: seconds without a heartbeat after which an owner on another machine counts as dead.
        assigned: see :class:`Owner`; empty for processes that take their work themselves.
    """

    def __init__(self, root: Path, dead_after: float, assigned: str = "") -> None:
        self._root, self._dead_after, self._assigned = root, dead_after, assigned

    def take(self, name: str) -> Claim:
        """Hold the claim called ``name``.

        Raises:
            HeldError: another process holds it.
            OSError: the disk is full or not writable, or the folder is not there and cannot be made.
        """
        place = self._root / name
        last = place / str(_last(place))
        if last.exists() and (holder := self._living(last)) is not None and last.exists():
            raise HeldError(holder)  # before anything is written: many may be waiting
        owner = Owner.me(self._assigned)
        prepared = place / f".{owner.token}.tmp"
        try:
            for left in reversed(range(_TRIES)):
                try:
                    prepared.mkdir(parents=True, exist_ok=True)
                    (prepared / "owner.json").write_text(json.dumps(asdict(owner)))
                    (prepared / "beat").write_text("0")
                    return self._enter(place, prepared, owner)
                except (
                    FileNotFoundError
                ):  # the thing was made meanwhile, and all attempts removed; or there is no such folder
                    if not left:
                        raise
                    time.sleep(secrets.randbelow(100) / 1000)
        finally:
            shutil.rmtree(prepared, ignore_errors=True)
        raise AssertionError("the last try returns or raises")

    def held(self) -> Iterator[tuple[str, str]]:
        """The names of all claims that are held, as far as one glance can tell, and who holds them, in words."""
        try:
            names = sorted(entry.name for entry in self._root.iterdir() if not entry.name.startswith("."))
        except OSError:
            return
        for name in names:
            if (who := self.holder_words(name)) is not None:
                yield name, who

    def holder_words(self, name: str) -> str | None:
        """Who holds a claim, and since when it has shown no sign of life if that is for long; None for nobody.

        A glance has no time to watch a heart: what is said of it is by this machine's clock, and for people.
        """
        owner = self.holder(name)
        if owner is None:
            return None
        last = self._root / name / str(_last(self._root / name))
        try:
            silent = time.time() - (last / "beat").stat().st_mtime
        except OSError:
            return str(owner)
        if owner.alive or silent <= self._dead_after:
            return str(owner)
        return f"{owner} (no sign of life for {naturaldelta(silent)})"

    def holder(self, name: str) -> Owner | None:
        """Who holds a claim, as far as one glance can tell; None for nobody."""
        last = self._root / name / str(_last(self._root / name))
        owner = _read(last)
        return None if owner is None or owner.alive is False or not last.exists() else owner

    def _enter(self, place: Path, prepared: Path, owner: Owner) -> Claim:
        number = max(1, _last(place))
        while True:
            folder = place / str(number)
            try:
                prepared.rename(folder)
            except OSError as error:
                if error.errno not in _EXISTS:
                    raise
                if not folder.exists():  # it was removed just now, or the file system is not as it says: begin again
                    raise FileNotFoundError(errno.ENOENT, f"cannot be made ({error.strerror})", str(folder)) from error
                holder = self._living(folder)
                if holder is None:
                    number += 1
                    continue
                if holder.token != owner.token:  # else a network file system said that what it did had failed
                    raise HeldError(holder) from None
            return Claim(folder, owner)

    def _living(self, folder: Path) -> Owner | None:
        """Who holds an attempt; None if it was released or its owner is dead."""
        holder = _read(folder)
        return None if holder is None or self._is_dead(folder, holder) else holder

    def _is_dead(self, folder: Path, holder: Owner) -> bool:
        if holder.assigned and holder.assigned == self._assigned:
            return True
        alive = holder.alive
        return not alive if alive is not None else _silence(folder, holder) > self._dead_after


class Claim:
    """A claim that this process holds; it shows that it lives until it lets go."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self._folder, self.owner = folder, owner
        _heart.add(folder, owner.token)

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return int(self._folder.name)

    @property
    def lost(self) -> bool:
        """Whether another process has taken over, because this one had seemed dead; or even made the thing."""
        return not _is_of(self._folder, self.owner.token) or (self._folder.parent / str(self.attempt + 1)).exists()

    def release(self) -> None:
        """Let go without having made the thing."""
        _heart.remove(self.owner.token)
        if not _is_of(self._folder, self.owner.token):
            return
        with suppress(OSError):  # an attempt that nobody released ends with its owner
            written = self._folder / ".released"
            written.write_text("{}")
            written.rename(self._folder / "released.json")

    def finish(self) -> None:
        """Let go: the thing is there."""
        _heart.remove(self.owner.token)
        if self.lost:
            return
        place = self._folder.parent
        gone = place.parent / _GONE / f"{place.name}-{self.owner.token}"
        try:
            gone.parent.mkdir(exist_ok=True)
            place.rename(gone)
        except OSError:  # another process has just removed the folder of what is gone; or Windows, while somebody looks
            shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(gone.parent, ignore_errors=True)  # also what killed processes left of it


class _Heart:
    """One thread a process that raises the numbers of all claims it holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Path, int]] = {}
        self._thread: threading.Thread | None = None

    def add(self, folder: Path, token: str) -> None:
        with self._lock:
            self._held[token] = folder, 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)
                self._thread.start()

    def remove(self, token: str) -> None:
        with self._lock:
            self._held.pop(token, None)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                self._held = {token: (folder, count + 1) for token, (folder, count) in self._held.items()}
                held = dict(self._held)
            for token, (folder, count) in held.items():
                if _is_of(folder, token):
                    with (
                        suppress(OSError),
                        (folder / "beat").open("r+") as file,
                    ):  # never made anew where it was removed
                        file.write(str(count))


_heart = _Heart()


def _after_fork() -> None:
    global _heart
    _heart = _Heart()  # threads do not come along, nor do claims


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

#: When this process first saw the last heartbeat of other machines' claims.
_seen: dict[str, tuple[str, float]] = {}


def _silence(folder: Path, holder: Owner) -> float:
    """Seconds since a heartbeat changed, as far as this process has watched it."""
    try:
        beat = (folder / "beat").read_text()
    except OSError:
        beat = ""
    now, key = time.monotonic(), f"{folder} {holder.token}"
    if key not in _seen or _seen[key][0] != beat:
        _seen[key] = beat, now
    return now - _seen[key][1]


def _last(place: Path) -> int:
    try:
        return max((int(entry.name) for entry in place.iterdir() if entry.name.isdigit()), default=0)
    except OSError:
        return 0


def _is_of(folder: Path, token: str) -> bool:
    """Whether an attempt is the one with this token; if that cannot be read just now, it is."""
    try:
        return token in (folder / "owner.json").read_text()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


def _read(folder: Path) -> Owner | None:
    """The owner of an attempt that is there; None if it was released."""
    if (folder / "released.json").exists():
        return None
    try:
        values: dict[str, Any] = json.loads((folder / "owner.json").read_text())
        return Owner(**values)
    except (OSError, ValueError, TypeError):
        return _NOBODY_KNOWN  # torn by a power cut, half removed, or of another version: its heartbeat says whether it lives


def _runs(pid: int) -> bool:
    """Whether there is a process of this number, also where other users' are hidden (``/proc`` with ``hidepid``)."""
    if os.name == "nt":  # where the signal 0 ends a process
        return psutil.pid_exists(pid)
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is another user's
    return True


@cache
def this_machine() -> str:
    """The running system and the name space of its process numbers; of two containers of one machine they differ."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name too: virtual machines that go on from one snapshot have one boot.
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {socket.gethostname()}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def process_start(pid: int) -> str | None:
    """What tells a process from others of its number, ``"ended"`` for one that only awaits its parent; None: not known."""
    try:
        # psutil's seconds since 1970 move when the clock is set; these are ticks since the machine started.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return "ended" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.NoSuchProcess:
        return None if _runs(pid) else "ended"
    except psutil.Error:
        return None
