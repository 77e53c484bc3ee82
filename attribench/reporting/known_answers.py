"""What methods make of questions whose answers are known, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from attribench.records.known_answers import CaseResult, KnownAnswers
from attribench.reporting.formats import Column, Table


def known_answers_table(answers: Sequence[KnownAnswers]) -> Table:
    """A row a method, a column a case: AUC, and the median rank of what is right; bold where it is better than chance."""
    first = answers[0]
    columns = [Column("method"), *(Column(case.name) for case in first.cases), Column("s")]
    rows = [[one.method, *map(_cell, one.cases), f"{one.seconds:.1f}"] for one in answers]
    bold = {
        (number, 1 + place) for number, one in enumerate(answers) for place, case in enumerate(one.cases) if case.seen
    }
    asked = "; ".join(f"{case.name}: {case.asked} ({case.num_queries})" for case in first.cases)
    notes = [
        f"The queries, and how many: {asked}. All are asked of the same {first.num_train} drawn pictures.",
        "Each cell: the chance that what is right scores above what is not (AUC × 100; 50 is guessing), and in brackets the "
        "median rank of the best right image. For held out: that the best score of a query of a known shape exceeds that of a "
        "query of an unknown one. Bold: the 95 % bootstrap interval over queries lies above 50.",
        "Seconds are without the training of a model. Pictures are small and few: what fails here may be seen elsewhere, and "
        "what is seen here says that a method can see such a thing, not how surely it finds it among many images.",
    ]
    return Table("Known answers", notes, columns, rows, frozenset(bold))


def _cell(case: CaseResult) -> str:
    value = f"{100 * case.auc:.0f}"
    return value if case.rank is None else f"{value} ({case.rank:.3g})"
