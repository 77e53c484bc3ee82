from __future__ import annotations

import pytest

from attribench.computing.progress import BarProgress, LineProgress, format_rate, format_seconds


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [
        (1234.4, "query × train image", "1,234 query × train image / s"),
        (0.123, "models", "0.12 models / s"),
        (5.0, "", ""),
        (None, "models", ""),
    ],
)
def test_rates(rate: float | None, unit: str, text: str) -> None:
    assert format_rate(rate, unit) == text


@pytest.mark.parametrize(("seconds", "text"), [(42, "42 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")])
def test_times(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_log_gets_share_time_left_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(interval=0.0).task("comparing", 10, "pairs") as task:
        task.advance(4)
    line = capsys.readouterr().err
    assert line.startswith("comparing: 40 %, ")
    assert " left, " in line
    assert line.endswith(" pairs / s\n")


def test_bars_open_and_close() -> None:
    progress = BarProgress()
    with progress.task("outer", 2) as outer, progress.task("inner", 3, "pairs") as inner:
        outer.advance()
        inner.advance(3)


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich: bars are drawn
    monkeypatch.setenv("COLUMNS", "200")
    progress = BarProgress()
    with progress.task("nda[/x] :smile:", 2) as task:
        progress.message("[top_k=5] :smile:")
        task.advance()
    shown = capsys.readouterr().err
    assert "nda[/x] :smile:" in shown
    assert "[top_k=5] :smile:" in shown
