from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from attribench.configuration.options import typed
from attribench.errors import UsageError
from attribench.records.lds import row_name
from attribench.store.json_values import json_value


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Options:
    """All types of options.

    Args:
        path: a path.
        colour: a member.
        sizes: a set.
        names: a set.
        dtype: of torch.
        limit: a number.
        limits: numbers.
        pair: a tuple.
    """

    def __init__(
        self,
        path: Path | None = None,
        colour: Colour = Colour.RED,
        sizes: set[int] = frozenset({3, 20, 1}),  # type: ignore[assignment]
        names: frozenset[str] = frozenset(),
        dtype: torch.dtype = torch.float32,
        limit: float = math.inf,
        limits: list[float] | None = None,
        pair: tuple[int, ...] = (1, 2),
    ) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("changed", "written"),
    [
        ({}, {"colour": "RED", "dtype": "torch.float32", "limit": ".inf", "pair": [1, 2], "path": None}),
        ({"path": Path("a/b c")}, {"path": "a/b c"}),
        ({"colour": Colour.BLUE}, {"colour": "BLUE"}),
        ({"sizes": {10, 9, 8}}, {"sizes": [10, 8, 9]}),
        ({"names": frozenset({"b", "a"})}, {"names": ["a", "b"]}),
        ({"dtype": torch.bfloat16}, {"dtype": "torch.bfloat16"}),
        ({"limit": -math.inf, "limits": [1.5, math.inf]}, {"limit": "-.inf", "limits": [1.5, ".inf"]}),
    ],
)
def test_options_are_written_and_read_back(changed: dict[str, Any], written: dict[str, Any]) -> None:
    options = typed(Options, "method", changed)
    found = json.loads(json.dumps(json_value(options, "method"), allow_nan=False))
    assert {key: found[key] for key in written} == written
    assert typed(Options, "method", found) == options


def test_nan_is_written() -> None:
    assert json_value({"a": math.nan}) == {"a": ".nan"}
    assert math.isnan(typed(Options, "method", {"limit": ".nan"})["limit"])


def test_what_has_no_form_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"--method\.call\.f is a builtin_function_or_method"):
        json_value({"call": {"f": len}}, "method")


def test_rows_are_named_by_what_is_written() -> None:
    assert row_name("m", {"colour": Colour.BLUE, "path": Path("a"), "s": {2, 1}}) == "m[colour=BLUE,path=a,s=[1, 2]]"
    assert row_name("m", {"limit": math.inf}) == "m[limit=.inf]"
    long = [row_name("m", {"values": list(range(50, 100 + end))}) for end in (0, 1)]
    assert len(set(long)) == 2
    assert max(map(len, long)) < 90
