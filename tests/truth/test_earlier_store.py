"""A store and records made before the code was arranged as it is now are still read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from tiny_data import TinyData

from attribench.settings import (
    QUERY_SETS,
    GenerationSettings,
    GroundTruthSettings,
    ModelSettings,
    Runtime,
    Settings,
    TrainingSettings,
)
from attribench.truth.experiment import Experiment

#: Made at 44f689b: models, generated queries and losses of the settings below.
STORE = Path(__file__).parent / "data" / "earlier_store.zip"

SETTINGS = Settings(
    model=ModelSettings(
        block_out_channels=[4, 4],
        down_block_types=["DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=None,
    ),
    training=TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-3, num_checkpoints=2),
    generation=GenerationSettings(num_images=3, num_inference_steps=2),
    ground_truth=GroundTruthSettings(num_subsets=2, num_seeds=1, timestep_stride=500, num_noise_draws=1),
)

#: What the code of that time read from it, in float32.
LOSSES = {
    "validation": [
        [1.2546192407608032, 1.176697850227356, 1.0549595355987549, 0.9449182748794556, 1.179427146911621, 1.052122712135315],
        [1.445746660232544, 1.235602617263794, 1.1281499862670898, 0.9785593748092651, 1.1352488994598389, 1.1593960523605347],
    ],
    "generation": [
        [1.0825793743133545, 1.2417292594909668, 0.852631151676178],
        [1.1506881713867188, 1.3902385234832764, 0.9504547119140625],
    ],
}  # fmt: skip


def test_nothing_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(STORE) as archive:
        archive.extractall(tmp_path)
    for work in ("train_network", "denoising_losses"):
        monkeypatch.setattr(f"attribench.truth.jobs.{work}", lambda *_, **__: pytest.fail("made anew"))
    monkeypatch.setattr("attribench.truth.generation.generate_images", lambda *_, **__: pytest.fail("made anew"))
    experiment = Experiment(TinyData(), SETTINGS, Runtime(workdir=str(tmp_path), accelerator="cpu", workers=1))
    experiment.prepare()
    for name in QUERY_SETS:
        expected = torch.tensor(LOSSES[name], dtype=torch.float64)
        torch.testing.assert_close(experiment.ground_truth(name).outputs, expected, rtol=1e-7, atol=0)
    assert len(list(experiment.models().checkpoints())) == 2
