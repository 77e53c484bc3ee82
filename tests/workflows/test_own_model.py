"""A model that somebody trained without attribench, and its train images and queries: attributed by every method."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import attribench
from attribench.cli import main
from attribench.errors import UsageError

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "plain_unet.py"

#: Gradients of the loss, with noise of its own for every image, are told from each other at more timesteps than others.
MORE = ["--method.num_timesteps", "50"]

#: Every method that looks at gradients of the model.
METHODS: dict[str, list[str]] = {
    "gradient": MORE, "gradient-dot": MORE, "tracincp": MORE, "gas": MORE, "trak": MORE,
    "logra": [*MORE, "--method.proj_dim", "4096"], "dtrak": [], "das": [], "relative-influence": MORE,
    "renormalized-influence": MORE, "datainf": MORE, "ekfac": ["--method.num_timesteps", "25"], "unlearning": [],
    "fine-tune": ["--method.steps", "5"],
}  # fmt: skip


def picture(seed: int) -> Image.Image:
    """Smooth noise, half of it dark: pictures differ in every part, and gradients are about equally long."""
    halves = np.repeat(np.array([[40], [215]], dtype=np.uint8), 8, axis=0)
    values = np.random.default_rng(seed).permuted(np.tile(halves, 3), axis=0).reshape(4, 4, 3)
    return Image.fromarray(values).resize((8, 8), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, three of them twice more under other names; those three are the queries."""
    place = tmp_path_factory.mktemp("own")
    for name in ("train", "queries"):
        (place / name).mkdir()
    for number in range(12):
        picture(number).save(place / "train" / f"{number:02}.png")
    for number in (2, 5, 9):
        picture(number).save(place / "queries" / f"of-{number:02}.png")
        for copy in ("a", "b"):
            picture(number).save(place / "train" / f"{number:02}-{copy}.png")
    # One thread: on a busy machine the threads of a small model wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(SCRIPT), str(place), "150", "v_prediction"], check=True, env=environment)
    return place


def call(folder: Path, method: str, *more: str) -> int:
    checkpoints = ["--checkpoints", str(folder / "checkpoints")] if method in ("tracincp", "gas") else []
    return main(
        ["attribute", "--train", str(folder / "train"), "--queries", str(folder / "queries"), "--out", str(folder / "out"),
         "--model", str(folder / "model"), "--method", method, "--workdir", str(folder / "runs"), "--accelerator", "cpu",
         *checkpoints, *more]
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_planted_duplicates_rank_first(method: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, method, "--top", "0", *METHODS[method]) == 0
    table = pd.read_parquet(folder / "out" / "scores.parquet")
    assert len(table) == 3 * 18
    for query, rows in table.groupby("query"):
        number = str(query)[3:5]
        assert set(rows["train"][rows["rank"] <= 3]) == {f"{number}.png", f"{number}-a.png", f"{number}-b.png"}
    said = capsys.readouterr().err
    assert "predicts v" in said
    assert f"{method}" in said
    assert "of memory" in said
    assert "on disk" in said
    assert "predicts v" in (folder / "out" / "report.html").read_text()


def test_several_methods_get_a_folder_each(folder: Path, tmp_path: Path) -> None:
    assert call(folder, "dtrak,pixel", "--out", str(tmp_path)) == 0
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "dtrak/report.html", "dtrak/scores.parquet", "pixel/report.html", "pixel/scores.parquet"
    ]  # fmt: skip
    assert "No model was used" in (tmp_path / "pixel" / "report.html").read_text()


def test_a_query_does_not_share_its_noise_with_the_train_image_of_its_name(folder: Path) -> None:
    """Common noise alone would make two images of one name look alike."""
    alike, other = ([picture(20), *(picture(n) for n in range(3))], [picture(21)])
    arguments = {"model": folder / "model", "method": "gradient", "workdir": folder / "runs", "accelerator": "cpu"}
    first = attribench.attribute(alike, other, **arguments).scores  # type: ignore[arg-type]
    moved = attribench.attribute([alike[1], alike[0], *alike[2:]], other, **arguments).scores  # type: ignore[arg-type]
    assert first[0, 0] == pytest.approx(float(moved[0, 1]), abs=0.2)
    assert first[0, 0] < 0.8


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("dtrak", ["--image-size", "16"], "--image-size 16: the model takes images of 8×8"),
        ("dtrak", ["--channels", "grey"], "--channels grey: the model takes RGB images"),
        ("datamodel", [], "given models retrained on subsets"),
        ("dtrak,trak", ["--method.num_timesteps", "5"], "exactly one --method"),
        (",", [], "--method is empty"),
    ],
)
def test_what_does_not_fit_is_one_line(
    method: str, more: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, method, *more) == 2
    assert message in capsys.readouterr().err


def test_checkpoints_are_asked_for(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"tracincp looks at checkpoints.*--checkpoints"):
        attribench.attribute(folder / "train", folder / "queries", model=folder / "model", method="tracincp")
    with pytest.raises(UsageError, match="--checkpoints belongs to a model"):
        attribench.attribute(folder / "train", folder / "queries", checkpoints=folder / "checkpoints")


def test_what_does_not_fit_is_refused_before_any_work_with_the_option_that_would(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attribench.gradients.features.summed_gradients", lambda *_, **__: pytest.fail("worked"))
    monkeypatch.setattr("attribench.gradients.plan.Plan.trial", lambda *_: 1.0)
    free = 2**20
    monkeypatch.setattr("attribench.gradients.budget.shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert call(folder, "trak", "--workdir", str(tmp_path)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "on disk" in error
    assert "--method.proj_dim 8192 fits" in error
    assert call(folder, "ekfac", "--workdir", str(tmp_path)) == 2
    assert "a method with --method.proj_dim, such as trak" in capsys.readouterr().err
