from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_results import write_results
from scipy import stats

from attribench.cli import main
from attribench.records.counterfactual import groups, load_counterfactuals
from attribench.reporting.counterfactual_tables import compared, counterfactual_tables, strongest


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


def test_the_table(results: Path) -> None:
    records = load_counterfactuals(results)
    (table,) = counterfactual_tables(records)
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["nothing (control)", "nda", "random"]
    by_name = {record.method: np.array(record.l2).mean(axis=1) for record in records}
    assert rows["nda"][1].startswith(f"{np.median(by_name['nda']):.2f} [")
    expected = stats.ttest_rel(by_name["nda"], by_name["control"])
    low, high = expected.confidence_interval()
    difference = np.mean(by_name["nda"] - by_name["control"])
    assert rows["nda"][2] == f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert rows["nothing (control)"][2] == "—"
    assert "CLIP" not in " ".join(table.header)
    assert any("no CLIP cosine" in note for note in table.notes)
    (group,) = groups(records)
    assert strongest(group, "l2", compared(group, "l2")) == {"nda"}


def test_the_command(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--kind", "counterfactual", "--format", "markdown", "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "| nda |" in printed
    assert "counterfactual" in printed
    assert main(["table", "--kind", "counterfactuals", "--results", str(results)]) == 2
    assert "Did you mean 'counterfactual'" in capsys.readouterr().err
    assert main(["table", "--kind", "counterfactual", "--dataset", "celeba", "--results", str(results)]) == 2
    assert "There are: digits (small)" in capsys.readouterr().err
