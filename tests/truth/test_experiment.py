from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import TinyData

from attribench import ImageSet, Sampling
from attribench.diffusion.examples import Examples
from attribench.diffusion.training import loop as training
from attribench.diffusion.trajectory import ddim_trajectory, to_pixels
from attribench.errors import ArtifactError
from attribench.settings import Runtime, Settings
from attribench.store.artifacts import ArtifactStore
from attribench.truth.experiment import Experiment

pytestmark = pytest.mark.slow


@pytest.fixture
def experiment(tiny_data: TinyData, tiny_settings: Settings, runtime: Runtime) -> Experiment:
    return Experiment(tiny_data, tiny_settings, runtime)


class Counter:
    """Counts the trainings that really happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = training._fit

        def counting(*arguments: object) -> None:
            self.count += 1
            original(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(training, "_fit", counting)


def test_the_ground_truth_is_the_mean_loss_of_each_subset_model(experiment: Experiment) -> None:
    experiment.prepare()
    truth = experiment.ground_truth("validation")
    assert truth.masks.shape == (3, 24)
    assert truth.losses.shape == (3, 2, 6)
    job = experiment.loss_jobs(experiment.validation)[2][1]
    losses = job.load(experiment.store)
    assert losses.shape == (2, 3, 6)  # draws, timesteps 0, 400, 800, queries
    assert torch.allclose(truth.losses[2, 1], losses.double().mean(dim=(0, 1)))
    assert torch.allclose(truth.outputs, truth.losses.double().mean(dim=1))


def test_each_model_sees_only_its_subset_and_its_own_seed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: dict[int, torch.Tensor] = {}

    def recording(
        examples: Examples, model: object, recipe: object, seed: int, *rest: object, **options: object
    ) -> object:
        trained_on[seed] = examples.clean
        return training.train_network(examples, model, recipe, seed, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("attribench.truth.jobs.train_network", recording)
    experiment.prepare()
    assert torch.equal(trained_on[experiment.target.seed], experiment.train.images)
    seeds = set()
    for k, jobs in enumerate(experiment.retrainings):
        for job in jobs:
            artifact = job.find(experiment.store)
            assert artifact is not None
            kept = artifact.load_tensors("indices")["indices"]
            assert torch.equal(kept, experiment.masks[k].nonzero().flatten())
            assert torch.equal(trained_on[job.seed], experiment.train.images[experiment.masks[k]])
            seeds.add(job.seed)
    assert len(seeds) == 6
    assert experiment.target.seed not in seeds


def test_a_second_run_trains_nothing_and_gives_the_same_ground_truth(
    experiment: Experiment, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    experiment.prepare()
    assert counter.count == 7
    again = Experiment(TinyData(), experiment.settings, experiment.runtime)
    again.prepare()
    assert counter.count == 7
    for name in ("validation", "generation"):
        assert again.ground_truth(name).hash == experiment.ground_truth(name).hash


def test_more_subsets_reuse_the_models_that_are_there(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.prepare()
    counter = Counter(monkeypatch)
    more = replace(experiment.settings, ground_truth=replace(experiment.settings.ground_truth, num_subsets=4))
    Experiment(TinyData(), more, experiment.runtime).prepare()
    assert counter.count == 2


def test_changed_data_is_never_taken_for_the_old(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment.prepare()
    counter = Counter(monkeypatch)
    Experiment(TinyData(seed=1), experiment.settings, experiment.runtime).prepare()
    assert counter.count == 7


def test_worker_processes_give_the_same_ground_truth_bit_for_bit(experiment: Experiment, tmp_path: Path) -> None:
    experiment.prepare()
    parallel = replace(experiment.runtime, workdir=str(tmp_path / "parallel"), workers=2)
    beside = Experiment(TinyData(), experiment.settings, parallel)
    beside.prepare()
    for name in ("validation", "generation"):
        assert torch.equal(beside.ground_truth(name).losses, experiment.ground_truth(name).losses)


def test_a_damaged_model_is_rebuilt_and_its_losses_still_fit(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment.prepare()
    before = experiment.ground_truth("validation").hash
    artifact = experiment.retrainings[1][0].find(experiment.store)
    assert artifact is not None
    file = artifact.folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))

    said: list[str] = []
    counter = Counter(monkeypatch)
    store = ArtifactStore(experiment.store.root, report=said.append)
    again = Experiment(TinyData(), experiment.settings, experiment.runtime, store=store)
    again.prepare()
    assert counter.count == 1
    assert "model.safetensors" in said[0]
    assert again.ground_truth("validation").hash == before


def test_an_incomplete_ground_truth_is_refused(experiment: Experiment) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        experiment.ground_truth("validation")


def test_generated_queries_are_bound_to_the_target_model(experiment: Experiment) -> None:
    experiment.prepare()
    queries = experiment.queries("generation")
    assert queries.ids == tuple(f"generation-{i}" for i in range(5))
    target = experiment.target.find(experiment.store)
    assert target is not None
    assert experiment.generation_spec(target)["weights"] == target.digest
    assert len(list(experiment.models().checkpoints())) == 2


def test_generated_queries_say_how_they_were_sampled(experiment: Experiment) -> None:
    queries = experiment.queries("generation")
    sampling = queries.sampling
    assert sampling == Sampling((0, 1, 2, 3, 4), 3, 0.0)
    assert experiment.queries("validation").sampling is None
    network, shape = experiment.target.load(experiment.store), experiment.train.image_shape
    steps = list(ddim_trajectory(network, sampling.seeds, shape, 3, 0.0, torch.device("cpu")))
    assert [step.timestep for step in steps] == [666, 333, 0]
    assert torch.equal(to_pixels(steps[-1].sample), queries.images)  # bit for bit


def test_queries_of_other_names_are_not_said_to_be_sampled(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attribench.truth.experiment.generated_ids", lambda count: tuple(map(str, range(count))))
    images = ImageSet(experiment.validation.images, tuple("abcdef"))
    monkeypatch.setattr(Experiment, "query_images", lambda self, name, task=None: images)
    assert experiment.queries("generation").sampling is None
