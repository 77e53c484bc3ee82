"""``attribench attribute``: folders in, ranked files and a page out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from odd_images import SKIPPED, write_odd_images
from PIL import Image

from attribench.cli import main
from attribench.methods.nda.engine import stream
from attribench.methods.nda.engine.compiled import Engine
from attribench.workflows import attribution

OPTIONS = ["--image-size", "12", "--accelerator", "cpu", "--method.timesteps", "[100, 300]", "--method.patch_size", "[3, 5]",
           "--method.low_resolution_patch_size", "4"]  # fmt: skip


def picture(seed: int) -> Image.Image:
    """Smooth noise: pictures have neighbours that agree."""
    values = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((24, 20), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train", "queries"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for number in range(12):
        picture(number).save(tmp_path / "train" / "sub" / f"{number}.png")
    picture(7).save(tmp_path / "queries" / "copy-of-7.png")
    picture(100).save(tmp_path / "queries" / "new.png")
    return tmp_path


def call(folder: Path, *more: str, method: str = "nda", options: list[str] = OPTIONS) -> int:
    return main(
        ["attribute", "--train", str(folder / "train"), "--queries", str(folder / "queries"), "--method", method,
         "--out", str(folder / "out"), "--workdir", str(folder / "runs"), *options, *more]
    )  # fmt: skip


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "out" / "scores.parquet")


def test_ranks_scores_and_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "--top", "5") == 0
    table = scores(folder)
    assert list(table.columns) == ["query", "train", "rank", "score"]
    assert len(table) == 10
    for _, rows in table.groupby("query"):
        assert rows["rank"].tolist() == [1, 2, 3, 4, 5]
        assert rows["score"].is_monotonic_decreasing
    first = table[(table["query"] == "copy-of-7.png") & (table["rank"] == 1)].iloc[0]
    assert first["train"] == "sub/7.png"  # a train image used as query ranks itself first
    page = (folder / "out" / "report.html").read_text()
    for text in ("copy-of-7.png", "new.png", "sub/7.png", "show heat maps"):
        assert text in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "2 queries, 12 train images" in capsys.readouterr().out


def test_all_train_images_on_request(folder: Path) -> None:
    assert call(folder, "--top", "0", "--heat-maps", "0") == 0
    table = scores(folder)
    assert len(table) == 24
    assert "show heat maps" not in (folder / "out" / "report.html").read_text()


def test_scores_are_those_of_the_method(folder: Path) -> None:
    options = ["--image-size", "12", "--accelerator", "cpu"]
    assert call(folder, "--top", "0", "--method.similarity", "dot", method="pixel", options=options) == 0
    table = scores(folder).set_index(["query", "train"])["score"]
    from attribench.data.decoding import fit_square, open_image, to_pixels

    def pixels(name: str) -> np.ndarray[Any, Any]:
        return to_pixels(fit_square(open_image(folder / name), 12)).astype(np.float64).ravel() / 127.5 - 1

    for query in ("copy-of-7.png", "new.png"):
        for number in (0, 5, 11):
            expected = pixels(f"queries/{query}") @ pixels(f"train/sub/{number}.png")
            assert table[query, f"sub/{number}.png"] == pytest.approx(expected, rel=1e-5)


def test_a_stopped_call_goes_on_and_a_second_one_computes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_maps = ["--heat-maps", "0"]
    whole = folder / "whole"
    whole.mkdir()
    for name in ("train", "queries"):
        (whole / name).symlink_to(folder / name)
    assert call(whole, *no_maps) == 0

    original = Engine.partials
    calls = 0

    def interrupted(engine: Engine, tasks: Any, train: Any, *more: Any) -> Any:
        nonlocal calls
        if len(train) > 1:
            calls += 1
            if calls > 3:
                raise KeyboardInterrupt
        return original(engine, tasks, train, *more)

    three_images_a_shard(monkeypatch)
    monkeypatch.setattr(Engine, "partials", interrupted)
    assert call(folder, *no_maps) == 130
    calls = -100
    assert call(folder, *no_maps) == 0
    assert calls == -99  # three of the four shards were kept
    assert call(folder) == 0  # heat maps now
    pd.testing.assert_frame_equal(scores(folder), scores(whole), rtol=1e-5)
    for target in (
        "attribench.data.folders.open_square",
        "attribench.workflows.pieces.score",
        "attribench.workflows.attribution.explained",
    ):
        monkeypatch.setattr(target, lambda *arguments, **options: pytest.fail("computed again"))
    assert call(folder) == 0


def three_images_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {**(stream.score_tasks.__kwdefaults__ or {}), "shard_size": 3}
    monkeypatch.setattr(stream.score_tasks, "__kwdefaults__", defaults)


def test_odd_files_are_left_out_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_odd_images(folder / "train")
    assert call(folder, "--heat-maps", "1") == 0
    captured = capsys.readouterr()
    page = (folder / "out" / "report.html").read_text()
    for name in SKIPPED:
        assert name in captured.err
        assert f"train/{name}" in page
    assert "4 files were left out" in captured.out
    assert f"Passed over in {folder / 'train'}, no pictures: 1 (notes.txt)." in captured.err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--train", "/nowhere"], 1, "There is no folder /nowhere"),
        (["--top", "-1"], 2, "--top"),
        (["--image-size", "1"], 2, "--image-size"),
        (["--method", "trak"], 2, "looks at a model, and there is none here"),
        (["--method", "ndaa"], 2, "Did you mean 'nda'"),
        (["--data.root", "x"], 2, "Unknown option --data"),
        (["--method.patch_sise", "3"], 2, "patch_size"),
        (["--tops", "3"], 2, "Did you mean '--top'"),
    ],
)
def test_wrong_calls(
    folder: Path, more: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, *more, options=["--accelerator", "cpu"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 2


def test_needed_options_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute", "--train", "x"]) == 2
    assert "--queries is needed" in capsys.readouterr().err


def test_help_shows_the_method_s_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribute", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--image-size" in printed
    assert "--method.patch_size" in printed


def test_the_request_is_checked() -> None:
    from attribench.errors import UsageError

    with pytest.raises(UsageError, match="heat-maps"):
        attribution.Request(Path("a"), Path("b"), heat_maps=-1)
