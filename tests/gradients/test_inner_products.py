from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attribench.gradients import inner_products as module
from attribench.gradients.feature_set import FeatureSet, Origin
from attribench.gradients.inner_products import inner_products
from attribench.gradients.ridge import Ridge
from attribench.store.artifacts import ArtifactStore
from attribench.store.shared import SharedStore

CPU = torch.device("cpu")


@pytest.fixture
def shared(tmp_path: Path) -> SharedStore:
    return SharedStore(ArtifactStore(tmp_path))


class Stored:
    """Features that are in a store, and how often a chunk of them was read."""

    def __init__(self, shared: SharedStore, count: int, name: str, terms: int = 1) -> None:
        self.matrix = torch.randn(count, 40, generator=torch.Generator().manual_seed(len(name)))
        self.reads = 0
        chunks = self.matrix.chunk(3)
        origin = Origin(shared, [([f"{name}-{i}"], terms) for i in range(len(chunks))])
        self.features = FeatureSet([self._loader(chunk) for chunk in chunks], count, 40, origin)

    def _loader(self, chunk: Tensor):  # type: ignore[no-untyped-def]
        def load() -> Tensor:
            self.reads += 1
            return chunk.clone()

        return load


@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_products_equal_numpy(shared: SharedStore, max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = FeatureSet.blocks
    monkeypatch.setattr(FeatureSet, "blocks", lambda self: blocks(self, max_bytes))
    train, queries = Stored(shared, 8, "train"), Stored(shared, 5, "query")
    a, b = train.matrix.double().numpy(), queries.matrix.double().numpy()
    assert np.abs(inner_products(train.features, train.features, CPU).numpy() - a @ a.T).max() < 1e-12
    assert np.abs(inner_products(queries.features, train.features, CPU).numpy() - b @ a.T).max() < 1e-12


def test_another_regularization_reads_no_features_again(shared: SharedStore) -> None:
    train, queries = Stored(shared, 8, "train"), Stored(shared, 5, "query")
    Ridge(train.features, 0.1, CPU).scores(queries.features)
    train.reads = queries.reads = 0
    scores = Ridge(train.features, 10.0, CPU).scores(queries.features)
    assert (train.reads, queries.reads) == (0, 0)
    alone = Ridge(FeatureSet.of([train.matrix]), 10.0, CPU).scores(FeatureSet.of([queries.matrix]))
    assert torch.allclose(scores, alone, rtol=1e-12)


def test_other_features_have_other_products(shared: SharedStore) -> None:
    train = Stored(shared, 8, "train")
    inner_products(train.features, train.features, CPU)
    for other in (Stored(shared, 8, "others"), Stored(shared, 8, "train", terms=2)):
        inner_products(other.features, other.features, CPU)
        assert other.reads > 0


def test_what_is_found_counts_as_used(shared: SharedStore) -> None:
    first = Stored(shared, 8, "train")
    inner_products(first.features, first.features, CPU)
    later = SharedStore(shared.store)
    train = Stored(later, 8, "train")
    with later.watch() as usage:
        inner_products(train.features, train.features, CPU)
    assert train.reads == 0
    assert sum(usage.stored.values()) >= 8 * 8 * 8


def test_large_matrices_are_not_kept(shared: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 8 * 8 * 8 - 1)
    train = Stored(shared, 8, "train")
    inner_products(train.features, train.features, CPU)
    assert not list(shared.store.root.iterdir())
