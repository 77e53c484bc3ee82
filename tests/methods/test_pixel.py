from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError
from attribench.method import score, start
from attribench.methods import pixel
from attribench.methods.pixel import Pixel
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method


def images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 8, 6), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, tuple(f"{seed}-{i}" for i in range(count)))


def pixel_scores(kind: str, train: ImageSet, queries: Queries, tmp_path: Path) -> torch.Tensor:
    method = Pixel(kind)  # type: ignore[arg-type]
    store = ArtifactStore(tmp_path)
    start(method, AttributionContext(train, NoiseSchedule(), torch.device("cpu"), 0, store, Access.DATA))
    return score(method, queries)


@pytest.mark.parametrize("kind", ["dot", "cosine"])
@pytest.mark.parametrize("chunk_bytes", [1, 4000, 2**26])
def test_equals_numpy(kind: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel, "_CHUNK_BYTES", chunk_bytes)
    train, queries = images(17, seed=0), Queries.of(images(5, seed=1), "queries")
    a, b = (s.images.numpy().reshape(len(s), -1) / 127.5 - 1 for s in (queries, train))
    expected = a @ b.T
    if kind == "cosine":
        expected = expected / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    assert np.abs(pixel_scores(kind, train, queries, tmp_path).numpy() - expected).max() < 1e-6 * len(a[0])


def test_cosine_of_an_image_with_itself_is_one_and_with_its_negative_minus_one(tmp_path: Path) -> None:
    train = images(2, seed=3)
    queries = Queries(torch.stack([train.images[0], 255 - train.images[0]]), ("same", "negative"))
    scores = pixel_scores("cosine", train, queries, tmp_path)
    assert scores[:, 0].tolist() == pytest.approx([1.0, -1.0], abs=1e-6)


def test_unknown_similarity_is_refused() -> None:
    with pytest.raises(UsageError, match="'dot' or 'cosine'"):
        Pixel("euclid")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_conforms(kind: str) -> None:
    assert check_method(Pixel, similarity=kind) is None


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_equal_train_images_get_equal_scores_to_the_bit(tmp_path: Path, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = image.expand(41, -1, -1, -1)
    queries = torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)
    train = ImageSet(images, tuple(map(str, range(41))))
    scores = pixel_scores(kind, train, Queries(queries, tuple("abcde")), tmp_path)
    assert torch.equal(scores, scores[:, :1].expand(-1, 41))
