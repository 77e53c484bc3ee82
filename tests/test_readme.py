"""The README tells the truth: its method runs as printed, and its commands exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
from PIL import Image

import attribench
from attribench import cli
from attribench.records.lds import load_records
from attribench.truth.bundle import Bundle
from attribench.truth.catalog import shipped

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_custom_method_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (block for block in blocks("python") if "register_method" in block)
    assert len(source.strip().splitlines()) < 30
    (tmp_path / "my_method.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    command = re.search(r"^attribench (run --method my_method\.Brightness .*)$", README, re.MULTILINE)
    assert command
    try:
        assert cli.main([*command.group(1).split(), "--preset", "smoke", "--accelerator", "cpu"]) == 0
        (record,) = load_records(tmp_path / "results")
        assert record.method == "brightness[sharpness=2.0]"
        assert record.options == {"sharpness": 2.0}

        import my_method  # type: ignore[import-not-found]

        from attribench.testing import check_method

        assert check_method(my_method.Brightness) is None
    finally:
        sys.modules.pop("my_method", None)
        from attribench.registry import METHODS

        METHODS._decorated.pop("brightness", None)


def test_the_examples_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [block for block in blocks("python") if "register_method" not in block]
    assert len(examples) == 2
    assert all(len(source.strip().splitlines()) <= 10 for source in examples)
    for name, count in (("photos", 3), ("generated", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    blocks_of = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(8, **blocks_of, block_out_channels=(4, 8), norm_num_groups=2)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "my-ddpm")
    truth = Bundle(shipped()["digits"])
    scores = attribench.attribute(truth.train(), truth.queries("validation"), method="pixel").scores
    np.save(tmp_path / "SCORES.npy", scores.numpy())
    for source in examples:
        exec(compile(source, "README.md", "exec"), {})
    assert (tmp_path / "answer.html").is_file()
    # What the example says that it prints is pixel-cosine's row of the table above.
    assert capsys.readouterr().out.splitlines()[-1] in README


def test_every_command_shown_exists() -> None:
    shown = re.findall(r"^attribench ([a-z-]+)", "\n".join(blocks("console")), re.MULTILINE)
    assert set(shown) == {command.name for command in cli.COMMANDS}


def test_make_targets_shown_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("console")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
