"""``attribench attributability``: from ground truths that are there, and over train-set sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from attribench.cli import main
from attribench.configuration.resolution import resolve
from attribench.records.attributability import AttributabilityRecord, load_attributability
from attribench.reporting.boards import Board
from attribench.truth.bundle import Bundle
from attribench.truth.catalog import shipped
from attribench.workflows import attributability as module

SMOKE = ["--dataset", "digits", "--preset", "smoke", "--accelerator", "cpu", "--workers", "1"]
ROOT = Path(__file__).parents[2]


def call(folder: Path, *more: str) -> int:
    return main(["attributability", "--workdir", str(folder / "runs"), "--results", str(folder / "results"), *more])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AttributabilityRecord]:
    """The record of the ground truth that ships."""
    folder = tmp_path_factory.mktemp("digits")
    assert call(folder, "--dataset", "digits") == 0
    (record,) = load_attributability(folder / "results")
    return folder, record


def test_the_ground_truth_that_ships(digits: tuple[Path, AttributabilityRecord]) -> None:
    _, record = digits
    (point,) = record.points
    assert (record.dataset, record.preset, record.ground_truth, point.num_train) == ("digits", "board", "digits", 500)
    assert [(one.query_set, one.protocol) for one in point.results] == [
        ("validation", "standard"), ("validation", "strict"), ("generation", "standard"), ("generation", "strict"),
    ]  # fmt: skip
    bundle = Bundle(shipped()["digits"])
    for result in point.results[::2]:
        truth = bundle.ground_truth(result.query_set)
        assert result.ground_truth_hash == truth.hash
        losses = truth.losses.numpy()
        for query in (0, 41, 99):
            assert result.p_values[query] == pytest.approx(stats.f_oneway(*losses[:, :, query]).pvalue, rel=1e-6)
        # What two models of one subset share is due to the images: the correlation over subsets, symmetrised.
        both = np.concatenate([losses, losses[:, ::-1]])
        agreement = [np.corrcoef(both[:, 0, query], both[:, 1, query])[0, 1] for query in range(100)]
        assert result.share == pytest.approx(np.mean(agreement), abs=0.02)
        assert result.interval.low < result.share < result.interval.high
        assert result.ceiling is not None
    assert point.results[1].num_subsets == 32
    assert len(point.results[1].query_ids) == 50


def test_boards_have_it_beside_the_ceiling(
    digits: tuple[Path, AttributabilityRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = digits
    shown = record.points[0].results[0].text
    call_run = [
        "run",
        "--method",
        "random",
        "--dataset",
        "digits",
        "--workdir",
        str(folder / "runs"),
        "--galleries",
        "false",
    ]
    assert main([*call_run, "--results", str(folder / "results"), "--accelerator", "cpu"]) == 0
    assert main([*call_run, "--results", str(folder / "results"), "--accelerator", "cpu", "--protocol", "strict"]) == 0
    capsys.readouterr()
    assert main(["table", "--results", str(folder / "results"), "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    assert f"| attributability | {shown} | — |" in printed
    assert record.points[0].results[1].text in printed
    assert "94 of 100 validation queries" in printed
    assert main(["report", "--results", str(folder / "results"), "--out", str(folder / "page.html")]) == 0
    page = (folder / "page.html").read_text("utf-8")
    assert f"<td>{shown}</td>" in page
    share = f"{100 * record.points[0].results[0].share:.0f}"
    assert re.search(rf'<span class="limit">of 77\.\d; {share} % attributable</span>', page)


def test_one_seed_is_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, *SMOKE) == 2
    assert "add --ground_truth.num_seeds 2" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "models").exists()


@pytest.mark.skipif(
    not (ROOT / "results/ground-truth/fashion-mnist-64x1.truth").is_file(), reason="this checkout is without that file"
)
def test_noise_draws_are_no_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three draws of noise of one model each: a ground truth that was made elsewhere is refused likewise."""
    from attribench.errors import UsageError

    bundle = Bundle(ROOT / "results/ground-truth/fashion-mnist-64x1.truth")

    class Opened:
        query_sets = bundle.query_sets

        def __init__(self) -> None:
            self.bundle = bundle

        def ground_truth(self, name: str) -> object:
            return bundle.ground_truth(name)

    assert bundle.ground_truth("validation").draws.shape[1:3] == (1, 3)
    config = resolve("digits", "board", [], {})  # its settings say two seeds; the file is what counts
    monkeypatch.setattr(module, "open_experiment", lambda *arguments: Opened())
    with pytest.raises(UsageError, match="whatever the number of noise draws; use one with more"):
        module.measure(config, None, None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_series_of_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--sizes", "[30, 60]", "--ground_truth.num_seeds", "2"]
    assert call(tmp_path, *SMOKE, *sizes) == 0
    printed = capsys.readouterr().out
    assert "4 × 2" in printed
    (record,) = load_attributability(tmp_path / "results")
    assert record.is_series
    assert [point.num_train for point in record.points] == [30, 60]
    for point in record.points:
        (result,) = point.results
        assert (result.query_set, result.num_subsets, result.num_seeds, len(result.query_ids)) == (
            "validation",
            4,
            2,
            10,
        )
    path = tmp_path / "results" / record.path
    before = path.read_bytes()
    assert call(tmp_path, *SMOKE, *sizes) == 0  # found in the store, and filed once
    assert path.read_bytes() == before
    run = ["run", "--method", "random", *SMOKE, "--workdir", str(tmp_path / "runs")]
    assert main([*run, "--results", str(tmp_path / "results")]) == 0
    assert main(["figures", "--results", str(tmp_path / "results"), "--formats", "svg"]) == 0
    (figure,) = (tmp_path / "results" / "figures").rglob("attributability.svg")
    assert figure.stat().st_size > 1000
    assert main(["report", "--results", str(tmp_path / "results")]) == 0
    assert "Attributability and the number of train images" in (tmp_path / "results" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sizes", "[30]"], "two sizes or more"),
        (["--sizes", "many"], "expected whole numbers"),
        (["--sizes", "[30, 61]", "--ground_truth.num_seeds", "2"], "digits has 60 here"),
        (["--sizes", "[30, 60]"], "one training seed"),
        (["--sizes", "[30, 60]", "--ground_truth.num_seeds", "2", "--ground_truth.num_subsets", "3"], "at least 4"),
        (["--format", "pdf"], "Unknown --format"),
    ],
)
def test_wrong_calls(tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, *SMOKE, *more) == 2
    assert message in capsys.readouterr().err


def test_a_board_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    from sample_results import write_results

    from attribench.records.lds import load_records
    from attribench.reporting.boards import boards
    from attribench.reporting.tables import leaderboard

    folder = write_results(tmp_path)
    board: Board = next(one for one in boards(load_records(folder), folder) if one.first.preset == "small")
    assert not board.attributability
    assert leaderboard(board).rows[-1][0] == "noise ceiling"
    assert torch.is_tensor(board.attachments["nda"]["validation.outputs"])
