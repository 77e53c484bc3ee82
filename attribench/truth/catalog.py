"""Which ground truths are at hand: those that ship with attribench, and those imported into a work directory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from attribench.errors import BundleError, UsageError, nearest
from attribench.settings import Settings
from attribench.store.files import atomic_write, plain
from attribench.truth.bundle import Bundle

SUFFIX = ".truth"


def shipped() -> dict[str, Path]:
    """Bundles that ship with attribench, by name."""
    return _in(Path(str(resources.files("attribench.truth").joinpath("shipped"))))


def imported(workdir: Path) -> dict[str, Path]:
    """Bundles that were imported into a work directory, by name."""
    return _in(workdir / "truths")


def find(name: str, workdir: Path) -> Path:
    """The bundle called ``name``, or at that path.

    Raises:
        UsageError: there is none.
    """
    known = {**shipped(), **imported(workdir)}
    if name in known:
        return known[name]
    if Path(name).exists():
        return Path(name)
    raise UsageError(
        f"There is no ground truth {name!r}.{nearest(name, known)} Known: {', '.join(known) or 'none'}; a file's path "
        "will do as well. attribench ground-truth list shows more."
    )


def differences(bundle: Bundle, settings: Settings) -> list[str]:
    """How settings differ from those a bundle was made with, in words; what no model or loss depends on is left out."""
    return _differences("", bundle.settings.without("counterfactual"), plain_settings(settings))


def plain_settings(settings: Settings) -> dict[str, Any]:
    """The settings a ground truth depends on, as plain values."""
    values = plain(settings.without("counterfactual"))
    assert isinstance(values, dict)
    return values


def import_file(address: str, workdir: Path, sha256: str | None = None) -> Bundle:
    """Copy a bundle from a path or an address (anything fsspec opens: https, s3, …) into a work directory and verify it.

    Args:
        sha256: what the file must be.

    Raises:
        BundleError: it cannot be had, or is not whole.
    """
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            content: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise BundleError(f"{address} cannot be read: {error}.") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise BundleError(
            f"{address} has SHA-256 {found}, not {sha256}: it is another file, or was damaged on the way."
        )
    incoming = workdir / "truths" / f".{found[:16]}{SUFFIX}"
    atomic_write(incoming, content)
    try:
        bundle = Bundle(incoming)
        bundle.verify()
        target = incoming.with_name(f"{bundle.header.name}{SUFFIX}")
        if bundle.header.name in shipped():
            raise BundleError(f"A ground truth called {bundle.header.name!r} ships with attribench: rename this one.")
        if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() != found:
            raise BundleError(
                f"Another ground truth called {bundle.header.name!r} is at {target} already: rename or remove it first."
            )
        incoming.replace(target)
    except BaseException:
        incoming.unlink(missing_ok=True)
        raise
    return Bundle(target)


def _in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"[!.]*{SUFFIX}"))}


def _differences(prefix: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    found = []
    for key in (*there, *(key for key in here if key not in there)):
        name, old, new = f"{prefix}{key}", there.get(key), here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(f"{name}.", old, new)
        elif old != new:
            found.append(f"--{name} {new} (the ground truth has {old})")
    return found
