from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from attribench.errors import DataError
from attribench.metrics.counterfactual import embedding_cosine, median_interval, pixel_distance, structural_similarity


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


@pytest.mark.parametrize(("side", "window", "deviation"), [(8, 5, 0.5), (24, 11, 1.5)])
def test_structural_similarity_by_its_formula(side: int, window: int, deviation: float) -> None:
    """Window by window, as Wang and others (2004) have it."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 256, (2, 1, side, side), generator=generator, dtype=torch.uint8)
    second = torch.randint(0, 256, (2, 3, 1, side, side), generator=generator, dtype=torch.uint8)
    second[0, 1] = first[0]
    place = np.arange(window) - window // 2
    bell = np.exp(-(place**2) / (2 * deviation**2))
    weight = np.outer(bell, bell) / bell.sum() ** 2

    def similar(x: np.ndarray, y: np.ndarray) -> float:
        values = []
        for top in range(side - window + 1):
            for left in range(side - window + 1):
                a, b = (image[top : top + window, left : left + window] for image in (x, y))
                mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                var_a, var_b = (weight * a * a).sum() - mean_a**2, (weight * b * b).sum() - mean_b**2
                both = (weight * a * b).sum() - mean_a * mean_b
                values.append(
                    (2 * mean_a * mean_b + 1e-4)
                    * (2 * both + 9e-4)
                    / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                )
        return float(np.mean(values))

    found = structural_similarity(first, second)
    for query in range(2):
        for seed in range(3):
            pair = (first[query, 0].double().numpy() / 255, second[query, seed, 0].double().numpy() / 255)
            assert found[query, seed].item() == pytest.approx(similar(*pair), abs=1e-6)
    assert found[0, 1].item() == pytest.approx(1.0)


def test_structural_similarity_needs_pixels() -> None:
    with pytest.raises(DataError, match="5 pixels"):
        structural_similarity(torch.zeros(1, 1, 4, 4).byte(), torch.zeros(1, 1, 1, 4, 4).byte())
