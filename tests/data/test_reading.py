"""Reading many files within a bound of memory."""

from __future__ import annotations

import threading
import warnings

import pytest

from attribench.data.reading import MemoryBudget, attempt_each


def test_threads_hold_no_more_than_the_budget_and_a_larger_one_comes_alone() -> None:
    budget = MemoryBudget(10)
    held: list[int] = []
    seen: list[list[int]] = []
    lock = threading.Lock()

    def hold(size: int) -> None:
        with budget.reserved(size):
            with lock:
                held.append(size)
                seen.append(list(held))
            threading.Event().wait(0.002)
            with lock:
                held.remove(size)

    threads = [threading.Thread(target=hold, args=(size,)) for size in [4, 6, 5, 25, 1, 9, 3] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(seen) == len(threads)
    assert all(sum(sizes) <= 10 or len(sizes) == 1 for sizes in seen)


def test_the_budget_is_given_back_after_an_error() -> None:
    budget = MemoryBudget(1)
    with pytest.raises(ValueError, match="odd"), budget.reserved(1):
        raise ValueError("odd")
    with budget.reserved(1):
        pass


def test_pillow_s_warnings_do_not_reach_the_terminal(recwarn: pytest.WarningsRecorder) -> None:
    def read(number: int) -> int:
        warnings.warn_explicit("large", UserWarning, "Image.py", 1, module="PIL.Image")
        return number

    assert attempt_each([1, 2], read) == [1, 2]
    assert not recwarn.list
