"""One experimental setting on one data set: its models, query sets and ground truth, all in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attribench.computing.device import resolve_device
from attribench.computing.progress import Progress, Task, silent_progress
from attribench.computing.seeding import derive_seed
from attribench.configuration.protocol import Halves
from attribench.data import AttributionDataModule, ImageSet
from attribench.diffusion.spaces import LatentSpace, PixelSpace, Space
from attribench.errors import ArtifactError, DataError
from attribench.method import Queries, Sampling
from attribench.settings import QUERY_SETS, Runtime, Settings
from attribench.store.artifacts import Artifact, ArtifactStore, Spec
from attribench.store.parts import Part
from attribench.truth.base import Base
from attribench.truth.bundle import Bundle
from attribench.truth.executors import make_executor
from attribench.truth.generation import QueriesJob, prompts_of, queries_spec
from attribench.truth.ground_truth import GroundTruth, band_means, bands_of
from attribench.truth.jobs import Job, LossJob, TrainJob, save_images
from attribench.truth.part_jobs import PartJob
from attribench.truth.pretraining import Asked, planned_base, provide_base
from attribench.truth.subsets import subset_masks


class Experiment:
    """A data set, a setting, and where to compute.

    Everything is made on demand and kept in the store; asking again reads it. With a bundle nothing is retrained: masks,
    losses, generated queries and the target model are the bundle's.
    """

    def __init__(
        self,
        data: AttributionDataModule,
        settings: Settings,
        runtime: Runtime,
        progress: Progress = silent_progress,
        store: ArtifactStore | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        from pathlib import Path

        self.settings, self.runtime, self.progress = settings, runtime, progress
        self.label, self.stratify = data.label, data.stratify
        self.train, self.validation = data.train, data.validation
        self.prompts = data.prompts
        self.store = store or ArtifactStore(
            Path(runtime.workdir),
            lock_timeout=runtime.lock_timeout,
            report=progress.message,
            dead_after=runtime.dead_after,
            doer=f"shard {runtime.shard}" if runtime.shard.count > 1 else "",
        )
        self.bundle = bundle
        if bundle is not None:
            bundle.check(self.train, self.validation)

    @property
    def query_sets(self) -> tuple[str, ...]:
        """The query sets there is ground truth on: all of them, or what the bundle has."""
        return QUERY_SETS if self.bundle is None else self.bundle.query_sets

    @property
    def has_model(self) -> bool:
        """Whether there is a target model: published ground truth comes without."""
        return self.bundle is None or self.bundle.has_model

    @cached_property
    def base(self) -> Base | None:
        """The pretrained network that LoRA is trained on, trained first where it is another setting's model; None: no LoRA."""
        name = self.settings.model.base
        if name is None:
            return None
        if self.bundle is not None:
            return self.bundle.install_base(self.store)
        return provide_base(name, self._asked, self.store, self.runtime, self.progress)

    def plan(self) -> bool:
        """Look at what there is without training the base; whether it is there.

        If not, jobs can be counted and described from here on, but none of them is found or can be done.
        """
        name = self.settings.model.base
        if name is None or self.bundle is not None:
            return True
        self.base = planned_base(name, self._asked, self.store, self.runtime)
        return bool(self.base.content)

    @property
    def _asked(self) -> Asked:
        every = {*(self.train.captions or ()), *(self.validation.captions or ())}
        own = tuple(sorted(caption for caption in set(self.train.captions or ()) if caption is not None))
        captions = sorted(caption for caption in every if caption is not None)
        return Asked(self.train.image_shape, captions, self.prompts or own)

    @cached_property
    def space(self) -> Space:
        """What the models work in."""
        device = resolve_device(self.runtime.accelerator)
        return PixelSpace() if self.base is None else self.base.space(self.store, device)

    @cached_property
    def masks(self) -> Tensor:
        """bool ``(num_subsets, num_train)``."""
        if self.bundle is not None:
            return self.bundle.masks
        labels = self.train.labels if self.stratify else None
        return subset_masks(len(self.train), labels, self.settings.ground_truth)

    @cached_property
    def halves(self) -> Halves:
        """The halves of validation queries and subsets for the strict protocol."""
        ground_truth = self.settings.ground_truth
        return Halves.of(len(self.validation), ground_truth.num_subsets, ground_truth.seed)

    @cached_property
    def target(self) -> TrainJob:
        """The model under study, trained on all train images; the bundle's own where there is one."""
        training = self.settings.training
        job = self.train_job("target model", None, training.seed, training.num_checkpoints)
        return job if self.bundle is None or not self.has_model else replace(job, weights=self.bundle.weights)

    @cached_property
    def retrainings(self) -> list[list[TrainJob]]:
        """The models retrained on subsets: ``[subset][seed index]``."""
        root = self.settings.training.seed
        return [
            [
                self.train_job(
                    f"model of subset {k}, seed {s}",
                    tuple(mask.nonzero().flatten().tolist()),
                    derive_seed(root, "training", "subset", k, "seed", s),
                )
                for s in range(self.settings.ground_truth.num_seeds)
            ]
            for k, mask in enumerate(self.masks)
        ]

    def train_models(self, task: Task, then: Sequence[Job] = ()) -> None:
        """Train the target model and all subset models that are not in the store; ``then`` do what needs them."""
        self.run_jobs(task, [self.target], [job for jobs in self.retrainings for job in jobs], then)

    def queries(self, name: str, task: Task | None = None) -> Queries:
        """A query set: ``"validation"`` (held out) or ``"generation"`` (sampled from the target model)."""
        images = self.query_images(name, task)
        return Queries.of(images, name, self._sampling(images) if name == "generation" else None)

    def query_ids(self, name: str) -> tuple[str, ...]:
        """The names of a query set's queries, known before any of them is generated."""
        return self.validation.ids if name == "validation" else generated_ids(self.settings.generation.num_images)

    def measure_losses(self, name: str, task: Task) -> None:
        """Measure every subset model's losses on a query set."""
        images = self.query_images(name)
        save_images(self.store, images)
        self.run_jobs(task, [job for jobs in self.loss_jobs(images) for job in jobs])

    def loss_jobs(self, queries: ImageSet) -> list[list[LossJob]]:
        """``[subset][seed index]``."""
        ground_truth = self.settings.ground_truth
        return [
            [
                LossJob(
                    trained,
                    queries.content_hash,
                    len(queries),
                    tuple(ground_truth.timesteps),
                    ground_truth.num_noise_draws,
                    derive_seed(ground_truth.seed, "losses"),
                )
                for trained in jobs
            ]
            for jobs in self.retrainings
        ]

    def ground_truth(self, name: str) -> GroundTruth:
        """Assemble a query set's ground truth from the store.

        Raises:
            ArtifactError: part of it is missing; :meth:`prepare` makes it.
        """
        if self.bundle is not None:
            return self.bundle.ground_truth(name)
        timesteps = self.settings.ground_truth.timesteps
        rows = []
        for jobs in self.loss_jobs(self.query_images(name)):
            artifacts = [job.find(self.store) for job in jobs]
            if None in artifacts:
                missing = jobs[artifacts.index(None)]
                raise ArtifactError(f"The {missing.name} on {name} are missing; run the same command again.")
            losses = [found.load_tensors("losses")["losses"] for found in artifacts if found is not None]
            rows.append(torch.stack([band_means(values, timesteps) for values in losses]))
        return GroundTruth(self.masks, torch.stack(rows), bands_of(timesteps))

    def train_only(self, jobs: Sequence[TrainJob], task: Task) -> None:
        """Train some of the models that are not in the store."""
        save_images(self.store, self.train)
        self.run_jobs(task, jobs)

    def losses_of(self, queries: ImageSet, subset: int, seed: int) -> Tensor:
        """One trained model's losses, float32 ``(num_draws, num_timesteps, num_queries)``; measured if need be."""
        save_images(self.store, queries)
        job = self.loss_jobs(queries)[subset][seed]
        self.run_jobs(_no_task, [job])
        return job.load(self.store)

    def prepare(self) -> None:
        """Train, generate and measure all that is missing, under one bar for the whole of it."""
        if self.bundle is not None:
            if self.has_model:
                self._provide_target(_no_task)
            return
        generation = self.settings.generation
        passes = generation.num_images * generation.num_inference_steps
        ground_truth = self.settings.ground_truth
        losses = len(ground_truth.timesteps) * ground_truth.num_noise_draws * ground_truth.num_subsets
        losses *= ground_truth.num_seeds * (len(self.validation) + generation.num_images)
        models = self.target.cost + sum(job.cost for jobs in self.retrainings for job in jobs)
        count = 1 + ground_truth.num_subsets * ground_truth.num_seeds
        description = f"{self.label}: {count} models, queries and losses"
        with self.progress.task(description, models + passes + losses) as task:
            save_images(self.store, self.train)
            save_images(self.store, self.validation)
            # Who waits for the last models measures those that are there.
            self.train_models(task, [job for jobs in self.loss_jobs(self.validation) for job in jobs])
            self.queries("generation", task)
            self.measure_losses("generation", task)

    def models(self) -> TargetModels | None:
        """Target model and checkpoints, for methods that may see them; None where there are none."""
        return TargetModels(self.store, self.target) if self.has_model else None

    def train_job(self, name: str, indices: tuple[int, ...] | None, seed: int, num_checkpoints: int = 0) -> TrainJob:
        """A model trained on some train images, or on all (None): from scratch, or as LoRA on the base."""
        return TrainJob(
            name=name,
            train_hash=self.train.content_hash,
            image_shape=self.train.image_shape,
            indices=indices,
            num_images=len(self.train) if indices is None else len(indices),
            model=self.settings.model,
            training=self.settings.training,
            seed=seed,
            num_checkpoints=num_checkpoints,
            base=self.base,
        )

    def run_jobs(self, task: Task, *stages: Sequence[Job]) -> None:
        """Do the jobs that are not done, here or in worker processes; ``task`` advances by the cost of all.

        Args:
            stages: those of one may need those of the stages before. Of each, this process's shard comes first.
        """
        shard, missing = self.runtime.shard, list[Job]()
        for job in (jobs[number] for jobs in stages for number in shard.order(len(jobs))):
            if job.find(self.store) is None:
                missing.append(job)
            else:
                task.advance(job.cost)
        if missing:
            make_executor(missing, self.store, self.runtime, self.progress).run(missing, task)

    def distribute(self, parts: Sequence[Part], description: str) -> list[Artifact]:
        """Do independent parts of a method's work; see :class:`attribench.store.parts.Distribute`."""
        jobs = [PartJob(part) for part in parts]
        with self.progress.task(description, sum(job.cost for job in jobs)) as task:
            self.run_jobs(task, jobs)
        found = [job.find(self.store) for job in jobs]
        if None in found:
            raise ArtifactError(f"The {jobs[found.index(None)].name} are missing; run the same command again.")
        return [artifact for artifact in found if artifact is not None]

    def query_images(self, name: str, task: Task | None = None) -> ImageSet:
        """The images of a query set, with their ids.

        Raises:
            DataError: there is no such query set.
        """
        if name == "validation":
            return self.validation
        if name != "generation":
            raise DataError(f"Unknown query set {name!r}; known: {', '.join(QUERY_SETS)}.")
        return self._generated(task)

    def _sampling(self, images: ImageSet) -> Sampling | None:
        """How the generated queries were sampled; None where there is no model, or where they are called otherwise."""
        if isinstance(self.space, LatentSpace):
            return None  # of latents, and with guidance: no method follows that
        if not self.has_model or images.ids != generated_ids(len(images)):
            return None
        generation = self.settings.generation
        return Sampling(tuple(range(len(images))), generation.num_inference_steps, generation.eta)

    def _provide_target(self, task: Task) -> Artifact:
        target = self.target.find(self.store)
        if target is not None:
            return target
        save_images(self.store, self.train)
        if self.bundle is not None:
            return self.bundle.install_target(self.store, self.target)
        self.run_jobs(task, [self.target])
        return self._provide_target(task)

    def generation_spec(self, target: Artifact) -> dict[str, Any]:
        """Specification of the generated images; bound to the target model's weights."""
        return queries_spec(target, self.settings.generation, self.base)

    def _generated(self, task: Task | None) -> ImageSet:
        if self.bundle is not None:
            return self.bundle.queries("generation")
        self._provide_target(task or _no_task)
        job = QueriesJob(self.target, self.settings.generation)
        self.run_jobs(task or _no_task, [job])
        found = job.find(self.store)
        if found is None:
            raise ArtifactError(f"The {job.name} are not in {self.store.root}; run the same command again.")
        return self.generated_images(found)

    def generated_images(self, artifact: Artifact) -> ImageSet:
        """The images of a ``generated`` artifact, with their ids."""
        images = artifact.load_tensors("images")["images"]
        prompts = self.base.prompts if self.base is not None else ()
        captions = tuple(prompts_of(range(len(images)), prompts, len(images))) if prompts else None
        return ImageSet(images, generated_ids(len(images)), captions=captions)


def generated_ids(count: int) -> tuple[str, ...]:
    """The names of generated queries, by generator seed."""
    return tuple(f"generation-{seed}" for seed in range(count))


class TargetModels:
    """The :class:`~attribench.method.ModelProvider` of an experiment."""

    def __init__(self, store: ArtifactStore, target: TrainJob) -> None:
        self._store, self._target = store, target

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        """See :class:`attribench.gradients.distributed.PortableModels`."""
        return self._target.outcome

    def at(self, store: ArtifactStore) -> TargetModels:
        """The same from another store."""
        return TargetModels(store, self._target)

    def target_model(self) -> nn.Module:
        return self._target.load(self._store)

    def checkpoints(self) -> Iterator[nn.Module]:
        return (self._target.load_checkpoint(self._store, name) for name in self._target.checkpoint_names())


class _NoTask:
    def advance(self, amount: float = 1.0) -> None:
        pass


_no_task = _NoTask()
