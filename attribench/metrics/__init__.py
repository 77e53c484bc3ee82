"""Metrics: pure functions on tensors, and thin torchmetrics classes over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

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
    from attribench.metrics.variance import Attributability as Attributability
    from attribench.metrics.variance import attributability as attributability

# Resolved on first use, so that the functions do not wait for torchmetrics.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ceiling": ["NoiseCeiling", "noise_ceiling"],
        "comparison": [
            "PairedComparison",
            "compare_lds",
            "compare_values",
            "distinguishable",
            "holm",
            "tied_with_best",
        ],
        "counterfactual": ["pixel_distance"],
        "lds": [
            "average_ranks",
            "linear_datamodeling_score",
            "predict_outputs",
            "score_predictions",
            "spearman",
            "undefined_queries",
        ],
        "lds_metric": ["LinearDatamodelingScore"],
        "resampling": ["Interval", "lds_interval", "published_bootstrap", "standard_error"],
        "variance": ["Attributability", "attributability"],
    },
)
