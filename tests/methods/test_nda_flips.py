"""Train images compared mirrored as well: against the definition on the doubled set, and evidence that adds up to the score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nda_reference import brute_force
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AttribenchError
from attribench.gradients import budget
from attribench.method import score, start
from attribench.methods.nda import NDA
from attribench.store.artifacts import ArtifactStore

OPTIONS = {"timesteps": (200, 400), "patch_size": 3, "low_resolution_patch_size": 4, "alpha": 0.7, "top_k": 5}


@pytest.fixture
def train() -> ImageSet:
    pixels = torch.randint(0, 256, (6, 3, 8, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[4], pixels[5] = pixels[0], pixels[0].flip(-1)
    return ImageSet(pixels, tuple(f"train-{i}" for i in range(6)))


@pytest.fixture
def queries() -> Queries:
    pixels = torch.randint(0, 256, (2, 3, 8, 7), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Queries(pixels, ("a", "b"), "validation")


@pytest.fixture
def context(train: ImageSet, tmp_path: Path) -> AttributionContext:
    return AttributionContext(train, NoiseSchedule(), torch.device("cpu"), 0, ArtifactStore(tmp_path), Access.DATA)


def expected(method: NDA, queries: Queries, train: ImageSet) -> Tensor:
    """From the definition, on train images and mirror images as so many images."""
    images = train.unit_range()
    doubled = torch.cat([images, images.flip(-1)])
    rows = []
    for query in queries.unit_range():
        terms = [brute_force(task, doubled) for task in method._tasks(query)]
        total = sum(weight * term for weight, term in zip(method._weights(), terms, strict=True))
        rows.append(torch.as_tensor(total).view(2, -1).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("engine", ["fast", "convolution"])
def test_a_score_is_of_an_image_and_its_mirror_image(
    engine: str, train: ImageSet, queries: Queries, context: AttributionContext
) -> None:
    method = NDA(**OPTIONS, flips=True, engine=engine)  # type: ignore[arg-type]
    start(method, context)
    scores = score(method, queries)
    torch.testing.assert_close(scores.double(), expected(method, queries, train), rtol=2e-5, atol=1e-6)
    assert torch.equal(scores[:, 0], scores[:, 4])
    assert torch.equal(scores[:, 0], scores[:, 5])  # its mirror image


def test_evidence_adds_up_to_the_score_where_the_patches_are(queries: Queries, context: AttributionContext) -> None:
    method = NDA(**OPTIONS, flips=True)  # type: ignore[arg-type]
    start(method, context)
    scores = score(method, queries)[0]
    shown = method.explain(queries[0:1], [0, 2, 5])
    for index, evidence in zip([0, 2, 5], shown, strict=True):
        assert evidence.query_map.sum().item() == pytest.approx(scores[index].item(), rel=1e-4)
        assert evidence.train_map.sum().item() == pytest.approx(scores[index].item(), rel=1e-4)
        assert [match.weight for match in evidence.matches] == sorted(
            (m.weight for m in evidence.matches), reverse=True
        )
    # Image 5 is image 0 mirrored: what counts in it is what counts in image 0, mirrored.
    torch.testing.assert_close(shown[2].train_map, shown[0].train_map.flip(-1), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(shown[2].query_map, shown[0].query_map, rtol=1e-4, atol=1e-9)


def test_too_many_images_are_refused_before_they_are_doubled(
    context: AttributionContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda device: 1000)
    with pytest.raises(AttribenchError, match=r"mirror images needs .* Compare without --method\.flips"):
        start(NDA(**OPTIONS, flips=True), context)  # type: ignore[arg-type]
