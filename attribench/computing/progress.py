"""Progress with time left, on a terminal as bars and in a log as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import Task as RichTask
    from rich.progress import TaskID

T = TypeVar("T")


class Task(Protocol):
    """One bar."""

    def advance(self, amount: float = 1.0) -> None:
        """Report that ``amount`` more of the total is done."""


class Progress:
    """Shows nothing; the base of the displays and the default of a context."""

    @contextmanager
    def task(self, description: str, total: float, unit: str = "") -> Iterator[Task]:
        """Open a bar of ``total`` units; closed, and removed from the display, on exit.

        Args:
            description: what is being done.
            total: how many units there are.
            unit: what one is called, if their number a second is worth showing.
        """
        yield _NoTask()

    def message(self, text: str) -> None:
        """Say a line without disturbing the bars."""

    def track(self, items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
        """Iterate over ``items``, one unit each."""
        if total is None:
            total = len(items) if isinstance(items, Sized) else 0
        with self.task(description, total) as task:
            for item in items:
                yield item
                task.advance()


class _NoTask:
    def advance(self, amount: float = 1.0) -> None:
        pass


silent_progress = Progress()


class _BarTask:
    def __init__(self, bars: RichProgress, task_id: TaskID) -> None:
        self._bars, self._id = bars, task_id

    def advance(self, amount: float = 1.0) -> None:
        self._bars.advance(self._id, amount)


class BarProgress(Progress):
    """Bars on a terminal (standard error), each with its own time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        class RateColumn(ProgressColumn):
            def render(self, task: RichTask) -> Text:
                return Text(format_rate(task.speed, task.fields["unit"]))

        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            RateColumn(),
            console=Console(stderr=True),
            transient=True,
            speed_estimate_period=600,
        )
        self._open = 0

    @contextmanager
    def task(self, description: str, total: float, unit: str = "") -> Iterator[Task]:
        if self._open == 0:
            self._bars.start()
        self._open += 1
        task_id = self._bars.add_task(description, total=total, unit=unit)
        try:
            yield _BarTask(self._bars, task_id)
        finally:
            self._bars.remove_task(task_id)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()

    def message(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False, emoji=False)


class _LineTask:
    """Prints a line every ``interval`` seconds, so that a log shows life without drowning in it."""

    def __init__(self, description: str, total: float, unit: str, interval: float) -> None:
        self._description, self._total, self._unit, self._interval = description, total, unit, interval
        self._done = 0.0
        self._start = self._last = time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last >= self._interval and self._total > 0 and self._done > 0:
            self._last = now
            left = (now - self._start) * (self._total - self._done) / self._done
            share = 100 * self._done / self._total
            rate = format_rate(self._done / (now - self._start), self._unit)
            text = f"{self._description}: {share:.0f} %, {format_seconds(left)} left{', ' if rate else ''}{rate}"
            print(text, file=sys.stderr, flush=True)


class LineProgress(Progress):
    """Plain lines on standard error, for logs."""

    def __init__(self, interval: float = 20.0) -> None:
        self._interval = interval

    @contextmanager
    def task(self, description: str, total: float, unit: str = "") -> Iterator[Task]:
        yield _LineTask(description, total, unit, self._interval)

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def terminal_progress() -> Progress:
    """Bars when standard error is a terminal, lines otherwise."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()


def format_rate(rate: float | None, unit: str) -> str:
    """``"1,234 query × train image / s"``; nothing where there is no unit, or no rate yet."""
    if not unit or not rate:
        return ""
    return f"{rate:,.0f} {unit} / s" if rate >= 10 else f"{rate:.2g} {unit} / s"


def format_seconds(seconds: float) -> str:
    """``"42 s"``, ``"3 min 10 s"``, ``"2 h 5 min"``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
