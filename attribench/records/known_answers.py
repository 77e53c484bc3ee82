"""What a method makes of questions whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attribench.errors import RecordError
from attribench.records.files import Frozen


class CaseResult(Frozen):
    """One question.

    Attributes:
        name: the case's.
        asked: what the queries are.
        auc: chance, in 0…1, that what is right scores above what is not, ½ by guessing; the mean over queries. Where the
            question is which queries have an answer: that the best score of one that has exceeds that of one that has none.
        low: lower end of its 95 % interval over queries.
        high: upper end.
        rank: median over queries of the place of the best right image, from 1; None where the question is of queries.
        num_queries: how many were asked.
    """

    name: str
    asked: str
    auc: float
    low: float
    high: float
    rank: float | None
    num_queries: int

    @property
    def seen(self) -> bool:
        """Whether the method does better here than by guessing, as far as so few queries can tell."""
        return self.low > 0.5


class KnownAnswers(Frozen):
    """What one method makes of all of them.

    Attributes:
        method: the row's name.
        options: the method's full configuration.
        access: what the method declares it looks at.
        seconds: preparation and scoring, without the training of a model.
        num_train: train images.
    """

    method: str
    options: dict[str, Any]
    access: str
    cases: list[CaseResult]
    seconds: float
    num_train: int

    def __getitem__(self, name: str) -> CaseResult:
        """The result of one case.

        Raises:
            KeyError: there is no such case.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise KeyError(name)


def load_known_answers(results: Path) -> list[KnownAnswers]:
    """What ``attribench known-answers --out`` wrote into the folder ``known-answers`` of a results folder, in order.

    Raises:
        RecordError: one of the files cannot be read.
    """
    found: list[KnownAnswers] = []
    for path in sorted((results / "known-answers").glob("*.json")):
        try:
            found += [KnownAnswers.model_validate(one) for one in json.loads(path.read_text("utf-8"))]
        except (OSError, ValueError, TypeError, ValidationError) as error:
            raise RecordError(f"{path} is not what attribench known-answers --out writes: {error}") from error
    return found
