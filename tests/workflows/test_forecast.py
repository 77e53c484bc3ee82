"""What is said of memory before the work, and what is refused for lack of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_problem import Small, problem

from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import class_config
from attribench.errors import UsageError
from attribench.method import Needs
from attribench.methods.trak import TRAK
from attribench.workflows.forecast import Planned, forecast


def test_an_eighth_more_than_is_said_must_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured peaks were so far above."""
    context = problem(Small, tmp_path, (2, 4, 4))[0]
    monkeypatch.setattr(TRAK, "needs", lambda *_: Needs(8000, 0, 0.0))
    planned = Planned(class_config(TRAK, {}), TRAK(), context)
    monkeypatch.setattr("attribench.gradients.budget.available_memory", lambda _: 9000)
    forecast([planned], 1, silent_progress)
    monkeypatch.setattr("attribench.gradients.budget.available_memory", lambda _: 8999)
    with pytest.raises(UsageError, match=r"trak, with an eighth to spare, needs .*\(9000 bytes\) of memory"):
        forecast([planned], 1, silent_progress)
