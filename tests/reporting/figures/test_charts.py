"""Every figure is drawn from records alone, with named axes, and comes out the same twice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from sample_records import sample_record
from sample_results import METHODS, counterfactual, sweep, write_results

from attribench.cli import main
from attribench.records.counterfactual import groups, load_counterfactuals
from attribench.records.files import save_file
from attribench.records.lds import Record, load_records, save_record
from attribench.records.sweep import load_sweeps
from attribench.reporting.boards import boards
from attribench.reporting.collection import Collection, board_drawings
from attribench.reporting.figures import charts
from attribench.reporting.figures.style import styled


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.mark.slow
def test_every_figure_is_written_by_one_command_and_is_the_same_twice(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, formats in (("first", "svg,png,pdf"), ("second", "svg,png")):
        arguments = ["figures", "--results", str(results), "--out", str(tmp_path / name), "--formats", formats]
        assert main(arguments) == 0
    printed = capsys.readouterr().out
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    for what in ("lds", "cost-validation", "cost-generation", "gallery-validation-0", "gallery-generation-1",
                 "nda.patch_size.timesteps", "counterfactual", "counterfactual-images"):  # fmt: skip
        for suffix in ("svg", "png", "pdf"):
            assert Path("digits", "small", f"{what}.{suffix}") in names
            assert f"{what}.{suffix}" in printed
    for name in names:
        if name.suffix == ".pdf":
            continue
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_every_axis_that_shows_numbers_is_named(results: Path) -> None:
    for drawing in Collection(results).drawings():
        figure = drawing.draw()
        assert isinstance(figure, Figure), drawing.name
        if "gallery" in drawing.name or "images" in drawing.name:
            continue
        for axes in figure.axes:
            assert axes.get_xlabel(), drawing.name
            assert axes.get_ylabel() or not axes.get_yticklabels() or axes.get_yticklabels()[0].get_text(), drawing.name
        assert len(drawing.caption) > 20


def test_points_stand_where_the_records_say(results: Path) -> None:
    board = next(board for board in boards(load(results), results) if board.first.preset == "small")
    figure = charts.lds_by_method(board)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert sorted(names) == sorted(METHODS)
    drawn = {round(float(line.get_xdata()[0]), 6) for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert {round(100 * record.results["validation"].lds, 6) for record in board.records} <= drawn
    ceilings = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert float(ceilings[0].get_xdata()[0]) == 75.0


def test_the_names_of_many_methods_lie_within_the_figure(results: Path) -> None:
    board = next(board for board in boards(load(results), results) if board.first.preset == "small")
    names = [f"renormalized-influence-{number}" for number in range(36)]
    figure = charts.lds_by_noise_level(
        replace(board, records=[board.first.model_copy(update={"method": name}) for name in names])
    )
    with styled():
        figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*names, "noise ceiling"]
    whole = figure.bbox
    drawn = figure.legends[0].get_window_extent()
    assert whole.x0 <= drawn.x0 < drawn.x1 <= whole.x1
    assert whole.y0 <= drawn.y0 < drawn.y1 <= whole.y1
    assert all(axes.get_window_extent().y0 > drawn.y1 for axes in figure.axes)
    assert min(axes.get_window_extent().height for axes in figure.axes) > 150  # of 330 pixels and more


def test_a_missing_cell_draws_nothing(results: Path) -> None:
    board = next(board for board in boards(load(results), results) if board.first.preset == "small")
    cost = charts.cost_against_lds(board, "generation")
    assert {text.get_text() for text in cost.axes[0].texts} == set(METHODS) - {"tracincp"}


def test_a_query_set_that_no_record_has_takes_no_room() -> None:
    record = sample_record(results={"validation": sample_record().results["validation"]})
    (board,) = boards([record])
    assert [axes.get_title() for axes in charts.lds_by_method(board).axes] == ["validation queries"]
    assert [drawing.name.rpartition("/")[2] for drawing in board_drawings(board)] == ["lds", "cost-validation"]
    swept = sweep()
    points = [
        point.model_copy(update={"results": {"validation": point.results["validation"]}}) for point in swept.points
    ]
    figure = charts.sweep_lines(swept.model_copy(update={"points": points}))
    assert [axes.get_title() for axes in figure.axes] == ["validation queries"]


def test_names_beside_the_cost_figure_do_not_overlap() -> None:
    """Even of methods in one place."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(ylim=(0, 1), xlim=(0, 1))
    charts._name_at_the_side(axes, {f"method {number}": (0.5, 0.99 - 0.001 * number) for number in range(14)})
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 14
    for lower, upper in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0 + 0.5  # of a pixel
    centres = [(box.y0 + box.y1) / 2 for box in boxes]
    assert axes.bbox.y0 - 1 <= centres[0] < centres[-1] <= axes.bbox.y1 + 1


def test_curves_of_a_sweep(results: Path) -> None:
    (record,) = load_sweeps(results)
    figure = charts.sweep_lines(record)
    first, second = figure.axes[0].lines[:2]
    np.testing.assert_allclose(first.get_xdata(), [3, 5, 7])
    np.testing.assert_allclose(first.get_ydata(), [30, 50, 70])
    np.testing.assert_allclose(second.get_ydata(), [15, 25, 35])
    assert figure.axes[0].get_xlabel() == "patch size"


def test_boxes_are_of_the_queries_means(results: Path) -> None:
    (group,) = groups(load_counterfactuals(results))
    figure = charts.counterfactual_boxes(group)
    medians = sorted(float(np.median(np.array(record.l2).mean(axis=1))) for record in group)
    drawn = sorted(
        float(line.get_xdata()[0])
        for line in figure.axes[0].lines
        if len(set(line.get_xdata())) == 1 and line.get_linewidth() > 1.2
    )
    np.testing.assert_allclose(drawn, medians)


def test_ticks_of_a_logarithmic_axis_are_plain_numbers(results: Path) -> None:
    board = next(board for board in boards(load(results), results) if board.first.preset == "small")
    figure = charts.cost_against_lds(board)
    figure.axes[0].set_xlim(2e-4, 3e3)
    with styled():
        figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert {"0.001", "1", "1000"} <= set(shown)
    figure.axes[0].set_xlim(2.5, 4.5)  # no power of ten inside: the ticks between have the labels
    with styled():
        figure.draw_without_rendering()
    assert "3" in [label.get_text() for label in figure.axes[0].get_xticklabels(minor=True)]


#: As mathematics the first has no end of a fraction, the second one dollar too many, and the third would lose its dollars.
DOLLARS = (r"$\frac{$", "pay $5 or $", "$x$")


def test_dollars_in_names_are_dollars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in DOLLARS:
        save_record(sample_record(method=name, dataset=DOLLARS[0]), tmp_path)
    save_file(sweep().model_copy(update={"method": DOLLARS[1]}), tmp_path)
    save_file(*counterfactual(DOLLARS[2], 1.0, tmp_path))
    (board,) = boards(load(tmp_path))
    shown = {text.get_text() for text in charts.lds_by_method(board).findobj(Text) if isinstance(text, Text)}
    assert set(DOLLARS) <= shown
    assert main(["figures", "--results", str(tmp_path), "--out", str(tmp_path / "figures"), "--formats", "svg"]) == 0
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "could not be drawn" not in capsys.readouterr().err


def test_a_figure_that_cannot_be_drawn_is_named_and_the_others_are_drawn(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no such colour")

    monkeypatch.setattr("attribench.reporting.figures.charts.lds_by_method", fail)
    arguments = ["--results", str(results), "--dataset", "digits", "--preset", "small"]
    assert main(["figures", *arguments, "--out", str(tmp_path), "--formats", "svg"]) == 1
    error = capsys.readouterr().err
    assert "digits/small/lds (ValueError: no such colour)" in error
    assert len([line for line in error.splitlines() if line.startswith("attribench: ")]) == 1  # others tell of progress
    assert not (tmp_path / "digits" / "small" / "lds.svg").exists()
    assert (tmp_path / "digits" / "small" / "counterfactual.svg").exists()
    page = tmp_path / "page.html"
    assert main(["report", *arguments, "--out", str(page)]) == 1
    assert "digits/small/lds" in capsys.readouterr().err
    assert "Cost against LDS" in page.read_text("utf-8")
    assert "LDS of every method with its" not in page.read_text("utf-8")


def load(results: Path) -> list[Record]:
    return load_records(results)


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "--results", str(tmp_path)]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    assert main(["figures", "--results", str(tmp_path), "--formats", "svgg"]) == 2
    assert "Did you mean 'svg'" in capsys.readouterr().err
