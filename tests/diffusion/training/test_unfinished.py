"""A state that a killed training cannot go on from is named and set aside, and the model becomes the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import TinyData

from attribench.diffusion.training import unfinished
from attribench.diffusion.training.loop import train_network
from attribench.diffusion.training.unfinished import RESUME_FILE, UnfinishedTraining, UnusableStateError
from attribench.settings import Runtime, Settings
from attribench.store.artifacts import Artifact, ArtifactStore
from attribench.truth.jobs import TrainJob, save_images

RUNTIME = Runtime(accelerator="cpu", checkpoint_seconds=0)


class Killed(BaseException):
    """Stands for a kill: nothing of the library may catch it."""


def the_job(settings: Settings, seed: int = 7) -> TrainJob:
    train, training = TinyData().train, settings.training
    return TrainJob(
        name="model",
        train_hash=train.content_hash,
        image_shape=train.image_shape,
        indices=None,
        num_images=len(train),
        model=settings.model,
        training=training,
        seed=seed,
        num_checkpoints=training.num_checkpoints,
    )


def train(job: TrainJob, folder: Path, said: list[str], killed_at: int = 0) -> Artifact:
    store = ArtifactStore(folder, report=said.append)
    save_images(store, TinyData().train)
    steps: list[float] = []

    def report(units: float) -> None:
        steps.append(units)
        if len(steps) == killed_at:
            raise Killed

    return job.run(store, RUNTIME, report)


def killed(job: TrainJob, folder: Path) -> Path:
    """The working folder of a training killed in its third of four epochs, with a state and kept weights."""
    steps_per_epoch = -(-job.num_images // job.training.batch_size)
    with pytest.raises(Killed):
        train(job, folder, [], killed_at=2 * steps_per_epoch + 1)
    (work,) = (folder / ".work" / "models").iterdir()
    assert (work / RESUME_FILE).is_file()
    assert len(list(work.glob("checkpoint-*"))) == 1
    return work


@pytest.fixture(scope="module")
def whole(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the model whose training nothing disturbed."""
    return train(the_job(tiny_settings), tmp_path_factory.mktemp("whole"), []).digest


@pytest.fixture(scope="module")
def interrupted(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with that training unfinished; to be copied."""
    folder = tmp_path_factory.mktemp("interrupted")
    killed(the_job(tiny_settings), folder)
    return folder


def random_bytes(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday.txt", "sun")


def another_model(path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    torch.save({"epoch": 1, "state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()]}, path)


def flipped_byte(path: Path) -> None:
    """In the middle of the weights, where it loads as another number."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def of_other_libraries(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    identity = state["callbacks"]["UnfinishedTraining"]["identity"]
    state["callbacks"]["UnfinishedTraining"]["identity"] = identity.replace(f"torch {torch.__version__}", "torch 2.0")
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage",
    [random_bytes, nothing, truncated, another_archive, another_model, flipped_byte, of_other_libraries],
    ids=lambda damage: damage.__name__,
)
def test_an_unusable_state_is_named_and_set_aside_and_the_model_is_the_same(
    tiny_settings: Settings, whole: str, interrupted: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(interrupted, folder)
    (state,) = folder.glob(f".work/models/*/{RESUME_FILE}")
    damage(state)
    content = state.read_bytes()
    said: list[str] = []
    assert train(the_job(tiny_settings), folder, said).digest == whole
    (line,) = said
    assert str(state) in line
    (aside,) = (folder / ".set-aside").iterdir()
    assert str(aside) in line
    assert (aside / RESUME_FILE).read_bytes() == content, "nothing is thrown away"


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flipped_byte, truncated, missing], ids=lambda damage: damage.__name__)
def test_weights_kept_before_the_kill_are_checked_too(
    tiny_settings: Settings, whole: str, interrupted: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(interrupted, folder)
    (kept,) = folder.glob(".work/models/*/checkpoint-*")
    damage(kept)
    said: list[str] = []
    assert train(the_job(tiny_settings), folder, said).digest == whole
    assert str(kept) in said[0]


def test_a_sound_state_is_gone_on_from_without_a_word(
    tiny_settings: Settings, whole: str, interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "runs")
    said: list[str] = []
    assert train(the_job(tiny_settings), tmp_path / "runs", said).digest == whole
    assert said == []


def test_weights_that_an_earlier_version_kept_are_taken_too(
    tiny_settings: Settings, whole: str, interrupted: Path, tmp_path: Path
) -> None:
    """They had no checksum in their names."""
    shutil.copytree(interrupted, tmp_path / "runs")
    (path,) = tmp_path.glob(f"runs/.work/models/*/{RESUME_FILE}")
    (kept,) = path.parent.glob("checkpoint-*")
    name = f"{kept.name.partition('.')[0]}.safetensors"
    assert name != kept.name
    kept.rename(kept.with_name(name))
    state = torch.load(path, weights_only=True)
    own = state["callbacks"]["UnfinishedTraining"]
    own["sums"] = {name: own["sums"][kept.name]}
    torch.save(state, path)
    said: list[str] = []
    assert train(the_job(tiny_settings), tmp_path / "runs", said).digest == whole
    assert said == []


def test_the_state_of_another_training_is_not_gone_on_from(tiny_settings: Settings, whole: str, tmp_path: Path) -> None:
    """Same shapes, another seed: nothing but its name tells them apart."""
    other = killed(the_job(tiny_settings, seed=8), tmp_path)
    store = ArtifactStore(tmp_path)
    work = store.working_folder("models", the_job(tiny_settings).spec)
    shutil.copytree(other, work, dirs_exist_ok=True)
    said: list[str] = []
    assert train(the_job(tiny_settings), tmp_path, said).digest == whole
    assert f"{work / RESUME_FILE} is of another training" in said[0]


def test_a_setting_that_the_model_does_not_depend_on_leaves_its_state_usable(
    tiny_settings: Settings, whole: str, interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "runs")
    settings = replace(tiny_settings, training=replace(tiny_settings.training, seed=1))
    said: list[str] = []
    assert train(the_job(settings), tmp_path / "runs", said).digest == whole
    assert said == []


def test_without_a_store_an_unusable_state_is_an_error_and_stays(tiny_settings: Settings, tmp_path: Path) -> None:
    random_bytes(tmp_path / RESUME_FILE)
    with pytest.raises(UnusableStateError, match=str(tmp_path / RESUME_FILE)):
        train_network(
            TinyData().train.images, tiny_settings.model, tiny_settings.training, 7, tmp_path, torch.device("cpu")
        )
    assert (tmp_path / RESUME_FILE).is_file()


def test_every_flipped_bit_of_a_state_is_noticed_or_harmless(interrupted: Path, tmp_path: Path) -> None:
    (path,) = interrupted.glob(f".work/models/*/{RESUME_FILE}")
    state = torch.load(path, weights_only=True)
    identity = state["callbacks"]["UnfinishedTraining"]["identity"].partition(" torch ")[0]
    state["state_dict"] = {"weight": torch.arange(4.0)}
    state["optimizer_states"] = []
    state["callbacks"]["UnfinishedTraining"]["sums"] = {}
    small = tmp_path / RESUME_FILE
    torch.save(state, small)
    content, expected = small.read_bytes(), repr(torch.load(small, weights_only=True))
    unfinished = UnfinishedTraining(tmp_path, identity, 0.0, [])
    assert unfinished.epochs_done() == 2
    noticed = 0
    for position in random.Random(0).sample(range(len(content)), 300):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        small.write_bytes(damaged)
        try:
            unfinished.epochs_done()
        except UnusableStateError:
            noticed += 1
        else:
            assert repr(torch.load(small, weights_only=True)) == expected
    assert noticed > 0


def _train_until_stopped(folder: Path, settings: Settings, seconds: float, outcome: Any) -> None:
    """In a process of its own: it stops in its first epoch, and what it keeps is not what others would."""

    def report(units: float) -> None:
        if not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)

    stopped: list[bool] = []
    unfinished._weights = lambda network: {"weight": torch.zeros(1)}
    try:
        the_job(settings).run(ArtifactStore(folder), replace(RUNTIME, checkpoint_seconds=seconds), report)
        outcome.put("finished")
    except Exception as error:
        outcome.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_who_was_stopped_and_taken_over_leaves_the_training_to_the_other(
    tiny_settings: Settings, whole: str, tmp_path: Path, seconds: float
) -> None:
    """It goes on while the other trains; with rare saves, weights are the first thing it would write."""
    job, store = the_job(tiny_settings), ArtifactStore(tmp_path)
    save_images(store, TinyData().train)
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()
    other = context.Process(target=_train_until_stopped, args=(tmp_path, tiny_settings, seconds, outcome))
    other.start()
    try:
        assert other.pid is not None
        assert os.WIFSTOPPED(os.waitpid(other.pid, os.WUNTRACED)[1])
        (claim,) = (tmp_path / ".claims").iterdir()
        owner = json.loads((claim / "1" / "owner.json").read_text())
        (claim / "1" / "owner.json").write_text(json.dumps({**owner, "started": "long ago"}))
        steps_per_epoch = -(-job.num_images // job.training.batch_size)
        steps = 0

        def files() -> dict[Path, tuple[int, bytes]]:
            """All but its own claim, and the beat of this process's."""
            found = [path for path in tmp_path.rglob("*") if path.is_file() and path != claim / "2" / "beat"]
            return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found if path.parent != claim / "1"}

        def report(units: float) -> None:
            nonlocal steps
            steps += 1
            if steps == 2 * steps_per_epoch + 1:
                before = files()
                assert other.pid is not None
                os.kill(other.pid, signal.SIGCONT)
                assert outcome.get(timeout=120).startswith("LockBusyError: models/")
                other.join()
                assert files() == before

        made = job.run(store, RUNTIME, report)
    finally:
        other.kill()
        other.join()
    assert steps > 2 * steps_per_epoch
    assert made.digest == whole
