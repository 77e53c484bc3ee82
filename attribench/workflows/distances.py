"""How far queries moved, by every measure that is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attribench.computing.device import resolve_device
from attribench.embeddings.perceptual import lpips_distance, lpips_unavailable
from attribench.metrics.counterfactual import SMALLEST_SIDE, embedding_cosine, pixel_distance, structural_similarity
from attribench.truth.jobs import TrainJob
from attribench.workflows.counterfactual import Clip, embedder_of, no_clip
from attribench.workflows.removal_questions import Question

#: Losses are small numbers: times this they have digits before the point.
_LOSS_SCALE = 1000.0


@dataclass(eq=False)
class Rulers:
    """The measures; :meth:`look_at` says which there are.

    Args:
        clip: the CLIP model that compares images.
    """

    clip: Clip
    names: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def look_at(self, question: Question) -> None:
        """Find out what can be measured here: of queries that were not generated the loss alone."""
        self._embedder = embedder_of(self.clip)
        self.names = ["loss"]
        if not question.generated:
            return
        channels, *sides = question.experiment.train.image_shape
        reasons = {
            "l2": None,
            "ssim": f"images have {min(sides)} pixels a side." if min(sides) < SMALLEST_SIDE else None,
            "lpips": lpips_unavailable(channels),
            "clip": no_clip(self._embedder, question.experiment),
        }
        self.names += [name for name, reason in reasons.items() if reason is None]
        self.missing = {name: reason for name, reason in reasons.items() if reason is not None}

    def measure(self, name: str, trained: list[list[list[TrainJob]]], question: Question) -> Tensor:
        """Of every retraining and query, float64 ``(num_groups, num_sizes, num_seeds, num_queries)``."""
        shape = (len(trained), len(trained[0]), len(trained[0][0]))
        jobs = [job for group in trained for size in group for job in size]
        found = self._losses(jobs, question) if name == "loss" else self._images(name, jobs, question)
        return found.reshape(*shape, len(question.chosen))

    def _losses(self, jobs: Sequence[TrainJob], question: Question) -> Tensor:
        store = question.experiment.store
        return torch.stack([_LOSS_SCALE * question.loss_job(job).load(store).double().mean(dim=(0, 1)) for job in jobs])

    def _images(self, name: str, jobs: Sequence[TrainJob], question: Question) -> Tensor:
        store = question.experiment.store
        device = resolve_device(question.experiment.runtime.accelerator)
        originals = question.explained.images
        regenerated = torch.stack([question.generate_job(job).load(store) for job in jobs], dim=1)
        if name == "l2":
            values = pixel_distance(originals, regenerated)
        elif name == "ssim":
            values = 1.0 - structural_similarity(originals, regenerated)
        elif name == "lpips":
            values = lpips_distance(originals, regenerated, device)
        else:
            moved = self._embedder.embed(regenerated.flatten(0, 1), device).reshape(*regenerated.shape[:2], -1)
            values = 1.0 - embedding_cosine(self._embedder.embed(originals, device), moved)
        return values.T
