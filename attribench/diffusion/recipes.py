"""Numbers of the recipes by which models are trained, losses measured and images sampled.

What these make costs hours, so it stays in use whatever becomes of the source: a change that gives other models, losses or
images for the same settings must raise the number here. A test fails as soon as one of the files that decide is edited, and
asks. See ``docs/store.md``.
"""

from __future__ import annotations

TRAINING = 1
LOSSES = 1
SAMPLING = 1


def recipe(number: int) -> dict[str, int]:
    """What a recipe's number adds to a specification: nothing for the first, so that its artifacts keep their keys."""
    return {} if number == 1 else {"recipe": number}
