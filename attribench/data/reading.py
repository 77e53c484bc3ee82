"""Reading many files, several at a time, within a bound of memory; what fails is named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

from attribench.data.files import some
from attribench.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


class MemoryBudget:
    """So many bytes, shared by threads: who asks for more than is left waits; more than there is comes alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes inside the ``with`` block."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def read_each(
    sources: Sequence[T],
    read: Callable[[T], R],
    names: Sequence[str],
    remedy: str = "Replace or remove them.",
) -> list[R]:
    """Apply ``read`` to every source, and report all that fail together.

    Args:
        sources: what ``read`` is given, one at a time, from several threads.
        read: raises DataError with the reason alone as message, or OSError, if it cannot read its source.
        names: what an error calls each source.
        remedy: what an error tells its reader to do.

    Raises:
        DataError: up to three of the failures by name, and how many there are.
    """

    results = attempt_each(sources, read)
    failed = [f"{name}: {result}" for name, result in zip(names, results, strict=True) if isinstance(result, DataError)]
    if failed and len(results) == 1:
        raise DataError(f"An image cannot be read ({failed[0]}). {remedy}")
    if failed:
        raise DataError(f"{len(failed)} of {len(results)} images cannot be read ({some(failed, '; ')}). {remedy}")
    return [result for result in results if not isinstance(result, DataError)]


def attempt_each(sources: Sequence[T], read: Callable[[T], R]) -> list[R | DataError]:
    """Apply ``read`` to every source, several at a time; what cannot be read gives the error, in its place."""

    def attempt(source: T) -> R | DataError:
        try:
            return read(source)
        except DataError as error:
            return error
        except OSError as error:
            return DataError(error.strerror or str(error))

    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # Pillow warns of large pictures, which are expected, and of odd ones, without saying which file it is.
        warnings.filterwarnings("ignore", module="PIL")
        return list(pool.map(attempt, sources))
