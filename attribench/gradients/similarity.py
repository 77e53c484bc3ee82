"""Similarity of gradient features: what Gradient, TracInCP and GAS are made of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attribench.data import ImageSet
from attribench.gradients.features import FeatureSet, GradientFeatures
from attribench.method import Queries
from attribench.similarity import Kind, similarity


def mean_similarity(
    features: GradientFeatures, models: Iterable[nn.Module], queries: Queries, train: ImageSet, kind: Kind
) -> Tensor:
    """Dot product or cosine of the features of queries and train images, averaged over models.

    Returns:
        float32 ``(num_queries, num_train)``.
    """
    total, count = torch.zeros(len(queries), len(train), dtype=torch.float64), 0
    for model in models:
        total += feature_similarity(features.of(model, queries), features.of(model, train), kind)
        count += 1
    return (total / count).to(torch.float32)


def feature_similarity(queries: FeatureSet, train: FeatureSet, kind: Kind) -> Tensor:
    """Compare two sets of features block by block: float32 ``(num_queries, num_train)``."""
    rows = [
        torch.cat([similarity(rows, columns, kind) for columns in train.blocks()], dim=1) for rows in queries.blocks()
    ]
    return torch.cat(rows)
