"""The simulation of benchmarks/scaling.py against closed forms."""

from __future__ import annotations

import importlib.util
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def scaling() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("count", "workers"), [(192, 1), (192, 7), (192, 192), (5, 8)])
def test_equal_jobs_without_failures_take_their_rounds(scaling: Any, count: int, workers: int) -> None:
    terms = scaling.Terms(rate=0.0, overhead=2.0)
    found = scaling.simulate([100.0] * count, workers, terms, random.Random(0))
    assert found == scaling.Outcome(math.ceil(count / workers) * 102.0, 0, 0.0)


def test_with_failures_a_job_takes_what_renewal_theory_says(scaling: Any) -> None:
    """One job without checkpoints, workers that are back at once: E[T] = (e^{λs} − 1)/λ, and of the failures e^{λs} − 1."""
    rate, seconds = 0.01, 150.0
    terms = scaling.Terms(rate=rate, checkpoint=1e9, overhead=0.0, restart=0.0, repair=0.0)
    generator = random.Random(1)
    found = [scaling.simulate([seconds], 1, terms, generator) for _ in range(20000)]
    expected = math.expm1(rate * seconds)
    assert statistics.fmean(outcome.makespan for outcome in found) == pytest.approx(expected / rate, rel=0.03)
    assert statistics.fmean(outcome.failures for outcome in found) == pytest.approx(expected, rel=0.03)


def test_checkpoints_bound_what_is_done_twice(scaling: Any) -> None:
    terms = scaling.Terms(rate=1 / 300, checkpoint=10.0, overhead=0.0, restart=0.0, repair=0.0)
    found = scaling.simulate([200.0] * 50, 4, terms, random.Random(2))
    assert found.failures > 10
    assert 0 < found.repeated <= 10.0 * found.failures
    assert found.makespan >= 50 * 200.0 / 4


def test_a_worker_that_failed_is_away_while_it_is_repaired(scaling: Any) -> None:
    class Once(random.Random):
        times = iter([50.0])

        def expovariate(self, lambd: float = 1.0) -> float:
            return next(self.times, math.inf)

    terms = scaling.Terms(rate=1.0, checkpoint=20.0, overhead=1.0, restart=3.0, repair=600.0)
    found = scaling.simulate([100.0], 1, terms, Once())
    # 49 s of work, of which 40 are kept; back after 600 s, 4 s until it goes on, and the other 60 s.
    assert found == scaling.Outcome(50.0 + 600.0 + 4.0 + 60.0, 1, 9.0)
