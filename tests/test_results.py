"""The committed results are readable, and what the README shows is made from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from attribench.records import load_records
from attribench.reporting.formats import render
from attribench.reporting.tables import leaderboards

ROOT = Path(__file__).parents[1]


def test_the_readme_s_table_is_made_from_the_committed_records() -> None:
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "results/records"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if changed.returncode or changed.stdout:
        pytest.skip("the records in results/ are not the committed ones: a run here has replaced some")
    tables = leaderboards(load_records(ROOT / "results", ["digits"]), ROOT / "results")
    assert len(tables) == 1
    assert render(tables, "markdown").strip() in (ROOT / "README.md").read_text("utf-8")
