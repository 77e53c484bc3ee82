"""Standard output and error that take any character, whatever their encoding."""

from __future__ import annotations

import codecs
import sys
import unicodedata

#: What stands for a character where an encoding lacks it; others lose their accents, or become a question mark.
_PLAIN = {"×": "x", "±": "+-", "≈": "~", "−": "-", "–": "-", "—": "-", "─": "-", "→": "->", "·": "*", "√": "sqrt", "‖": "||",
          "α": "alpha", "ε": "eps", "λ": "lambda", "φ": "phi", "Φ": "Phi", "’": "'"}  # fmt: skip


def accept_any_character() -> None:
    """Let the standard streams print a readable replacement for what their encoding lacks, ASCII say, instead of failing."""
    codecs.register_error("attribench.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's are not files
            stream.reconfigure(errors="attribench.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: the text for the first character that cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    plain = _PLAIN.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?", error.start + 1
