"""Where downloaded data sets live, and how they are fetched."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

_NETWORK_TIMEOUT_S = 30.0


def data_root(root: str | os.PathLike[str] | None) -> Path:
    """The absolute folder of the data: ``root``, else ``$ATTRIBENCH_DATA``, else the user's cache folder."""
    chosen = root or os.environ.get("ATTRIBENCH_DATA") or user_cache_path("attribench") / "data"
    return Path(chosen).expanduser().absolute()


@contextlib.contextmanager
def fetching(folder: Path) -> Iterator[None]:
    """Create ``folder`` and hold it while files are fetched into it; afterwards another process finds them there."""
    folder.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    with FileLock(folder / ".fetching.lock"), contextlib.redirect_stdout(sys.stderr):
        # torchvision sets no time-out of its own: a network that swallows packets would hang the run for ever.
        socket.setdefaulttimeout(_NETWORK_TIMEOUT_S)
        try:
            yield
        finally:
            socket.setdefaulttimeout(timeout)


def reason(error: Exception) -> str:
    """An exception from a downloader, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
