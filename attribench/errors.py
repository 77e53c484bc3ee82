"""One hierarchy for everything attribench refuses or fails at.

The command line prints the message of an :class:`AttribenchError` on one or two lines and exits with its
``exit_code``; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AttribenchError(Exception):
    """Something failed; the message says what, where, and what to do."""

    exit_code = 1


class UsageError(AttribenchError):
    """The call itself is wrong: an unknown name, option or value."""

    exit_code = 2


class AccessError(AttribenchError):
    """A method reached for something its declared ``access`` does not cover."""


class DataError(AttribenchError):
    """Images or labels are missing, unreadable or of the wrong shape."""


class ModelError(AttribenchError):
    """A model that somebody brings cannot be read, or is of a kind that attribench cannot work with."""


class PluginError(AttribenchError):
    """A registered method or data module cannot be imported, or two share one name."""


class ArtifactError(AttribenchError):
    """The artifact store cannot give or take what was asked: locked, full, or damaged."""


class BundleError(AttribenchError):
    """A ground truth in a file cannot be read, is damaged, or is not the one that is needed."""


class RecordError(AttribenchError):
    """A result record cannot be read: another schema version, or unknown fields."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to ``name``, or ``""`` when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
