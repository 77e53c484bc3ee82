"""LDS by noise level, against SciPy on the losses of a band alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from attribench.method import Queries
from attribench.truth.ground_truth import Band, GroundTruth
from attribench.workflows.evaluation import Evaluation

BANDS = [Band(0, 100, 5), Band(100, 200, 5), Band(900, 1000, 2)]


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(12, 30, generator=generator) < 0.5
    return GroundTruth(masks, torch.rand(12, 2, 3, 3, 7, generator=generator), BANDS)


def evaluation(truth: GroundTruth) -> Evaluation:
    queries = Queries(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), tuple("abcdefg"), "validation")
    return Evaluation(queries, queries, list(range(7)), truth)


def test_every_band_has_the_lds_of_its_losses_alone(truth: GroundTruth) -> None:
    scores = torch.rand(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = evaluation(truth).evaluate(scores, by_band=True)
    predictions = truth.masks.double() @ scores.T
    assert [(band.first, band.last) for band in result.bands] == [(0, 100), (100, 200), (900, 1000)]
    for number, band in enumerate(result.bands):
        outputs = truth.by_band[:, :, :, number].double().mean(dim=(1, 2))
        per_query = [spearmanr(predictions[:, q], -outputs[:, q]).statistic for q in range(7)]
        assert band.lds == pytest.approx(np.mean(per_query), abs=1e-12)
        assert band.low < band.lds < band.high
        assert band.ceiling is not None
        assert band.ceiling.replicates == "training seeds"


def test_the_bands_weighted_by_their_timesteps_are_the_whole(truth: GroundTruth) -> None:
    parts = truth.in_bands()
    whole = sum(band.count * part.outputs for band, part in zip(BANDS, parts, strict=True)) / 12
    assert torch.allclose(torch.as_tensor(whole), truth.outputs, rtol=1e-12)
    assert len({part.hash for part in parts} | {truth.hash}) == 4


def test_of_one_band_alone_nothing_is_said_twice(truth: GroundTruth) -> None:
    alone = evaluation(truth.in_bands()[0])
    assert alone.evaluate(torch.rand(7, 30), by_band=True).bands == []
    assert evaluation(truth).evaluate(torch.rand(7, 30)).bands == []


def test_scores_by_fold_predict_the_models_of_their_fold_alone(truth: GroundTruth) -> None:
    scores = torch.rand(2, 7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for subsets in (None, [0, 1, 4, 5, 6, 7, 9, 11]):
        numbers = list(range(12)) if subsets is None else subsets
        part = truth if subsets is None else truth.restrict(subsets, range(7))
        queries = Queries(torch.zeros(7, 1, 2, 2, dtype=torch.uint8), tuple("abcdefg"), "validation")
        found = Evaluation(queries, queries, list(range(7)), part, subsets).evaluate(scores, by_band=True)
        for q in range(7):
            predicted, measured = np.empty(len(numbers)), np.empty(len(numbers))
            for fold in (0, 1):
                rows = [i for i, number in enumerate(numbers) if number % 2 == fold]
                sums = [scores[fold, q][truth.masks[numbers[i]]].sum().item() for i in rows]
                predicted[rows] = (np.argsort(np.argsort(sums)) + 0.5) / len(rows)
                measured[rows] = (np.argsort(np.argsort(part.outputs[rows, q].numpy())) + 0.5) / len(rows)
            assert found.per_query[q] == pytest.approx(spearmanr(predicted, -measured).statistic, abs=1e-12)
        assert len(found.bands) == 3


def test_a_fit_to_noise_is_worth_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(32, 60, generator=generator) < 0.5
    noise = torch.rand(32, 1, 1, 1, 400, generator=generator)
    truth = GroundTruth(masks, noise, [Band(0, 100, 5)])
    members, gains = masks.double(), -truth.outputs
    scores = []
    for fold in range(4):
        others = torch.arange(32) % 4 != fold
        fitted = torch.linalg.lstsq(members[others] - members[others].mean(0), gains[others] - gains[others].mean(0))
        scores.append(fitted.solution.T)
    ids = tuple(str(i) for i in range(400))
    queries = Queries(torch.zeros(400, 1, 2, 2, dtype=torch.uint8), ids, "validation")
    found = Evaluation(queries, queries, list(range(400)), truth).evaluate(torch.stack(scores))
    assert found.standard_error is not None
    assert abs(found.lds) < 4 * found.standard_error
