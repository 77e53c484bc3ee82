"""Who made what: a line for every artifact, in a file of each process's own, so that no two ever write to one."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from attribench.store.claims import process_start

#: Below the store's root.
FOLDER = ".journal"


@dataclass(frozen=True)
class Entry:
    """One artifact that was made.

    Attributes:
        doer: which process made it.
        attempt: how many had begun it, with this one.
        seconds: what it took.
        at: seconds since 1970 when it was done.
    """

    doer: str
    kind: str
    key: str
    attempt: int
    seconds: float
    at: float


class Journal:
    """The journal of a store.

    Args:
        root: the store's folder.
        doer: what this process is called beside its number and machine.
    """

    def __init__(self, root: Path, doer: str = "") -> None:
        self._folder, self._doer = root / FOLDER, doer

    def add(self, kind: str, key: str, attempt: int, seconds: float, maker: str = "") -> None:
        """Say that this process made an artifact. A journal that cannot be written does no harm.

        Args:
            maker: who did, if not this process.
        """
        host, pid = socket.gethostname(), os.getpid()
        name = (maker or f"process {pid} on {host}") + (f" ({self._doer})" if self._doer else "")
        line = json.dumps(asdict(Entry(name, kind, key, attempt, seconds, round(time.time(), 3))))
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"{host}-{pid}-{process_start(pid)}.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def entries(self) -> Iterator[Entry]:
        """All that was made, process by process."""
        for file in sorted(self._folder.glob("*.jsonl")):
            try:
                lines = file.read_text("utf-8", errors="replace").splitlines()
            except OSError:
                continue  # another user's, or gone
            for line in lines:
                with suppress(ValueError, TypeError):  # the last line of a process that was killed as it wrote
                    yield Entry(**json.loads(line))
