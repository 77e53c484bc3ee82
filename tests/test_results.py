"""The committed results are readable, and what the README shows is made from them."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attribench.cli import main
from attribench.metrics.counterfactual import pixel_distance
from attribench.records.counterfactual import load_counterfactuals
from attribench.records.files import load_attachment
from attribench.records.lds import load_records
from attribench.reporting.formats import render
from attribench.reporting.tables import leaderboards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def committed() -> None:
    """Skip where results/ is not as committed: a run here has added or replaced some."""
    found = subprocess.run(
        ["git", "status", "--porcelain", "--", "results"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode or found.stdout:
        pytest.skip("results/ is not as committed: a run here has added or replaced some")


def test_the_readme_s_table_is_made_from_the_committed_records() -> None:
    records = [record for record in load_records(ROOT / "results", ["digits"]) if record.protocol == "standard"]
    tables = leaderboards(records, ROOT / "results")
    assert len(tables) == 1
    assert render(tables, "markdown").strip() in (ROOT / "README.md").read_text("utf-8")


def content(page: str) -> list[str]:
    """A page's lines, with images as their pixels: files of the same image differ between versions of libraries.

    Of drawings, which differ likewise, only that they are there; and not which version of attribench made the page.
    """
    page = re.sub(r"Made by attribench \S+", "Made by attribench", page)

    def pixels(match: re.Match[str]) -> str:
        if match[1] != "png":
            return f"a {match[1]}"
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(match[2]))).convert("RGB"))
        return f"{image.shape} {hashlib.sha256(image.tobytes()).hexdigest()}"

    return re.sub(r"data:image/([a-z+]+);base64,([A-Za-z0-9+/=]+)", pixels, page).splitlines()


def test_the_committed_page_is_made_from_the_committed_records(tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results", results)
    assert main(["report", "--results", str(results), "--out", str(results / "again.html")]) == 0
    made = content((results / "again.html").read_text("utf-8"))
    committed = content((results / "report.html").read_text("utf-8"))
    for number, (ours, theirs) in enumerate(zip(made, committed, strict=True), start=1):
        assert ours == theirs, f"line {number}"


def test_the_leaderboard_is_of_the_size_it_says() -> None:
    records = load_records(ROOT / "results", ["digits"])
    for record in records:
        truth = record.settings["ground_truth"]
        assert (truth["num_subsets"], truth["num_seeds"]) == (64, 2)
        assert all(result.ceiling is not None for result in record.results.values())
    gradient = {"dtrak", "trak", "tracincp", "gas", "gradient-dot", "gradient-cosine"}
    rows = {record.method for record in records if record.protocol == "standard"}
    assert {"nda", "pixel-cosine", "random", *gradient, *(f"{name}-converged" for name in gradient)} <= rows
    assert {record.protocol for record in records} == {"standard", "strict"}


def test_the_committed_counterfactual_is_complete() -> None:
    records = load_counterfactuals(ROOT / "results", ["digits"])
    assert len(records) == 5
    for record in records:
        assert len(record.query_ids) >= 10
        assert len(record.train_seeds) == 3
        tensors = load_attachment(record, ROOT / "results")
        assert tensors is not None
        # Processors add up in other orders.
        assert np.allclose(pixel_distance(tensors["originals"], tensors["regenerated"]).numpy(), record.l2, rtol=1e-5)
