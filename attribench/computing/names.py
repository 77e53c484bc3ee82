"""Names that any file, figure and terminal can hold."""

from __future__ import annotations

import unicodedata


def readable(text: str) -> str:
    r"""The text itself, or with escapes for what is no character to be read: ``"caf\xe9"`` for a file's name in Latin-1.

    Python stands for bytes of a file's name that are no UTF-8 with lone surrogates, which neither a file in UTF-8 nor a
    figure can hold. Control characters, but for the end of a line, are escaped too.
    """
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in ("Cs", "Cc"):
        return character
    code = ord(character)
    return f"\\x{code & 0xFF:02x}" if code < 0x100 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
