"""What a run puts into a record: the noise ceiling, the ranks that comparisons need, and images to look at."""

from __future__ import annotations

from dataclasses import replace
from math import fsum
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import distance
from tiny_data import TinyData

from attribench import Access, AttributionMethod, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.metrics import noise_ceiling
from attribench.records.files import load_attachment
from attribench.records.gallery import Gallery
from attribench.records.lds import Record
from attribench.settings import QUERY_SETS, Runtime, Settings
from attribench.truth.experiment import Experiment
from attribench.workflows.benchmark import run
from attribench.workflows.opening import open_experiment

pytestmark = pytest.mark.slow


class Alike(AttributionMethod):
    """Minus the distance of pixels."""

    access = Access.DATA

    def attribute(self, queries: Queries) -> torch.Tensor:
        return -torch.cdist(queries.unit_range().flatten(1), self.context.train.unit_range().flatten(1))


class Fine(AttributionMethod):
    """Float64 scores whose differences float32 does not hold.

    Args:
        kind: which ones.
    """

    access = Access.DATA

    def __init__(self, kind: str = "offset") -> None:
        self.kind = kind

    def attribute(self, queries: Queries) -> torch.Tensor:
        return torch.from_numpy(fine_scores(self.kind, queries.images.numpy(), self.context.train.images.numpy()))


def fine_scores(kind: str, queries: NDArray[np.uint8], train: NDArray[np.uint8]) -> NDArray[np.float64]:
    first, second = (images.astype(np.float64).reshape(len(images), -1) / 127.5 - 1 for images in (queries, train))
    if kind == "offset":
        return -np.abs(first.mean(1)[:, None] - second.mean(1)[None]) * 1e-3 + 1e6
    return np.exp(-4 * distance.cdist(first, second) ** 2)


def test_float64_scores_are_ranked_as_they_are(tiny_settings: Settings, runtime: Runtime, tmp_path: Path) -> None:
    settings = replace(tiny_settings, ground_truth=replace(tiny_settings.ground_truth, num_subsets=6, num_seeds=1))
    methods = [MethodConfig(kind, Fine, {"kind": kind}) for kind in ("offset", "kernel")]
    config = Config("tiny", "smoke", TinyData, {}, settings, methods, {})
    records = run(config, runtime, tmp_path / "results", silent_progress).records
    experiment = open_experiment(config, runtime, silent_progress)
    for name in QUERY_SETS:
        queries, truth = experiment.queries(name), experiment.ground_truth(name)
        losses = truth.draws.numpy().mean((1, 2))
        for record in records:
            scores = fine_scores(record.method, queries.images.numpy(), experiment.train.images.numpy())
            expected = [
                stats.spearmanr([fsum(row[mask]) for mask in truth.masks.numpy()], -losses[:, number]).statistic
                for number, row in enumerate(scores)
            ]
            assert record.results[name].per_query == pytest.approx(expected, abs=1e-12)
            assert record.results[name].undefined_queries == 0
            gallery = Gallery.from_tensors(load_attachment(record, tmp_path / "results") or {}, f"{name}.gallery")
            assert gallery is not None
            assert gallery.scores[:, 0].tolist() == np.sort(scores, axis=1)[:, ::-1][:, :8].tolist()


Finished = tuple[Record, Experiment, Path]


def finish(
    settings: Settings, runtime: Runtime, folder: Path, seeds: int, draws: int = 2, subsets: int = 6
) -> Finished:
    truth = replace(settings.ground_truth, num_subsets=subsets, num_seeds=seeds, num_noise_draws=draws)
    config = Config(
        "tiny", "smoke", TinyData, {}, replace(settings, ground_truth=truth), [MethodConfig("alike", Alike, {})], {}
    )
    (record,) = run(config, runtime, folder / "results", silent_progress).records
    return record, open_experiment(config, runtime, silent_progress), folder / "results"


@pytest.fixture(scope="module")
def finished(tiny_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    runtime = Runtime(workdir=str(folder / "runs"), accelerator="cpu", workers=1, evaluation_batch=16)
    return finish(tiny_settings, runtime, folder, seeds=2)


def test_the_ceiling_is_of_the_training_seeds(finished: Finished) -> None:
    record, experiment, _ = finished
    for name in QUERY_SETS:
        expected = noise_ceiling(experiment.ground_truth(name).losses)
        found = record.results[name].ceiling
        assert expected is not None
        assert found is not None
        assert (found.replicates, found.num_replicates) == ("training seeds", 2)
        assert found.lds == expected.lds
        assert (found.interval.low, found.interval.high) == (expected.interval.low, expected.interval.high)


def test_with_one_seed_it_is_of_the_noise_draws_or_missing(
    tiny_settings: Settings, runtime: Runtime, tmp_path: Path
) -> None:
    record, experiment, _ = finish(tiny_settings, runtime, tmp_path, seeds=1, draws=3)
    found = record.results["validation"].ceiling
    expected = noise_ceiling(experiment.ground_truth("validation").draws[:, 0])
    assert found is not None
    assert expected is not None
    assert (found.replicates, found.num_replicates, found.lds) == ("noise draws", 3, expected.lds)
    once, _, _ = finish(tiny_settings, runtime, tmp_path / "once", seeds=1, draws=1)
    assert once.results["validation"].ceiling is None


def test_ranks_beside_the_record_are_those_of_predictions_and_outputs(finished: Finished) -> None:
    record, experiment, results = finished
    tensors = load_attachment(record, results)
    assert tensors is not None
    for name in QUERY_SETS:
        queries, truth = experiment.queries(name), experiment.ground_truth(name)
        scores = -torch.cdist(queries.unit_range().flatten(1), experiment.train.unit_range().flatten(1))
        predictions = truth.masks.double() @ scores.double().T
        for kept, values in (("predictions", predictions), ("outputs", truth.outputs)):
            expected = 2 * stats.rankdata(values.numpy(), axis=0)
            assert tensors[f"{name}.{kept}"].tolist() == expected.tolist()


def test_the_gallery_shows_both_ends_of_the_ranking(finished: Finished) -> None:
    record, experiment, results = finished
    gallery = Gallery.from_tensors(load_attachment(record, results) or {}, "validation.gallery")
    assert gallery is not None
    queries = experiment.queries("validation")
    scores = -torch.cdist(queries.unit_range().flatten(1), experiment.train.unit_range().flatten(1))
    for row, number in enumerate(gallery.queries.tolist()):
        order = scores[number].argsort(descending=True)
        assert gallery.indices[row, 0].tolist() == order[:8].tolist()
        assert gallery.indices[row, 1].tolist() == order.flip(0)[:8].tolist()
        assert torch.allclose(gallery.scores[row, 0], scores[number][order[:8]])
        assert torch.equal(gallery.train_images[row, 1, 0], experiment.train.images[order[-1]])
        assert torch.equal(gallery.images[row], queries.images[number])
    assert Gallery.from_tensors({}, "validation.gallery") is None


class Private(TinyData):
    """Images that may not be passed on."""

    galleries = False


@pytest.mark.parametrize(
    ("data", "asked", "files"),
    [(TinyData, None, True), (TinyData, False, False), (Private, None, False), (Private, True, True)],
)
def test_without_galleries_numbers_alone_are_filed(
    finished: Finished, tmp_path: Path, data: type[TinyData], asked: bool | None, files: bool
) -> None:
    _, experiment, _ = finished
    methods = [MethodConfig("alike", Alike, {})]
    config = Config("tiny", "smoke", data, {}, experiment.settings, methods, {}, galleries=asked)
    (record,) = run(config, experiment.runtime, tmp_path, silent_progress).records
    names = set(load_attachment(record, tmp_path) or {})
    ranks = {f"{name}.{kept}" for name in QUERY_SETS for kept in ("predictions", "outputs")}
    assert ranks <= names
    assert bool(names - ranks) == files
    pixels = experiment.validation.images[0].numpy().tobytes()
    assert any(pixels in path.read_bytes() for path in tmp_path.rglob("*.safetensors")) == files
