"""Metrics: pure functions on tensors, and thin torchmetrics classes over them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribench.metrics.ceiling import NoiseCeiling as NoiseCeiling
    from attribench.metrics.ceiling import noise_ceiling as noise_ceiling
    from attribench.metrics.comparison import PairedComparison as PairedComparison
    from attribench.metrics.comparison import compare_lds as compare_lds
    from attribench.metrics.comparison import compare_values as compare_values
    from attribench.metrics.comparison import distinguishable as distinguishable
    from attribench.metrics.comparison import holm as holm
    from attribench.metrics.comparison import tied_with_best as tied_with_best
    from attribench.metrics.counterfactual import pixel_distance as pixel_distance
    from attribench.metrics.lds import average_ranks as average_ranks
    from attribench.metrics.lds import linear_datamodeling_score as linear_datamodeling_score
    from attribench.metrics.lds import predict_outputs as predict_outputs
    from attribench.metrics.lds import score_predictions as score_predictions
    from attribench.metrics.lds import spearman as spearman
    from attribench.metrics.lds import undefined_queries as undefined_queries
    from attribench.metrics.lds_metric import LinearDatamodelingScore as LinearDatamodelingScore
    from attribench.metrics.resampling import Interval as Interval
    from attribench.metrics.resampling import lds_interval as lds_interval
    from attribench.metrics.resampling import published_bootstrap as published_bootstrap
    from attribench.metrics.resampling import standard_error as standard_error

# Resolved on first use, so that the functions do not wait for torchmetrics.
_EXPORTS = {
    "NoiseCeiling": "attribench.metrics.ceiling",
    "PairedComparison": "attribench.metrics.comparison",
    "compare_lds": "attribench.metrics.comparison",
    "compare_values": "attribench.metrics.comparison",
    "distinguishable": "attribench.metrics.comparison",
    "holm": "attribench.metrics.comparison",
    "noise_ceiling": "attribench.metrics.ceiling",
    "pixel_distance": "attribench.metrics.counterfactual",
    "tied_with_best": "attribench.metrics.comparison",
    "Interval": "attribench.metrics.resampling",
    "LinearDatamodelingScore": "attribench.metrics.lds_metric",
    "average_ranks": "attribench.metrics.lds",
    "lds_interval": "attribench.metrics.resampling",
    "linear_datamodeling_score": "attribench.metrics.lds",
    "predict_outputs": "attribench.metrics.lds",
    "published_bootstrap": "attribench.metrics.resampling",
    "score_predictions": "attribench.metrics.lds",
    "spearman": "attribench.metrics.lds",
    "standard_error": "attribench.metrics.resampling",
    "undefined_queries": "attribench.metrics.lds",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'attribench.metrics' has no attribute {name!r}")
