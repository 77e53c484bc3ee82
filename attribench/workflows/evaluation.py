"""From scores to the numbers of a record: restrict them to what is reported, evaluate, attach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attribench.configuration.protocol import Halves
from attribench.data import ImageSet
from attribench.method import Queries
from attribench.metrics.ceiling import noise_ceiling
from attribench.metrics.comparison import ranks_over_subsets
from attribench.metrics.lds import predict_outputs, score_predictions, undefined_correlations
from attribench.metrics.resampling import Interval, lds_interval, published_bootstrap, standard_error
from attribench.records.gallery import Gallery
from attribench.records.lds import BandResult, CeilingRecord, IntervalRecord, PublishedBootstrap, QuerySetResult
from attribench.truth.experiment import Experiment
from attribench.truth.folds import fold_of, ranks_within_folds
from attribench.truth.ground_truth import GroundTruth

#: Of a band's intervals: ten bands with the usual 1000 would take ten times as long as the LDS itself.
_BAND_RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What scores of a query set are evaluated on: all of its ground truth, or a part.

    Attributes:
        asked: the whole query set.
        queries: those of the part.
        index: which they are of the whole.
        truth: the part's ground truth.
        subsets: which its subsets are of all, by number; None for all of them.
    """

    asked: Queries
    queries: Queries
    index: list[int]
    truth: GroundTruth
    subsets: list[int] | None = None

    @cached_property
    def ceiling(self) -> CeilingRecord | None:
        """What a perfect method would reach on it; None where nothing was measured twice."""
        return ceiling(self.truth)

    @cached_property
    def bands(self) -> list[tuple[GroundTruth, CeilingRecord | None]]:
        """The ground truth and ceiling of each band of noise levels; empty if there is one alone."""
        parts = self.truth.in_bands() if len(self.truth.bands) > 1 else []
        return [(part, ceiling(part, _BAND_RESAMPLES)) for part in parts]

    @classmethod
    def reported(cls, experiment: Experiment, query_set: str, halves: Halves | None = None) -> Evaluation:
        """What is reported: everything, or the halves that nothing was chosen on.

        Of generated queries, which no choice looks at, all are reported, on the reporting half of the subsets.
        """
        if halves is None:
            return cls.of(experiment, query_set)
        index = halves.reporting_queries if query_set == "validation" else None
        return cls.of(experiment, query_set, index, halves.reporting_subsets)

    @classmethod
    def of(
        cls, experiment: Experiment, query_set: str, index: list[int] | None = None, subsets: list[int] | None = None
    ) -> Evaluation:
        """Some queries and subsets, by number, or all of them (None)."""
        asked, truth = experiment.queries(query_set), experiment.ground_truth(query_set)
        index = list(range(len(asked))) if index is None else index
        queries = asked.select(index)
        if subsets is not None:
            truth = truth.restrict(subsets, index)
        return cls(asked, queries, index, truth, subsets)

    def evaluate(self, scores: Tensor, *, by_band: bool = False) -> QuerySetResult:
        """The LDS of the whole query set's scores, with its intervals where there are several queries.

        Args:
            scores: ``(num_queries, num_train)``; or ``(num_folds, num_queries, num_train)`` of a method that was given
                retrained models, each fold's made without the models of that fold. Each model is then predicted by its own
                fold's scores, and ranked among the models of its fold.
            by_band: also by noise level.
        """
        truth, predictions, outputs = self.truth, self._predictions(scores), self._ranked(self.truth.outputs, scores)
        per_query = score_predictions(predictions, outputs)
        mean, std = published_bootstrap(predictions, outputs)
        several = len(self.queries) > 1
        return QuerySetResult(
            lds=per_query.mean().item(),
            interval=_interval(lds_interval(predictions, outputs)) if several else None,
            published_bootstrap=PublishedBootstrap(mean=mean, std=std, num_resamples=64),
            standard_error=standard_error(per_query) if several else None,
            undefined_queries=int(undefined_correlations(predictions, outputs).sum()),
            per_query=per_query.tolist(),
            query_ids=list(self.queries.ids),
            queries_hash=ImageSet(self.queries.images, self.queries.ids).content_hash,
            ground_truth_hash=truth.hash,
            ceiling=self.ceiling,
            bands=[
                self._in_band(predictions, self._ranked(part.outputs, scores), part, ceiling)
                for part, ceiling in self.bands
            ]
            if by_band
            else [],
        )

    def mean_lds(self, scores: Tensor) -> float:
        """The LDS alone, of scores of the part's queries; otherwise like :meth:`evaluate`."""
        part = replace(self, index=list(range(len(self.queries))))
        return score_predictions(part._predictions(scores), part._ranked(part.truth.outputs, scores)).mean().item()

    def _predictions(self, scores: Tensor) -> Tensor:
        """What scores predict for every subset, ``(num_subsets, num_queries)``."""
        if scores.ndim == 2:
            return predict_outputs(scores[self.index], self.truth.masks)
        of = torch.tensor([fold_of(subset, len(scores)) for subset in self._numbers])
        predictions = torch.empty(len(of), len(self.index), dtype=torch.float64)
        for fold in sorted(set(of.tolist())):
            predictions[of == fold] = predict_outputs(scores[fold][self.index], self.truth.masks[of == fold])
        return self._ranked(predictions, scores)

    def _ranked(self, values: Tensor, scores: Tensor) -> Tensor:
        """Values of subsets as they are, or ranked within folds where ``scores`` are by fold."""
        return values if scores.ndim == 2 else ranks_within_folds(values, self._numbers, len(scores))

    @property
    def _numbers(self) -> list[int]:
        return list(range(len(self.truth.masks))) if self.subsets is None else self.subsets

    def _in_band(
        self, predictions: Tensor, outputs: Tensor, truth: GroundTruth, ceiling: CeilingRecord | None
    ) -> BandResult:
        (band,) = truth.bands
        several = len(self.queries) > 1
        return BandResult(
            first=band.first,
            last=band.last,
            lds=score_predictions(predictions, outputs).mean().item(),
            interval=_interval(lds_interval(predictions, outputs, num_resamples=_BAND_RESAMPLES)) if several else None,
            ceiling=ceiling,
        )

    def attached(self, scores: Tensor, train: ImageSet | None) -> dict[str, Tensor]:
        """What is filed beside a record; see :class:`attribench.records.lds.Record`.

        Args:
            scores: of the whole query set, see :meth:`evaluate`; of folds the mean is shown.
            train: the train images, for a gallery; None for none.
        """
        name = self.queries.name
        ranks = {}
        if scores.ndim == 3:  # ranks within folds cannot be paired with other methods' ranks over all subsets
            scores = scores.mean(dim=0)
        else:
            ranks = {
                f"{name}.predictions": ranks_over_subsets(self._predictions(scores)),
                f"{name}.outputs": ranks_over_subsets(self.truth.outputs),
            }
        scores = scores[self.index]
        return ranks if train is None else ranks | Gallery.of(self.queries, scores, train).tensors(f"{name}.gallery")


def ceiling(truth: GroundTruth, num_resamples: int = 1000) -> CeilingRecord | None:
    """The noise ceiling, from training seeds if there are several, else from noise draws; None if neither is."""
    _, seeds, draws, _ = truth.draws.shape
    if len(truth.masks) < 4 or max(seeds, draws) < 2:
        return None
    found = noise_ceiling(truth.losses if seeds > 1 else truth.draws[:, 0], num_resamples=num_resamples)
    if found is None:
        return None
    return CeilingRecord(
        lds=found.lds,
        interval=_interval(found.interval) if truth.draws.shape[-1] > 1 else None,
        replicates="training seeds" if seeds > 1 else "noise draws",
        num_replicates=seeds if seeds > 1 else draws,
        agreement=found.agreement,
    )


def _interval(interval: Interval) -> IntervalRecord:
    return IntervalRecord(low=interval.low, high=interval.high, level=interval.level, resampled="queries and subsets")
