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
