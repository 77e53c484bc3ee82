from __future__ import annotations

from pathlib import Path

import torch
from scipy import stats

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.method import score, start
from attribench.methods.random import Random
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method


def random_scores(tmp_path: Path, ids: tuple[str, ...], seed: int = 0, run_seed: int = 42) -> torch.Tensor:
    train = ImageSet(torch.zeros(3000, 1, 2, 2, dtype=torch.uint8), tuple(str(i) for i in range(3000)))
    method = Random(seed)
    store = ArtifactStore(tmp_path)
    start(method, AttributionContext(train, NoiseSchedule(), torch.device("cpu"), run_seed, store, Access.DATA))
    return score(method, Queries(torch.zeros(len(ids), 1, 2, 2, dtype=torch.uint8), ids))


def test_scores_are_standard_normal_and_independent(tmp_path: Path) -> None:
    scores = random_scores(tmp_path, ("a", "b", "c", "d"))
    assert stats.kstest(scores.flatten().numpy(), "norm").pvalue > 0.001
    correlations = torch.corrcoef(scores) - torch.eye(4)
    assert correlations.abs().max() < 0.08  # 4.4 standard errors


def test_scores_depend_on_run_seed_own_seed_and_query_id_alone(tmp_path: Path) -> None:
    scores = random_scores(tmp_path, ("a", "b"))
    torch.manual_seed(7)
    assert torch.equal(random_scores(tmp_path, ("c", "b"))[1], scores[1])
    for other in (random_scores(tmp_path, ("b",), seed=1), random_scores(tmp_path, ("b",), run_seed=1)):
        assert abs(torch.corrcoef(torch.stack([scores[1], other[0]]))[0, 1]) < 0.08


def test_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    random_scores(tmp_path, ("a",))
    assert torch.equal(torch.get_rng_state(), before)


def test_conforms() -> None:
    assert check_method(Random, seed=3) is None
