"""The interface every attribution method stands behind, and what a method is given to work with."""

from __future__ import annotations

import enum
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from attribench.computing.progress import Progress, silent_progress
from attribench.data import ImageSet, to_unit_range
from attribench.diffusion.inputs import ModelInputs, PixelInputs
from attribench.errors import AccessError, AttribenchError, DataError, UsageError
from attribench.store.parts import Distribute
from attribench.store.shared import SharedStore

if TYPE_CHECKING:
    from attribench.diffusion.noise import NoiseSchedule
    from attribench.store.artifacts import ArtifactStore


class Access(enum.IntEnum):
    """What a method may look at. Each level includes the ones before it."""

    DATA = 0  #: train images, labels and queries alone: no model is needed
    MODEL = 1  #: the trained target model as well
    CHECKPOINTS = 2  #: the checkpoints stored during the target model's training as well
    RETRAINED = 3  #: models retrained on subsets as well, other ones than those it is judged on


@dataclass(frozen=True)
class Sampling:
    """How queries were sampled from the target model by DDIM: all that is needed to go the same way again.

    :func:`attribench.diffusion.trajectory.ddim_trajectory` goes it. Bits may differ from those of another machine or batch.

    Args:
        seeds: of the generator that each query's noise comes from.
        num_inference_steps: DDIM's.
        eta: DDIM's η.
    """

    seeds: tuple[int, ...]
    num_inference_steps: int
    eta: float = 0.0

    def select(self, indices: Sequence[int]) -> Sampling:
        """Of the queries at ``indices``, in that order."""
        return replace(self, seeds=tuple(self.seeds[i] for i in indices))


@dataclass(frozen=True, eq=False)
class Queries:
    """The images to explain.

    Args:
        images: uint8 ``(num_queries, channels, height, width)``, or float32 latents.
        ids: one stable name a query.
        name: the query set: ``"validation"``, ``"generation"``, or a name of the caller's.
        sampling: how the target model made them; None for images that it did not make, or that nobody knows this of.
        labels: int64 ``(num_queries,)``, or None when the queries have no classes.
        captions: one a query, None for a query without; or None when they have no captions.
        latent: whether ``images`` are latents, which the model works on, in place of pixels.
    """

    images: Tensor
    ids: tuple[str, ...]
    name: str = "queries"
    sampling: Sampling | None = None
    labels: Tensor | None = None
    captions: tuple[str | None, ...] | None = None
    latent: bool = False

    def __post_init__(self) -> None:
        ImageSet(self.images, self.ids, self.labels, self.captions, self.latent)  # the same checks hold
        if self.sampling is not None and len(self.sampling.seeds) != len(self.images):
            raise DataError(
                f"{len(self.images)} queries but {len(self.sampling.seeds)} seeds that they were sampled from."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> Queries:
        return self.select(range(len(self))[index])

    def select(self, indices: Sequence[int]) -> Queries:
        """The queries at ``indices``, in that order."""
        chosen = list(indices)
        sampling = self.sampling.select(chosen) if self.sampling else None
        labels = None if self.labels is None else self.labels[chosen]
        captions = self.captions and tuple(self.captions[i] for i in chosen)
        ids = tuple(self.ids[i] for i in chosen)
        return Queries(self.images[chosen], ids, self.name, sampling, labels, captions, self.latent)

    @classmethod
    def of(cls, images: ImageSet, name: str, sampling: Sampling | None = None) -> Queries:
        """Take the images of a set as queries."""
        return cls(images.images, images.ids, name, sampling, images.labels, images.captions, images.latent)

    def unit_range(self) -> Tensor:
        """Pixels as float32 in [-1, 1], ``(num_queries, C, H, W)``; latents as they are."""
        return self.images if self.latent else to_unit_range(self.images)


@dataclass(frozen=True)
class Match:
    """A patch of the query and the patch of a train image it matches.

    Args:
        query_box: (top, left, height, width) in pixels, within the image.
        train_box: likewise.
        weight: what the pair adds to the score.
        label: what was compared, e.g. ``"t = 100, 7×7"``.
    """

    query_box: tuple[int, int, int, int]
    train_box: tuple[int, int, int, int]
    weight: float
    label: str = ""


@dataclass(frozen=True, eq=False)
class SpatialEvidence:
    """Where in the two pictures a score comes from. Each map sums to the score.

    Args:
        query_map: float64 ``(height, width)``: how much of the score each region of the query accounts for.
        train_map: float64 ``(height, width)``: how much of it the train image's regions get.
        matches: the strongest pairs of patches, strongest first.
    """

    query_map: Tensor
    train_map: Tensor
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True)
class Needs:
    """What a method takes, estimated before any of it is done.

    Args:
        memory: bytes at the peak, beside what is in use already: images and model.
        disk: bytes that will be kept, beside those that are.
        seconds: of computing.
    """

    memory: int
    disk: int
    seconds: float


class Evaluate(Protocol):
    """What a search measures options with."""

    def __call__(self, options: Mapping[str, Any]) -> float:
        """The mean LDS, in −1…1, of these options on the choosing data."""


class ModelProvider(Protocol):
    """Where a context gets models from; the benchmark's implementation trains or loads them."""

    def target_model(self) -> nn.Module:
        """The trained target model: called with noisy images, timesteps and what ``inputs.conditions`` gives.

        What comes back has what it predicts as ``sample``, see ``schedule.prediction_type``. In the benchmark it is an
        epsilon-predicting ``UNet2DModel`` that is told nothing.
        """

    def checkpoints(self) -> Iterator[nn.Module]:
        """The models stored during the target model's training, in order of training."""


@dataclass(frozen=True, eq=False)
class RetrainedModels:
    """Models retrained on subsets of the train images. A method is never judged on those it is given.

    Args:
        masks: bool ``(num_models, num_train)``: the train images each model was trained on, one model a subset.
        losses: gives each model's loss on some queries of the benchmark, float64 ``(num_models, num_queries)``, averaged
            over training seeds, timesteps and noise.
    """

    masks: Tensor
    losses: Callable[[Queries], Tensor]

    def __len__(self) -> int:
        return len(self.masks)


@dataclass(frozen=True, eq=False)
class AttributionContext:
    """Everything a method may use on the train side.

    Args:
        train: the train images the scores refer to; column ``n`` of a score matrix is image ``n``.
        schedule: the diffusion noise schedule (``schedule.alpha_bar[t]`` is ᾱ_t), and what the model predicts
            (``schedule.target``).
        device: where heavy computation belongs.
        seed: root of the run's seeds; derive yours with :func:`attribench.derive_seed`.
        store: artifact store of this method, for expensive results worth keeping between runs; edited code finds them
            again, unless a number in the specification is raised.
        progress: progress display: ``for x in context.progress.track(items, "reading")``.
        access: what the method declared; enforced by :meth:`target_model` and :meth:`checkpoints`.
        models: where models come from, or None where there is no model (attribution of one's own folders).
        shared: what methods that may see the model keep in common; None keeps it with the method's own. Use
            :meth:`shared_store`.
        retrained: models retrained on subsets; use :meth:`retrained_models`.
        inputs: how images enter the model: the space that noise is added in, and what the network is told beside.
        distribute: has independent parts of the method's work done on other machines; None where there are none.
    """

    train: ImageSet
    schedule: NoiseSchedule
    device: torch.device
    seed: int
    store: ArtifactStore
    access: Access
    models: ModelProvider | None = None
    progress: Progress = silent_progress
    shared: SharedStore | None = None
    retrained: RetrainedModels | None = None
    inputs: ModelInputs = field(default_factory=PixelInputs)
    distribute: Distribute | None = None

    @property
    def train_images(self) -> Tensor:
        """uint8 ``(num_train, C, H, W)``, or float32 latents."""
        return self.train.images

    @property
    def train_labels(self) -> Tensor | None:
        """int64 ``(num_train,)``, or None."""
        return self.train.labels

    def target_model(self) -> nn.Module:
        """The trained target model on ``device``, in evaluation mode.

        Raises:
            AccessError: the method declared ``Access.DATA``.
        """
        return self._provider(Access.MODEL, "target_model()").target_model().to(self.device).eval()

    def checkpoints(self) -> Iterator[nn.Module]:
        """Iterate over the target model's training checkpoints, oldest first, on ``device``, in evaluation mode.

        Raises:
            AccessError: the method declared less than ``Access.CHECKPOINTS``.
        """
        provider = self._provider(Access.CHECKPOINTS, "checkpoints()")
        return (model.to(self.device).eval() for model in provider.checkpoints())

    def retrained_models(self) -> RetrainedModels:
        """Models retrained on subsets, other ones than those the method is judged on.

        Raises:
            AccessError: the method declared less than ``Access.RETRAINED``.
        """
        self._require(Access.RETRAINED, "retrained_models()")
        if self.retrained is None:
            raise AttribenchError("retrained_models(): no model was retrained on subsets in this run.")
        return self.retrained

    def shared_store(self) -> SharedStore:
        """Where results made from the model, such as gradient features, are kept for every method that may see it.

        Raises:
            AccessError: the method declared ``Access.DATA``: what was made from the model tells about the model.
        """
        self._require(Access.MODEL, "shared_store()")
        return self.shared or SharedStore(self.store)

    def _require(self, needed: Access, what: str) -> None:
        if self.access < needed:
            raise AccessError(f"{what} needs access = Access.{needed.name}; this method declares {self.access.name}.")

    def _provider(self, needed: Access, what: str) -> ModelProvider:
        self._require(needed, what)
        if self.models is None:
            raise AttribenchError(f"{what}: there is no model in this run; use a method with access = Access.DATA.")
        return self.models


class AttributionMethod(ABC):
    """Scores how strongly each train image shaped each query.

    Subclass it, declare ``access``, implement :meth:`attribute`. The parameters of ``__init__`` are the method's whole
    configuration: typed, they appear as ``--method.NAME`` on the command line with help from the docstring. Their values are
    recorded, so they are such as :func:`attribench.store.json_values.json_value` takes.
    """

    access: ClassVar[Access]
    #: Whether a method that compares images can be given latents in place of pixels: float32, of any number of channels.
    takes_latents: ClassVar[bool] = False
    #: What ``attribench tune`` tries: option → values, searched as a full grid unless :meth:`search` is overridden.
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {}
    #: For a :meth:`search` of its own: option → the values it chooses among. It is shown these, or what the caller set by hand,
    #: in place of the configured ones, so that what an earlier search left of them limits no later one.
    search_from: ClassVar[Mapping[str, Sequence[Any]]] = {}
    _context: AttributionContext | None = None

    @property
    def context(self) -> AttributionContext:
        """What the method works with; set by the framework before :meth:`prepare`."""
        if self._context is None:
            raise AttribenchError(f"{type(self).__name__} has no context yet: call start(method, context) first.")
        return self._context

    def prepare(self, context: AttributionContext) -> None:  # noqa: B027 - an optional hook
        """Do the train side's work once, before any query. Optional."""

    @abstractmethod
    def attribute(self, queries: Queries) -> Tensor:
        """Return scores ``(num_queries, num_train)``, float, finite; higher = stronger proponent.

        The scores of a query must not depend on the queries beside it. float64 and float32 are ranked as they are; see
        :func:`real_scores` for other types.
        """

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Say in one line why this method cannot run here, or return None. Optional; never raise for that."""
        return None

    def needs(self, context: AttributionContext, num_queries: int) -> Needs | None:
        """Estimate memory, disk and time before any work, or return None where they are not worth a word. Optional.

        A quick trial, of a second or so, is allowed: that is how time is known. What :meth:`skip_reason` refuses for lack of
        memory or disk is a part of this.
        """
        return None

    def undefined_on(self, queries: Queries) -> str | None:
        """Say in one line why this method has no scores for such queries, or return None. Optional; never raise for that.

        Their cells stay missing in every table, with this reason; other query sets are scored. It is about the kind of
        queries (:attr:`Queries.sampling`, :attr:`Queries.name`): a whole set and each part of it get one answer. Asked
        before :meth:`prepare`; :meth:`attribute` is never called with queries that it gives a reason for.
        """
        return None

    @property
    def distributes(self) -> bool:
        """Whether :meth:`attribute` has its work done by the context's ``distribute``. Asked after :meth:`prepare`. Optional.

        If not, and there are other machines, these are given whole pieces of the queries.
        """
        return False

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose options for ``attribench tune``; by default the best of the full grid of :attr:`search_space`. Optional.

        Args:
            evaluate: gives the mean LDS (−1…1, higher is better) that options have on the choosing data.
            options: the configuration at hand; what the search leaves out keeps this value. Options in :attr:`search_from`
                hold all that is to be tried.

        Returns:
            The chosen options; of equally good ones the first tried.
        """
        names = list(cls.search_space)
        grid = [dict(zip(names, values, strict=True)) for values in itertools.product(*cls.search_space.values())]
        return max(grid, key=evaluate)

    def explain(self, query: Queries, indices: Sequence[int]) -> list[SpatialEvidence]:
        """Show where in the pictures the scores of a query come from, for methods that know. Optional.

        Args:
            query: a single one.
            indices: the train images to explain, by number.

        Returns:
            One for each of ``indices``.

        Raises:
            UsageError: the method has no spatial evidence; so says every method that does not override this.
        """
        raise UsageError(f"{type(self).__name__} compares images as a whole: it has no evidence by region to show.")

    def inputs_hash(self) -> str:
        """Identify by their content the files that scores depend on and that only their path names. Optional.

        Called after :meth:`skip_reason`. Stored scores of another hash are not used.
        """
        return ""


def start(method: AttributionMethod, context: AttributionContext) -> None:
    """Give ``method`` its context and let it prepare. Called once, before :func:`score`."""
    method._context = context
    method.prepare(context)


def score(method: AttributionMethod, queries: Queries) -> Tensor:
    """Call ``method.attribute`` and check what comes back.

    Returns:
        float32 or float64 scores ``(num_queries, num_train)`` on the CPU; see :func:`real_scores`.

    Raises:
        UsageError: the method is not defined on such queries.
        DataError: the queries are not of the train images' shape.
        AttribenchError: the scores have another shape, are not real numbers, or not finite.
    """
    name = type(method).__name__
    reason = method.undefined_on(queries)
    if reason is not None:
        raise UsageError(f"{name} is not defined on the query set '{queries.name}': {reason}")
    train = method.context.train
    if queries.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"Query set '{queries.name}' has images of shape {tuple(queries.images.shape[1:])}, the train images have "
            f"{train.image_shape} (channels, height, width)."
        )
    scores = method.attribute(queries)
    expected = (len(queries), len(train))
    if not isinstance(scores, Tensor):
        raise AttribenchError(f"{name}.attribute returned a {type(scores).__name__}; expected a tensor.")
    if tuple(scores.shape) != expected:
        raise AttribenchError(f"{name}.attribute returned shape {tuple(scores.shape)}; expected {expected}.")
    if scores.is_complex():
        raise AttribenchError(f"{name}.attribute returned complex scores ({scores.dtype}): they have no order.")
    scores = real_scores(scores)
    if not torch.isfinite(scores).all():
        raise AttribenchError(f"{name}.attribute returned NaN or infinite scores.")
    return scores


def real_scores(scores: Tensor) -> Tensor:
    """Scores on the CPU, in a type that loses none of their order.

    float64 and float32 stay, shorter floating point becomes float32, integers and bool become float64 (exact up to 2^53).
    """
    if not scores.is_floating_point():
        dtype = torch.float64
    else:
        dtype = scores.dtype if scores.dtype in (torch.float32, torch.float64) else torch.float32
    return scores.detach().to("cpu", dtype)
