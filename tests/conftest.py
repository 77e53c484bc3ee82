"""What several test files share: a data set and a setting small enough to train in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_data import TinyData

from attribench.registry import DATAMODULES, METHODS
from attribench.settings import (
    GenerationSettings,
    GroundTruthSettings,
    ModelSettings,
    Runtime,
    Settings,
    TrainingSettings,
)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """These models are too small to gain from threads, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def own_registries() -> Iterator[None]:
    """What a test registers of its own is forgotten after it; what is built in and was first imported by it stays."""
    before = {registry: set(registry._decorated) for registry in (METHODS, DATAMODULES)}
    yield
    for registry, names in before.items():
        for name, cls in list(registry._decorated.items()):
            if name not in names and not cls.__module__.startswith("attribench."):
                del registry._decorated[name]


@pytest.fixture
def tiny_data() -> TinyData:
    return TinyData()


@pytest.fixture(scope="session")
def tiny_model() -> ModelSettings:
    return ModelSettings(
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
    )


@pytest.fixture(scope="session")
def tiny_settings(tiny_model: ModelSettings) -> Settings:
    return Settings(
        model=tiny_model,
        training=TrainingSettings(epochs=4, batch_size=8, learning_rate=1e-3, num_checkpoints=2),
        generation=GenerationSettings(num_images=5, num_inference_steps=3),
        ground_truth=GroundTruthSettings(num_subsets=3, num_seeds=2, timestep_stride=400, num_noise_draws=2),
    )


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(workdir=str(tmp_path / "runs"), accelerator="cpu", workers=1, evaluation_batch=16)
