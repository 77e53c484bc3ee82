"""The ground truth that ships: whole, the one of today's preset, used where it fits, and what retraining gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from attribench import Sampling
from attribench.cli import main
from attribench.computing.device import single_thread
from attribench.computing.progress import silent_progress
from attribench.configuration.files import shipped as shipped_files
from attribench.configuration.resolution import resolve
from attribench.diffusion.trajectory import ddim_trajectory, to_pixels
from attribench.records.lds import load_record, load_records
from attribench.settings import QUERY_SETS, Runtime
from attribench.store.artifacts import ArtifactStore
from attribench.truth import catalog
from attribench.truth.bundle import Bundle
from attribench.truth.experiment import Experiment
from attribench.truth.ground_truth import GroundTruth, band_means
from attribench.workflows.opening import open_experiment
from attribench.workflows.truths import with_shipped

#: How far losses of a retrained model may be from the shipped ones on another machine, relatively: other processors sum in
#: another order, and 600 steps of training carry that on.
ELSEWHERE = 0.1


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle(catalog.shipped()["digits"])


def test_digits_are_whole(shipped: Bundle) -> None:
    shipped.verify()
    assert shipped.masks.shape == (64, 500)
    assert all(shipped.ground_truth(name).by_band.shape == (64, 2, 3, 10, 100) for name in QUERY_SETS)
    assert shipped.path.stat().st_size < 8 * 2**20


def test_digits_are_of_the_usual_preset(shipped: Bundle) -> None:
    config = with_shipped(resolve("digits", None, [], {}), silent_progress)
    assert config.ground_truth == str(shipped.path)
    assert config.preset == shipped.header.preset == "board"
    assert shipped.header.overrides == {}


def test_its_subsets_are_those_that_are_drawn_today(shipped: Bundle, tmp_path: Path) -> None:
    experiment = open_experiment(resolve("digits", None, [], {}), Runtime(workdir=str(tmp_path)), silent_progress)
    assert torch.equal(experiment.masks, shipped.masks)


def test_its_generated_queries_are_where_their_trajectories_end(tmp_path: Path) -> None:
    config = with_shipped(resolve("digits", None, [], {}), silent_progress)
    experiment = open_experiment(config, Runtime(workdir=str(tmp_path), accelerator="cpu"), silent_progress)
    experiment.prepare()
    queries = experiment.queries("generation")
    sampling = queries.sampling
    assert sampling == Sampling(tuple(range(100)), 50, 0.0)
    network, shape = experiment.target.load(experiment.store), experiment.train.image_shape
    with single_thread(torch.device("cpu")):
        *_, last = ddim_trajectory(network, sampling.seeds, shape, 50, 0.0, torch.device("cpu"))
    # Other processors sum in another order.
    assert (to_pixels(last.sample).int() - queries.images.int()).abs().max() <= 1


@pytest.mark.slow
def test_a_model_retrained_gives_the_shipped_losses(shipped: Bundle, tmp_path: Path) -> None:
    runtime = Runtime(workdir=str(tmp_path), accelerator="cpu")
    experiment = open_experiment(resolve("digits", None, [], {}), runtime, silent_progress)
    subset, seed = 5, 1
    with silent_progress.task("one model", 1) as task:
        experiment.train_only([experiment.retrainings[subset][seed]], task)
    for name in QUERY_SETS:
        losses = experiment.losses_of(shipped.queries(name), subset, seed)
        found = band_means(losses, experiment.settings.ground_truth.timesteps)
        expected = shipped.ground_truth(name).by_band[subset, seed]
        others = shipped.ground_truth(name).by_band[subset + 1, seed]
        assert ((found - expected).norm() / expected.norm()).item() <= ELSEWHERE
        # The tolerance tells this model from another one.
        assert (found - expected).norm() < 0.5 * (others - expected).norm()


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the ground truth of preset smoke shipped."""
    folder = tmp_path_factory.mktemp("shipped")
    call = ["ground-truth", "export", "--dataset", "digits", "--preset", "smoke", "--out", f"{folder}/tiny.truth"]
    assert main([*call, "--workdir", f"{folder}/runs"]) == 0
    for module in ("truth.catalog", "workflows.truths"):
        monkeypatch.setattr(f"attribench.{module}.shipped", lambda: {"tiny": folder / "tiny.truth"})
    return folder


@pytest.mark.slow
def test_it_is_used_where_it_fits_and_only_there(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    prepare = Experiment.train_models

    def train(self: Experiment, task: object, then: object) -> None:
        trained.append(self.label)
        prepare(self, task, then)  # type: ignore[arg-type]

    monkeypatch.setattr(Experiment, "train_models", train)
    place = ["--preset", "smoke", "--workdir", f"{small}/runs", "--results", f"{tmp_path}/results"]
    assert main(["run", "--method", "random", *place]) == 0
    assert not trained
    assert "Ground truth: tiny (validation" in capsys.readouterr().out
    (record,) = load_records(tmp_path / "results")
    assert record.ground_truth == "tiny"

    assert main(["run", "--method", "random", *place, "--training.epochs", "1"]) == 0
    assert trained == ["digits"]
    said = "of other settings than --training.epochs 1 (the ground truth has 2): 4 retrained models are needed"
    assert said in capsys.readouterr().err

    assert main(["run", "--method", "random", *place, "--retrain"]) == 0
    assert trained == ["digits", "digits"]
    assert "Ground truth: retrained here (validation" in capsys.readouterr().out

    assert main(["status", *place[:4]]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["ground-truth", "list", *place[2:4]]) == 0
    assert "tiny  (ships with attribench)" in capsys.readouterr().out


@pytest.mark.slow
def test_retraining_in_the_same_work_directory_trains_the_target_too(small: Path, tmp_path: Path) -> None:
    place = ["--preset", "smoke", "--workdir", f"{tmp_path}/runs", "--results", f"{tmp_path}/results"]
    assert main(["run", "--method", "gradient-dot", *place]) == 0
    config, runtime = resolve("digits", "smoke", [], {}), Runtime(workdir=f"{tmp_path}/runs")
    assert open_experiment(config, runtime, silent_progress).target.find(ArtifactStore(tmp_path / "runs")) is None


@pytest.mark.slow
def test_a_row_of_another_ground_truth_is_kept(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ["--preset", "smoke", "--workdir", f"{small}/runs", "--results", f"{tmp_path}/results"]
    assert main(["run", "--method", "random", *place]) == 0
    (before,) = load_records(tmp_path / "results")
    hashes = GroundTruth.hash
    monkeypatch.setattr(GroundTruth, "hash", property(lambda truth: hashes.__get__(truth)[::-1]))  # another machine's
    assert main(["run", "--method", "random", *place, "--retrain"]) == 0
    assert "ground truth: tiny; it is kept as" in capsys.readouterr().err
    (kept,) = (tmp_path / "results" / before.path).parent.glob("superseded/random.*.json")
    assert load_record(kept) == before


@pytest.mark.slow
def test_other_data_are_not_taken_for_its_own(small: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(shipped_files("datasets")["digits"].read_text())
    content["presets"]["smoke"]["data"]["num_train"] = 50
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    said: list[str] = []
    progress = SimpleNamespace(message=said.append)
    config = with_shipped(resolve(str(file), "smoke", [], {}), progress)  # type: ignore[arg-type]
    assert config.ground_truth == ""
    assert "--data.num_train 50 (the ground truth has 60)" in said[0]


@pytest.mark.slow
def test_a_damaged_file_does_not_hide_the_others(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "truths").mkdir()
    (tmp_path / "truths" / "broken.truth").write_bytes(b"PK")
    assert main(["ground-truth", "list", "--workdir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "tiny  (ships with attribench)" in said
    assert "broken  (" in said


@pytest.mark.parametrize("count", ["-1", "65"])
def test_only_as_many_models_are_retrained_as_there_are(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ground-truth", "verify", "digits", "--retrain", count]) == 2
    assert "from 1 to 64" in capsys.readouterr().err


@pytest.mark.slow
def test_its_name_is_taken(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ground-truth", "import", f"{small}/tiny.truth", "--workdir", str(tmp_path)]) == 1
    assert "'tiny' ships with attribench" in capsys.readouterr().err


def test_retraining_and_using_contradict_each_other() -> None:
    assert main(["run", "--retrain", "--ground-truth", "digits"]) == 2
