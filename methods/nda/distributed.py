"""NDA over groups of train images, each on any machine: first what they weigh, then their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from attribench.computing.precision import float64_device
from attribench.methods.nda.engine.partial import Normaliser
from attribench.methods.nda.engine.stream import (
    GROUP,
    SHARD_SIZE,
    group_normalisers,
    group_scores,
    merged,
    normalisers,
    reads_twice,
)
from attribench.methods.nda.scorers import make_engine
from attribench.methods.nda.task import PatchTask
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.code import source_hash
from attribench.store.parts import Distribute


@dataclass(frozen=True, eq=False)
class GroupPart:
    """Some consecutive train images and some tasks.

    Args:
        namespace: of the method's artifacts.
        tasks: queries, timesteps and scales.
        content: hash of the images.
        start: which of all train images is the first of them.
        count: how many they are.
        given: what the first shard of the train images weighs, or with ``scoring`` all train images, a task each.
        scoring: whether scores are asked for, or what the images weigh.
        shard_size: images that are laid out at a time.
    """

    namespace: str
    tasks: tuple[PatchTask, ...]
    content: str
    start: int
    count: int
    given: tuple[Normaliser, ...]
    scoring: bool
    shard_size: int

    @property
    def name(self) -> str:
        what = "scores" if self.scoring else "weights"
        return f"{what} of train images {self.start}…{self.start + self.count - 1} for {len(self.tasks)} patch tasks"

    @property
    def cost(self) -> float:
        return float(len(self.tasks) * self.count) / 2

    @property
    def memory(self) -> int:
        image = self.tasks[0].noisy_query.numel()
        positions = max(task.num_positions for task in self.tasks)
        # The images, one shard laid out with as many sums of pixels, its top-k sums for every task, and scores.
        laid_out = 64 * self.shard_size * image
        sums = 4 * self.shard_size * positions * len(self.tasks) if self.scoring else 0
        return 2 * self.count * image + laid_out + sums + 8 * self.count * len(self.tasks)

    @property
    def kind(self) -> str:
        return f"{self.namespace}groups"

    @cached_property
    def spec(self) -> Spec:
        given = hashlib.sha256()
        for normaliser in self.given:
            given.update(normaliser.peak.tobytes() + normaliser.log_total.tobytes())
        return {
            "code": source_hash(Path(__file__).parent),
            "tasks": hashlib.sha256("".join(task.digest for task in self.tasks).encode()).hexdigest(),
            "images": self.content,
            "start": self.start,
            "given": given.hexdigest(),
            "scoring": self.scoring,
            "shard_size": self.shard_size,
        }

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        return [(f"{self.namespace}images", {"content": self.content})]

    def make(
        self, store: ArtifactStore, device: torch.device, staging: Staging, report: Callable[[float], None]
    ) -> None:
        ((kind, spec),) = self.inputs
        artifact = store.find(kind, spec)
        assert artifact is not None, "an input"
        images = artifact.load_tensors("images")["images"]
        engine = make_engine(float64_device(device))
        arguments = engine, self.tasks, images, self.start, self.given, self.shard_size
        arrays: dict[str, NDArray[Any]] = {}
        if self.scoring:
            arrays["scores"] = group_scores(*arguments, lambda pairs: report(pairs / 2))
        else:
            for number, found in enumerate(group_normalisers(*arguments, lambda pairs: report(pairs / 2))):
                arrays |= {f"{number}/peak": found.peak, f"{number}/log_total": found.log_total}
        staging.save_bytes("result.safetensors", save(arrays))


class DistributedScorer:
    """Scores a training set in groups; the same as those of one process that reads its train images twice, bit for bit.

    Args:
        train: what is compared, uint8 ``(num_train, C, H, W)``.
        store: of the method.
        distribute: has the parts done.
        shard_size: images that are laid out at a time.
    """

    def __init__(
        self, train: Tensor, store: ArtifactStore, distribute: Distribute, device: torch.device,
        shard_size: int = SHARD_SIZE,
    ) -> None:  # fmt: skip
        self._train, self._store, self._distribute, self._size = train, store, distribute, shard_size
        self._engine = make_engine(device)

    @staticmethod
    def fits(train: Tensor) -> bool:
        """Whether there are so many train images that one process would read them twice as well, whatever the task."""
        return reads_twice(len(train))

    def __call__(self, tasks: Sequence[PatchTask]) -> Tensor:
        """float64 ``(num_tasks, num_train)``."""
        for task in tasks:
            task.check(self._train.shape)
        first = normalisers(self._engine, tasks, self._train[: self._size], shard_size=self._size)
        weighing = self._parts(tasks, first, scoring=False)
        total = [Normaliser.empty(task.num_positions) for task in tasks]
        for arrays in self._done(weighing, "weighing train images"):
            group = [Normaliser(arrays[f"{i}/peak"], arrays[f"{i}/log_total"]) for i in range(len(tasks))]
            total = merged(total, group)
        scoring = self._parts(tasks, total, scoring=True)
        scores = np.concatenate([arrays["scores"] for arrays in self._done(scoring, "comparing patches")], axis=1)
        for part in (*weighing, *scoring):  # of many queries they would fill the disk
            self._store.discard("groups", part.spec)
        return torch.from_numpy(scores)

    def _parts(self, tasks: Sequence[PatchTask], given: Sequence[Normaliser], *, scoring: bool) -> list[GroupPart]:
        return [
            GroupPart(
                self._store.namespace, tuple(tasks), content, start, count, tuple(given), scoring, self._size
            )
            for content, start, count in self._groups
        ]  # fmt: skip

    def _done(self, parts: Sequence[GroupPart], description: str) -> list[dict[str, NDArray[Any]]]:
        artifacts = self._distribute(parts, description)
        return [load((artifact.folder / "result.safetensors").read_bytes()) for artifact in artifacts]

    @cached_property
    def _groups(self) -> list[tuple[str, int, int]]:
        """Content, first image and number of images of each group, which are in the store from here on."""
        groups, size = [], GROUP * self._size
        for start in range(0, len(self._train), size):
            images = self._train[start : start + size].contiguous()
            digest = hashlib.sha256(repr(tuple(images.shape)).encode())
            digest.update(images.numpy().data)
            content = digest.hexdigest()

            def build(staging: Staging, images: Tensor = images) -> None:
                staging.save_tensors("images", {"images": images})

            self._store.get_or_create("images", {"content": content}, build)
            groups.append((content, start, len(images)))
        return groups
