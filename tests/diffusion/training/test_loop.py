from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from attribench.diffusion.network import build_network
from attribench.diffusion.training import loop as training_module
from attribench.diffusion.training.loop import checkpoint_steps, num_steps, train_network
from attribench.diffusion.training.unfinished import RESUME_FILE, checkpoint_name
from attribench.errors import AttribenchError, UsageError
from attribench.settings import Settings

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def copy(source: Path, name: str, sha256: str) -> None:
    """What a training kept, under its own name beside it."""
    content = source.read_bytes()
    assert hashlib.sha256(content).hexdigest() == sha256
    (source.parent / name).write_bytes(content)


class Killed(BaseException):
    """Stands for a kill: nothing of the library may catch it."""


def test_the_same_seed_gives_the_same_model_and_another_seed_another(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path
) -> None:
    def train(seed: int, name: str) -> nn.Module:
        (tmp_path / name).mkdir()
        return train_network(images, tiny_settings.model, tiny_settings.training, seed, tmp_path / name, CPU)

    torch.manual_seed(123)
    first = train(7, "a")
    torch.manual_seed(321)  # the caller's generator must not matter
    assert same(first, train(7, "b"))
    assert not same(first, train(8, "c"))


def test_training_leaves_the_callers_generator_alone(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_network(images, tiny_settings.model, tiny_settings.training, 7, tmp_path, CPU)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("killed_at", [4, 7, 11])
def test_a_killed_training_goes_on_and_ends_in_the_same_model_bit_for_bit(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    arguments = (images, tiny_settings.model, tiny_settings.training, 7)
    whole = train_network(*arguments, tmp_path / "whole", CPU, keep=copy)

    steps: list[float] = []

    def kill(amount: float) -> None:
        steps.append(amount)
        if len(steps) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train_network(*arguments, tmp_path / "killed", CPU, keep=copy, checkpoint_seconds=0, report=kill)
    assert (tmp_path / "killed" / RESUME_FILE).exists()

    reported: list[float] = []
    resumed = train_network(
        *arguments, tmp_path / "killed", CPU, keep=copy, checkpoint_seconds=0, report=reported.append
    )
    assert same(whole, resumed)
    total = num_steps(20, tiny_settings.training)
    assert sum(reported) == total
    assert len(reported) < total, "the steps before the kill were not done again"
    for step in checkpoint_steps(total, 2):
        name = checkpoint_name(step)
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


LAUNCHERS = {
    "slurm": {  # without SLURM_NTASKS_PER_NODE, which Lightning would insist on
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "train",
        "SLURM_JOB_ID": "11",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "node[1-2]",
    },
    "torchrun": {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "none",
    },
    "lsf": {
        "LSB_JOBID": "11",
        "LSB_HOSTS": "batch node1 node1",
        "LSB_DJOB_RANKFILE": "ranks",
        "JSM_NAMESPACE_SIZE": "2",
        "JSM_NAMESPACE_RANK": "1",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
    },
    "lightning": {
        "PL_TRAINER_MAX_STEPS": "2",
        "PL_TRAINER_LIMIT_TRAIN_BATCHES": "1",
        "PL_TRAINER_ACCUMULATE_GRAD_BATCHES": "2",
        "PL_TRAINER_NUM_NODES": "2",
    },
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_started_the_process_does_not_matter(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    """A training is one process, and the same, under any launcher: killed and gone on with as well."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "launched").mkdir()
    (tmp_path / "ranks").write_text("launching\nnode1\nnode1\n")
    monkeypatch.chdir(tmp_path)
    arguments = (images, tiny_settings.model, tiny_settings.training, 7)
    alone = train_network(*arguments, tmp_path / "alone", CPU)
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # what Lightning makes of these variables when it is imported
    steps: list[float] = []

    def kill(amount: float) -> None:
        steps.append(amount)
        if len(steps) == 7:
            raise Killed

    with pytest.raises(Killed):
        train_network(*arguments, tmp_path / "launched", CPU, checkpoint_seconds=0, report=kill)
    assert (tmp_path / "launched" / RESUME_FILE).exists()
    assert same(alone, train_network(*arguments, tmp_path / "launched", CPU))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_change_a_model_by_no_more_than_their_rounding(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path, precision: str
) -> None:
    def weights(precision: str) -> torch.Tensor:
        (tmp_path / precision).mkdir()
        settings = replace(tiny_settings.training, precision=precision)
        network = train_network(images, tiny_settings.model, settings, 7, tmp_path / precision, CPU)
        return torch.nn.utils.parameters_to_vector(network.parameters()).detach().double()

    difference = (weights(precision) - weights("32-true")).norm()
    start = build_network(tiny_settings.model, (1, 8, 8))
    assert 0 < difference < 0.1 * torch.nn.utils.parameters_to_vector(start.parameters()).norm()


def test_half_precision_on_a_cpu_is_refused_not_replaced(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path
) -> None:
    settings = replace(tiny_settings.training, precision="16-mixed")
    with pytest.raises(UsageError, match=r"16-mixed needs a GPU.*bf16-mixed or 32-true"):
        train_network(images, tiny_settings.model, settings, 7, tmp_path, CPU)


def test_the_learning_rate_warms_up_then_falls_as_a_cosine(
    tiny_settings: Settings, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import math

    seen: list[float] = []
    original = training_module.DiffusionModule.training_step

    def recording(module: training_module.DiffusionModule, batch: torch.Tensor, index: int) -> torch.Tensor:
        seen.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return original(module, batch, index)

    monkeypatch.setattr(training_module.DiffusionModule, "training_step", recording)
    settings = replace(tiny_settings.training, epochs=10, warmup_fraction=0.2)
    train_network(images, tiny_settings.model, settings, 7, tmp_path, CPU)
    total, warmup = 30, 6
    assert len(seen) == total
    for step, rate in enumerate(seen):
        falling = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        share = step / warmup if step < warmup else falling
        assert rate == pytest.approx(settings.learning_rate * share, abs=1e-12)


def test_training_lowers_the_loss(tiny_settings: Settings, tmp_path: Path) -> None:
    from attribench.diffusion.losses import denoising_losses

    images = torch.full((32, 1, 8, 8), 30, dtype=torch.uint8)
    trained = train_network(images, tiny_settings.model, replace(tiny_settings.training, epochs=30), 7, tmp_path, CPU)
    ids = [str(i) for i in range(4)]
    losses = denoising_losses(trained, images[:4], ids, [200, 600], 2, 0, CPU).mean()
    untrained = denoising_losses(
        build_network(tiny_settings.model, (1, 8, 8)).eval(), images[:4], ids, [200, 600], 2, 0, CPU
    )
    assert losses < 0.7 * untrained.mean()


def test_a_diverged_training_is_an_error(tiny_settings: Settings, images: torch.Tensor, tmp_path: Path) -> None:
    settings = replace(tiny_settings.training, learning_rate=1e30, warmup_fraction=0.0)
    with pytest.raises(AttribenchError, match=r"diverged.*learning_rate"):
        train_network(images, tiny_settings.model, settings, 7, tmp_path, CPU)


def test_checkpoints_are_evenly_spaced_and_end_with_the_last_step() -> None:
    assert checkpoint_steps(8000, 4) == [2000, 4000, 6000, 8000]
    assert checkpoint_steps(10, 3) == [3, 6, 10]
    assert checkpoint_steps(2, 4) == [1, 2]
