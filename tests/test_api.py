"""attribench from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import attribench
from attribench import Access, AttributionMethod, Queries
from attribench.cli import main
from attribench.errors import BundleError, DataError, UsageError
from attribench.metrics import lds_interval, linear_datamodeling_score, predict_outputs
from attribench.truth.bundle import Bundle
from attribench.truth.catalog import find

PIXELS = torch.randint(0, 256, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TRAIN, QUERIES = PIXELS[:7], PIXELS[[2, 8]]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {"workdir": tmp_path / "runs", "accelerator": "cpu"}


def unet(**options: Any) -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes: dict[str, Any] = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return diffusers.UNet2DModel(8, 1, 1, **blocks, **sizes, **options)


def test_import_is_light() -> None:
    code = "import sys, attribench; assert not {'torch', 'pandas', 'attribench.api'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_table_and_page(given: dict[str, Any], tmp_path: Path) -> None:
    result = attribench.attribute(TRAIN, QUERIES, method="pixel", options={"similarity": "dot"}, top=3, **given)
    clean = PIXELS.double() / 127.5 - 1
    expected = clean[[2, 8]].flatten(1) @ clean[:7].flatten(1).T
    assert torch.allclose(result.scores.double(), expected, rtol=1e-5)
    assert (result.method, result.train, result.queries) == ("pixel[similarity=dot]", tuple("0123456"), ("0", "1"))
    table = result.to_pandas()
    assert list(table.columns) == ["query", "train", "rank", "score"]
    assert table["rank"].tolist() == [1, 2, 3] * 2
    assert table["train"][0] == "2"
    pd.testing.assert_frame_equal(pd.read_parquet(result.to_parquet(tmp_path / "scores.parquet")), table)
    assert "pixel[similarity=dot]" in result.to_html(tmp_path / "page.html").read_text()
    assert result.num_left_out == 0


def test_the_command_line_gives_the_same(given: dict[str, Any], tmp_path: Path) -> None:
    for name, images in (("train", TRAIN), ("queries", QUERIES)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{number}.png")
    unet().save_pretrained(tmp_path / "model")
    arguments = [
        "--train",
        str(tmp_path / "train"),
        "--queries",
        str(tmp_path / "queries"),
        "--out",
        str(tmp_path / "out"),
    ]
    model = [
        "--model",
        str(tmp_path / "model"),
        "--scheduler",
        "ddpm",
        "--method",
        "dtrak",
        "--method.num_timesteps",
        "2",
    ]
    assert (
        main(
            ["attribute", *arguments, *model, "--top", "0", "--workdir", str(tmp_path / "runs"), "--accelerator", "cpu"]
        )
        == 0
    )
    result = attribench.attribute(
        tmp_path / "train", tmp_path / "queries", model=unet(), scheduler=diffusers.DDPMScheduler(), method="dtrak",
        options={"num_timesteps": 2}, top=0, **given,
    )  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "scores.parquet"), result.to_pandas())


def test_classes_come_with_the_items(given: dict[str, Any]) -> None:
    def items(images: torch.Tensor, labels: list[int]) -> list[dict[str, Any]]:
        pictures = (Image.fromarray(image[0].numpy()) for image in images)
        return [{"image": picture, "label": label} for picture, label in zip(pictures, labels, strict=True)]

    given.update(model=unet(num_class_embeds=3), scheduler="ddpm", method="gradient", options={"num_timesteps": 1})
    train = items(TRAIN, [0, 1, 2, 0, 1, 2, 0])
    first = attribench.attribute(train, items(QUERIES, [2, 0]), **given).scores
    second = attribench.attribute(train, items(QUERIES, [2, 1]), **given).scores
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1], rtol=1e-3)
    with pytest.raises(DataError, match="There is no class 3"):
        attribench.attribute(train, items(QUERIES, [2, 3]), **given)
    with pytest.raises(DataError, match="these images have none"):
        attribench.attribute(train, QUERIES, **given)


def test_decoys_are_scored_beside_the_train_images_by_a_model_with_classes(given: dict[str, Any]) -> None:
    def items(images: torch.Tensor) -> list[dict[str, Any]]:
        return [{"image": Image.fromarray(image[0].numpy()), "label": n % 3} for n, image in enumerate(images)]

    many = torch.randint(0, 256, (200, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    given.update(model=unet(num_class_embeds=3), scheduler="ddpm", method="dtrak", options={"num_timesteps": 1})
    result = attribench.attribute(items(many), items(QUERIES), decoys="auto", top=0, **given)
    assert result.scores.shape == (2, 150)
    judgement = result.answer.judgement
    assert judgement is not None
    assert judgement.p_values.shape == (2, 150)
    assert judgement.num_decoys == 50
    assert list(result.to_pandas().columns) == ["query", "train", "rank", "score", "p_value", "adjusted", "stands_out"]
    plain = attribench.attribute(items(TRAIN), items(QUERIES), **given)
    assert plain.answer.judgement is None
    with pytest.raises(UsageError, match="7 different ones are too few"):
        attribench.attribute(items(TRAIN), items(QUERIES), decoys="auto", **given)
    with pytest.raises(UsageError, match="--contributors needs --decoys"):
        attribench.attribute(TRAIN, QUERIES, contributors="subfolder", method="pixel")


def test_what_is_there_already_needs_no_memory(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given.update(model=unet(), scheduler="ddpm", method="gradient", options={"num_timesteps": 1})
    first = attribench.attribute(TRAIN, QUERIES, **given).scores
    monkeypatch.setattr("attribench.gradients.budget.available_memory", lambda _: 0)
    assert torch.equal(attribench.attribute(TRAIN, QUERIES, **given).scores, first)
    with pytest.raises(UsageError, match=r"with an eighth to spare, needs .* of memory"):
        attribench.attribute(TRAIN, PIXELS[[3]], **given)


def test_images_whose_way_is_not_known_have_no_journey(given: dict[str, Any]) -> None:
    with pytest.raises(
        UsageError, match="journey-trak is not defined on the query set 'queries': they were not sampled"
    ):
        attribench.attribute(TRAIN, QUERIES, model=unet(), scheduler="ddpm", method="journey-trak", **given)


def test_the_model_is_left_as_it_was(given: dict[str, Any]) -> None:
    network = unet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attribench.attribute(TRAIN, QUERIES, model=network, scheduler="ddpm", method="trak", **given)
    assert network.training
    assert all(value.grad is None for value in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Brightness(AttributionMethod):
    """A method of the caller's own."""

    access = Access.DATA

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def attribute(self, queries: Queries) -> torch.Tensor:
        values = [images.unit_range().mean((1, 2, 3)) for images in (queries, self.context.train)]
        return -self.sign * (values[0][:, None] - values[1]).abs()


def test_a_class_is_a_method(given: dict[str, Any]) -> None:
    result = attribench.attribute(TRAIN, QUERIES, method=Brightness, options={"sign": "-1"}, **given)
    assert result.method == "Brightness[sign=-1.0]"
    assert (result.scores >= 0).all()
    with pytest.raises(UsageError, match="Did you mean 'sign'"):
        attribench.attribute(TRAIN, QUERIES, method=Brightness, options={"sing": 1}, **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "trak"}, UsageError, "looks at a model, and there is none here"),
        ({"method": "dtrack"}, UsageError, "Did you mean 'dtrak'"),
        ({"train": PIXELS[:, :, :6]}, DataError, r"have images of shape|images of shape|of 6×8"),
        ({"model": "nowhere", "method": "trak"}, attribench.AttribenchError, "There is no model at nowhere"),
    ],
)
def test_what_makes_no_sense_is_said(
    changes: dict[str, Any], error: type[Exception], message: str, given: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        attribench.attribute(**{"train": TRAIN, "queries": QUERIES, **given, **changes})


def test_evaluate_equals_the_metrics() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, masks = torch.randn(5, 20, generator=generator), torch.rand(16, 20, generator=generator) < 0.5
    losses = -(masks.double() @ scores.double().T) + torch.randn(16, 5, generator=generator)
    found = attribench.evaluate(scores, (masks, losses))
    expected = linear_datamodeling_score(scores, masks, losses)
    interval = lds_interval(predict_outputs(scores, masks), losses)
    assert torch.equal(found.per_query, expected)
    assert found.lds == pytest.approx(expected.mean().item())
    assert (found.low, found.high, found.level) == (interval.low, interval.high, 0.95)
    assert str(found) == f"LDS×100 {100 * found.lds:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    assert attribench.evaluate(np.zeros((5, 20)), (masks.numpy(), losses.numpy())).num_undefined == 5


def test_evaluate_knows_ground_truths_by_name(given: dict[str, Any]) -> None:
    bundle = Bundle(find("digits", Path("nowhere")))
    truth = bundle.ground_truth("generation")
    scores = torch.randn(truth.by_band.shape[-1], truth.masks.shape[1], generator=torch.Generator().manual_seed(0))
    found = attribench.evaluate(scores, "digits", query_set="generation", num_resamples=50)
    for other in (bundle, truth, bundle.path):
        again = attribench.evaluate(scores, other, query_set="generation", num_resamples=50)
        assert torch.equal(again.per_query, found.per_query)
    result = attribench.attribute(bundle.train(), bundle.queries("validation"), method="pixel", **given)
    assert 0.15 < attribench.evaluate(result, "digits", num_resamples=50).lds < 0.25  # the board has 20.3
    with pytest.raises(UsageError, match=r"There is no ground truth 'digitz'. Did you mean 'digits'"):
        attribench.evaluate(scores, "digitz")
    with pytest.raises(BundleError, match="has no losses on other"):
        attribench.evaluate(scores, "digits", query_set="other")
    with pytest.raises(UsageError, match="or a pair"):
        attribench.evaluate(scores, 3)
    with pytest.raises(UsageError, match="scores must be a tensor or an array of numbers, not a DataFrame"):
        attribench.evaluate(pd.DataFrame({"query": ["a"]}), "digits")
    with pytest.raises(UsageError, match="masks must be a tensor or an array of numbers, not a str"):
        attribench.evaluate(scores, ("masks", "losses"))
    with pytest.raises(DataError):
        attribench.evaluate(scores[:3], "digits")
