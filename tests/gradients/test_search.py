from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from attribench import load_method
from attribench.gradients.search import REGULARIZATIONS


@pytest.mark.parametrize("name", ["trak", "dtrak", "das", "relative-influence", "renormalized-influence"])
def test_the_best_regularization_output_and_number_of_timesteps_are_found(name: str) -> None:
    cls = load_method(name)

    def evaluate(options: Mapping[str, Any]) -> float:
        cls(**options)  # every candidate is valid
        value = -abs(math.log10(options["regularization"] / 0.03))
        value += 5 * (options.get("f") == "l2-norm")
        return value + 0.5 * (options.get("num_timesteps") == 100)

    found = cls.search(evaluate, {"num_timesteps": 10})
    expected = {"regularization": 0.03, "num_timesteps": 100}
    assert found == ({**expected, "f": "l2-norm"} if name == "dtrak" else expected)
    assert 0.03 in REGULARIZATIONS


@pytest.mark.parametrize("name", ["gradient", "tracincp", "gas"])
def test_similarities_try_the_published_numbers_of_timesteps(name: str) -> None:
    cls = load_method(name)
    assert cls.search(lambda options: float(options["num_timesteps"]), {}) == {"num_timesteps": 100}


def test_the_damping_of_a_curvature_and_then_the_number_of_timesteps_are_found() -> None:
    cls = load_method("ekfac")

    def evaluate(options: Mapping[str, Any]) -> float:
        cls(**options)  # every candidate is valid
        return -abs(math.log10(options["damping"] / 0.01)) + 0.5 * (options.get("num_timesteps") == 100)

    assert cls.search(evaluate, {"num_timesteps": 10}) == {"damping": 0.01, "num_timesteps": 100}


@pytest.mark.parametrize("name", ["dtrak", "ekfac"])
def test_the_strength_is_chosen_anew_at_the_chosen_number_of_timesteps(name: str) -> None:
    cls = load_method(name)
    option = "damping" if name == "ekfac" else "regularization"
    best = {10: 0.01, 100: 0.1}

    def evaluate(options: Mapping[str, Any]) -> float:
        number = options.get("num_timesteps", 10)
        return -abs(math.log10(options[option] / best[number])) + 3 * (number == 100) + (options.get("f") == "mean")

    found = cls.search(evaluate, {"num_timesteps": 10})
    assert (found[option], found["num_timesteps"]) == (0.1, 100)
    assert found.get("f", "mean") == "mean"
