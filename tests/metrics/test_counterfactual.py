from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from attribench.errors import DataError
from attribench.metrics.counterfactual import embedding_cosine, median_interval, pixel_distance


def test_pixel_distance_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    originals = torch.randint(0, 256, (3, 2, 4, 5), generator=generator, dtype=torch.uint8)
    regenerated = torch.randint(0, 256, (3, 2, 2, 4, 5), generator=generator, dtype=torch.uint8)
    regenerated[1, 0] = originals[1]
    found = pixel_distance(originals, regenerated)
    for query in range(3):
        for seed in range(2):
            a, b = originals[query].numpy().ravel() / 255, regenerated[query, seed].numpy().ravel() / 255
            assert found[query, seed].item() == pytest.approx(distance.euclidean(a, b), rel=1e-12)
    assert found[1, 0] == 0
    white = pixel_distance(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 1, 2, 2), 255, dtype=torch.uint8)
    )
    assert white.item() == 2.0


def test_cosine_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    originals, moved = torch.randn(3, 7, generator=generator), torch.randn(3, 2, 7, generator=generator)
    found = embedding_cosine(originals, moved)
    for query in range(3):
        for seed in range(2):
            expected = 1 - distance.cosine(originals[query].double().numpy(), moved[query, seed].double().numpy())
            assert found[query, seed].item() == pytest.approx(expected, abs=1e-12)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="num_seeds"):
        pixel_distance(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, 1, 1, 4, 4, dtype=torch.uint8))


def test_the_interval_of_the_median_covers_it() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = median_interval(generator.exponential(size=40), num_resamples=300)
        covered += interval.low <= np.log(2) <= interval.high
    assert 0.9 <= covered / 200 <= 1.0
    assert median_interval(np.array([1.0, 2.0, 3.0])) == median_interval(np.array([1.0, 2.0, 3.0]))
