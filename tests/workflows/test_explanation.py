"""Where in the picture: maps that sum to scores, and light up where something was copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.cli import main
from attribench.data import to_rgb
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError
from attribench.method import AttributionMethod, score, start
from attribench.methods.nda import NDA
from attribench.methods.nda.explanation import to_pixels
from attribench.methods.nda.patches import Geometry
from attribench.methods.pixel import Pixel
from attribench.store.artifacts import ArtifactStore
from attribench.workflows.explanation import explain

pytestmark = pytest.mark.slow


def smooth(count: int, size: int, seed: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, size // 4, size // 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (255 * fine.clamp(0, 1)).to(torch.uint8)


def started(method: AttributionMethod, train: Tensor, folder: Path) -> AttributionMethod:
    context = AttributionContext(
        train=ImageSet(train, tuple(f"train-{i}" for i in range(len(train)))),
        schedule=NoiseSchedule(),
        device=torch.device("cpu"),
        seed=3,
        store=ArtifactStore(folder),
        access=Access.DATA,
    )
    start(method, context)
    return method


@pytest.mark.parametrize("engine", ["fast", "convolution"])
@pytest.mark.parametrize(
    "options",
    [
        {"timesteps": [100, 300], "patch_size": [3, 5], "low_resolution_patch_size": [4, 6], "alpha": [0.3, 0.7]},
        {"timesteps": [50], "patch_size": 4, "low_resolution_patch_size": None, "noise_draws": 2, "top_k": 3},
        {"timesteps": [200], "patch_size": 21, "low_resolution_patch_size": 22},
    ],
)
def test_maps_sum_to_the_score(options: dict[str, object], engine: str, tmp_path: Path) -> None:
    method = started(NDA(**options, engine=engine), smooth(30, 16, 0), tmp_path)  # type: ignore[arg-type]
    query = Queries(smooth(1, 16, 1), ("q",))
    scores = score(method, query)[0].double()
    shown = method.explain(query, list(range(30)))
    assert len(shown) == 30
    for value, evidence in zip(scores, shown, strict=True):
        assert evidence.query_map.shape == evidence.train_map.shape == (16, 16)
        assert abs(evidence.query_map.sum() - value) < 1e-4 * scores.max()
        assert abs(evidence.train_map.sum() - value) < 1e-4 * scores.max()
        assert evidence.query_map.min() >= 0


def test_a_copied_region_is_lit(tmp_path: Path) -> None:
    """A train image holds a region of the query, elsewhere: both maps say where."""
    train, query = smooth(40, 24, 0), smooth(1, 24, 1)
    train[17, :, 10:22, 2:14] = query[0, :, 4:16, 9:21]
    method = started(NDA(timesteps=[50, 100], patch_size=5, low_resolution_patch_size=None), train, tmp_path)
    found = explain(method, Queries(query, ("q",)), 3)
    best = found.images[0]
    assert (best.rank, best.index, best.image_id) == (1, 17, "train-17")
    # Where a patch of 5 lies within the region, it gives nearly all its weight, 1, to the train image with the copy.
    for lit, rows, columns in (
        (best.evidence.query_map, slice(6, 14), slice(11, 19)),
        (best.evidence.train_map, slice(12, 20), slice(4, 12)),
    ):
        inside = lit[rows, columns]
        outside = (lit.sum() - inside.sum()) / (lit.numel() - inside.numel())
        assert inside.mean() > 0.95
        assert outside < 0.1
    other = found.images[1].evidence.query_map
    assert other[6:14, 11:19].mean() < 0.05  # nothing is left of it for another one
    for match in best.evidence.matches[:3]:
        (top, left, *size), (train_top, train_left, *train_size) = match.query_box, match.train_box
        assert size == train_size == [5, 5]
        # Moved as the region was; the picture is so smooth that the noise may prefer the pixel beside it.
        assert abs(train_top - top - 6) <= 1
        assert abs(train_left - left + 7) <= 1
        assert "5×5" in match.label


def test_the_strongest_matches_come_first_and_show_different_places(tmp_path: Path) -> None:
    method = started(NDA(timesteps=[100], patch_size=5, low_resolution_patch_size=None), smooth(10, 16, 0), tmp_path)
    (evidence,) = method.explain(Queries(smooth(1, 16, 1), ("q",)), [4])
    weights = [match.weight for match in evidence.matches]
    assert weights == sorted(weights, reverse=True)
    assert len({match.query_box for match in evidence.matches}) == len(weights) > 1


@pytest.mark.parametrize("size", [3, 4, 9])
def test_positions_become_pixels_without_loss(size: int) -> None:
    geometry = Geometry(7, 6, size)
    grid = torch.rand(geometry.grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = to_pixels(grid, geometry)
    assert pixels.shape == (7, 6)
    assert pixels.sum().item() == pytest.approx(grid.sum().item())
    single = torch.zeros_like(grid)
    single[2, 3] = 1.0
    lit = to_pixels(single, geometry).nonzero().tolist()
    assert lit == ([[2, 3]] if size % 2 else [[2, 3], [2, 4], [3, 3], [3, 4]])


def test_methods_without_evidence_say_so(tmp_path: Path) -> None:
    method = started(Pixel(), smooth(4, 8, 0), tmp_path)
    with pytest.raises(UsageError, match="Pixel compares images as a whole"):
        method.explain(Queries(smooth(1, 8, 1), ("q",)), [0])


def test_images_as_rgb() -> None:
    assert to_rgb(torch.full((1, 2, 3), 7, dtype=torch.uint8)).tolist() == [[[7, 7, 7]] * 3] * 2


SMOKE = ["--dataset", "digits", "--preset", "smoke", "--accelerator", "cpu"]


def test_the_command_writes_figure_and_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out"), "--workdir", str(tmp_path / "runs")]
    assert main(["explain", *SMOKE, "--query", "3", "--top", "4", *out]) == 0
    printed = capsys.readouterr().out
    (maps,) = (tmp_path / "out").glob("*.json")
    content = json.loads(maps.read_text())
    assert [item["rank"] for item in content["images"]] == [1, 2, 3, 4]
    for item in content["images"]:
        for name in ("query_map", "train_map"):
            assert sum(map(sum, item[name])) == pytest.approx(item["score"], rel=1e-4)
        assert item["train"] in printed
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".svg", ".png"}
    assert not (tmp_path / "runs" / "models").exists()  # validation queries need no model
    assert main(["explain", *SMOKE, "--query", content["query"], "--top", "1", *out]) == 0  # by its id


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--query", "99"], "There is no query '99'"),
        (["--query_set", "validations"], "Did you mean 'validation'"),
        (["--top", "0"], "--top"),
        (["--method", "pixel"], "compares images as a whole"),
        (["--method", "nda,pixel"], "one --method"),
    ],
)
def test_wrong_calls(more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *SMOKE, *more, "--out", str(tmp_path), "--workdir", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
