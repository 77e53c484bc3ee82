from __future__ import annotations

import os

import pytest

from attribench.computing.names import readable


@pytest.mark.parametrize("text", ["nda", "Café 写真 🦆.png", r"$\frac{1}{2}$", "two\nlines", ""])
def test_a_name_that_can_be_read_stays(text: str) -> None:
    assert readable(text) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"caf\xe9.png", r"caf\xe9.png"), (b"a\x00b\x1b[31m\t", r"a\x00b\x1b[31m\x09"), (b"\xc3\xa9\xff", r"é\xff")],
)
def test_what_is_no_character_is_escaped(name: bytes, shown: str) -> None:
    text = readable(os.fsdecode(name))
    assert text == shown
    text.encode()


def test_other_lone_surrogates_are_escaped() -> None:
    assert readable("a\ud83d") == r"a\ud83d"
