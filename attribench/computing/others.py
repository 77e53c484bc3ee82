"""How much of the machine others use."""

from __future__ import annotations

import psutil


class Others:
    """What other processes take of the CPUs from when it is made: times taken meanwhile are longer than they need be."""

    def __init__(self) -> None:
        self._start = _others_cpu_seconds()

    @property
    def seconds(self) -> float:
        """CPU seconds so far, divided by the number of CPUs: the time for which all of them would have been taken."""
        return max(0.0, _others_cpu_seconds() - self._start) / (psutil.cpu_count() or 1)


def _others_cpu_seconds() -> float:
    """CPU seconds of all processes since the machine started, but this one and its children that have ended."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    # Guests' time is in user time already; what waits for a disk does not work.
    idle = ("idle", "iowait", "guest", "guest_nice")
    busy: float = sum(seconds for name, seconds in machine._asdict().items() if name not in idle)
    return float(
        busy - own.user - own.system - getattr(own, "children_user", 0.0) - getattr(own, "children_system", 0.0)
    )
