"""Reading what others wrote: configurations, and what to say of what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attribench.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: there is none in the file.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object.")
    return content


def first_line(error: BaseException) -> str:
    """What a library says, in one line that ends with a full stop."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return text if text.endswith(".") else f"{text}."


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers tells of defaults and of what it leaves unused; nobody asked."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
