"""What a grouped removal asks: which queries, in which groups, and what is known to be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribench.computing.progress import Progress
from attribench.computing.seeding import derive_seed
from attribench.configuration.resolution import Config
from attribench.data import AttributionDataModule, ImageSet
from attribench.data.planted import Planted
from attribench.errors import UsageError
from attribench.method import Queries
from attribench.settings import RemovalSettings, Runtime
from attribench.truth.experiment import Experiment
from attribench.truth.generation import GenerateJob
from attribench.truth.jobs import LossJob, TrainJob
from attribench.workflows.opening import open_experiment

_SEED = 42


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked.

    Attributes:
        experiment: data and setting; of ``copies``, with the copies among the train images.
        queries: the whole query set.
        chosen: its queries that are asked about, by number, group after group.
        names: of the groups, all of one size.
        sizes: how many images are removed.
        known: scores of what is known to be right, for the chosen queries ``(num_chosen, num_train)``; None if nothing is.
    """

    experiment: Experiment
    queries: Queries
    chosen: list[int]
    names: list[str]
    sizes: list[int]
    known: Tensor | None = None

    @property
    def groups(self) -> list[list[int]]:
        """The places of each group's queries among the chosen ones."""
        size = len(self.chosen) // len(self.names)
        return [list(range(number * size, (number + 1) * size)) for number in range(len(self.names))]

    @property
    def explained(self) -> Queries:
        """The chosen queries."""
        return self.queries.select(self.chosen)

    @property
    def image_set(self) -> ImageSet:
        """The chosen queries, as the store keeps them."""
        return ImageSet(self.explained.images, self.explained.ids, captions=self.explained.captions)

    @property
    def generated(self) -> bool:
        """Whether the queries can be generated again."""
        return self.queries.name == "generation"

    def loss_job(self, trained: TrainJob) -> LossJob:
        """The losses of one model on all chosen queries, with the noise of the ground truth."""
        truth = self.experiment.settings.ground_truth
        return LossJob(
            trained,
            self.image_set.content_hash,
            len(self.chosen),
            tuple(truth.timesteps),
            truth.num_noise_draws,
            derive_seed(truth.seed, "losses"),
        )

    def generate_job(self, trained: TrainJob) -> GenerateJob:
        """All chosen queries generated again by one model, each from its own noise."""
        return GenerateJob(trained, tuple(self.chosen), self.experiment.settings.generation)


def pose(config: Config, settings: RemovalSettings, runtime: Runtime, progress: Progress) -> Question:
    """Put the question to a data set.

    Raises:
        UsageError: it has not so many queries, or train images, or no classes where the question needs them.
    """
    question = {"generation": _alike, "class": _of_a_class, "copies": _copied}[settings.asked](
        config, settings, runtime, progress
    )
    num_train = len(question.experiment.train)
    if question.sizes[-1] >= num_train:
        raise UsageError(f"--removed {question.sizes[-1]} would leave nothing of {num_train} train images.")
    return question


def alike(images: Tensor, num_groups: int, group_size: int) -> list[list[int]]:
    """Groups of images that are alike: k-means of their pixels, then each centre takes the nearest, nearest pairs first.

    Args:
        images: uint8 ``(num_images, ...)``.
        num_groups: as many centres.
        group_size: images a group, all of other images than those of the others.

    Raises:
        UsageError: there are fewer images.
    """
    from sklearn.cluster import KMeans

    if num_groups * group_size > len(images):
        raise UsageError(
            f"{num_groups} groups of {group_size} need {num_groups * group_size} queries; there are {len(images)}."
        )
    pixels = images.flatten(1).double().numpy() / 255.0
    centres = KMeans(num_groups, n_init=10, random_state=_SEED).fit(pixels).cluster_centers_
    distances = np.linalg.norm(pixels[:, None] - centres[None], axis=2)
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    taken: set[int] = set()
    for place in np.argsort(distances, axis=None, kind="stable").tolist():
        image, centre = divmod(place, num_groups)
        if image not in taken and len(groups[centre]) < group_size:
            groups[centre].append(image)
            taken.add(image)
    return groups


def _alike(config: Config, settings: RemovalSettings, runtime: Runtime, progress: Progress) -> Question:
    experiment = open_experiment(config, runtime, progress)
    if not experiment.has_model:
        raise UsageError("This ground truth holds no model: there is nothing to compare retrained models with.")
    if settings.num_groups * settings.group_size > experiment.settings.generation.num_images:  # before they are made
        raise UsageError(
            f"{settings.num_groups} groups of {settings.group_size} are more than the "
            f"{experiment.settings.generation.num_images} generated images (--generation.num_images)."
        )
    generation = experiment.settings.generation
    cost = experiment.target.cost + generation.num_images * generation.num_inference_steps
    with progress.task(f"{experiment.label}: target model and queries", cost) as task:
        queries = experiment.queries("generation", task)
    groups = alike(queries.images, settings.num_groups, settings.group_size)
    count = len(experiment.train)
    sizes = list(settings.num_removed) or sorted({max(1, round(count * share)) for share in (0.05, 0.1, 0.2)})
    names = [f"group {number + 1}" for number in range(len(groups))]
    return Question(experiment, queries, [image for group in groups for image in group], names, sizes)


def _of_a_class(config: Config, settings: RemovalSettings, runtime: Runtime, progress: Progress) -> Question:
    experiment = open_experiment(config, runtime, progress)
    train, validation = experiment.train.labels, experiment.validation.labels
    if train is None or validation is None:
        raise UsageError(f"{experiment.label} has no classes to ask about.")
    chosen: list[int] = []
    names: list[str] = []
    counts: list[int] = []
    right: list[Tensor] = []
    # Where a class has fewer images than are removed, what goes beyond it is drawn at random.
    generator = torch.Generator().manual_seed(derive_seed(_SEED, "removals", "beyond a class"))
    others = torch.rand(len(train), generator=generator, dtype=torch.float64) / 2
    for label in sorted(set(validation.tolist()) & set(train.tolist())):
        of_class = (validation == label).nonzero().flatten().tolist()
        if len(of_class) >= settings.group_size and len(names) < settings.num_groups:
            chosen += of_class[: settings.group_size]
            names.append(f"class {label}")
            counts.append(int((train == label).sum()))
            right += [torch.where(train == label, 1.0, others)] * settings.group_size
    if len(names) < settings.num_groups:
        raise UsageError(
            f"{len(names)} classes of {experiment.label} have {settings.group_size} validation queries and train images; "
            f"--groups {settings.num_groups} are asked for."
        )
    largest = max(counts)
    sizes = list(settings.num_removed) or sorted({max(1, largest // 4), max(1, largest // 2), largest})
    for name, count in zip(names, counts, strict=True):
        if count < sizes[-1]:
            progress.message(f"{name} has {count} train images: of {sizes[-1]} removed, the rest are of other classes.")
    queries = Queries.of(experiment.validation, "validation")
    return Question(experiment, queries, chosen, names, sizes, torch.stack(right))


def _copied(config: Config, settings: RemovalSettings, runtime: Runtime, progress: Progress) -> Question:
    whole: AttributionDataModule = config.data_class(**config.data)
    count = settings.num_groups * settings.group_size
    if count > len(whole.validation):
        raise UsageError(
            f"{settings.num_groups} groups of {settings.group_size} are more than the {len(whole.validation)} validation "
            "queries."
        )
    generator = torch.Generator().manual_seed(derive_seed(_SEED, "removals", "planted"))
    chosen = torch.randperm(len(whole.validation), generator=generator)[:count].tolist()
    experiment = Experiment(Planted(whole, chosen, settings.num_copies), config.settings, runtime, progress)
    # All but one copy of each, and all: what is removed in between says how much each copy counts.
    copies = settings.group_size * settings.num_copies
    sizes = list(settings.num_removed) or sorted({max(1, copies // 2), copies - settings.group_size, copies})
    first = len(whole.train)
    known = torch.zeros(count, len(experiment.train), dtype=torch.float64)
    for place in range(count):
        known[place, first + place :: count] = 1.0
    names = [f"copies {number + 1}" for number in range(settings.num_groups)]
    return Question(experiment, Queries.of(experiment.validation, "validation"), chosen, names, sizes, known)
