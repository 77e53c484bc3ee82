"""How much of the machine others use."""

from __future__ import annotations

import psutil
import pytest

from attribench.computing.others import Others


class Counters:
    """The counters of a machine of four CPUs, and of this process on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = {"user": 100.0, "system": 10.0, "idle": 50.0, "iowait": 5.0, "guest": 7.0}
        self.own = {"user": 20.0, "system": 1.0, "children_user": 3.0, "children_system": 2.0}
        monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
        monkeypatch.setattr(psutil, "cpu_times", lambda: Named(self.machine))
        monkeypatch.setattr(psutil.Process, "cpu_times", lambda _: Named(self.own))


class Named:
    def __init__(self, values: dict[str, float]) -> None:
        self.__dict__.update(values)

    def _asdict(self) -> dict[str, float]:
        return dict(self.__dict__)


def test_neither_idleness_nor_what_this_process_does_is_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(monkeypatch)
    others = Others()
    counters.machine = {"user": 130.0, "system": 12.0, "idle": 90.0, "iowait": 9.0, "guest": 17.0}
    counters.own = {"user": 30.0, "system": 2.0, "children_user": 8.0, "children_system": 4.0}
    assert others.seconds == (32 - 11 - 7) / 4


def test_counters_that_lag_never_make_it_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(monkeypatch)
    others = Others()
    counters.own = {**counters.own, "user": 21.0}
    assert others.seconds == 0


def test_systems_that_count_neither_children_nor_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters(monkeypatch)
    counters.machine, counters.own = {"user": 1.0, "system": 0.0, "idle": 0.0}, {"user": 0.5, "system": 0.0}
    others = Others()
    counters.machine["user"] = 9.0
    assert others.seconds == 2
