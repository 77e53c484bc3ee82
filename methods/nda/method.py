"""The method: NDA's patch scores, combined over timesteps, noise draws and two resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from attribench.computing.precision import float64_device
from attribench.diffusion.noise import NUM_TIMESTEPS, sample_noise
from attribench.errors import AttribenchError, UsageError, nearest
from attribench.gradients.budget import shortage
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Queries, SpatialEvidence
from attribench.methods.nda.patches import check_patch_size
from attribench.methods.nda.saved import SavedState
from attribench.methods.nda.scorers import ENGINES, FastScorer, PatchScorer
from attribench.methods.nda.search import TIMESTEPS, search_per_timestep
from attribench.methods.nda.task import PatchTask
from attribench.registry import register_method

if TYPE_CHECKING:
    from attribench.methods.nda.distributed import DistributedScorer

T = TypeVar("T", int, float)

#: Scores of single tasks held at once: 64 MiB of float64.
_MAX_SCORES = 2**23


@dataclass(frozen=True)
class _Term:
    """One summand of the score: a timestep at one resolution."""

    timestep: int
    patch_size: int
    downsample: int
    weight: float


@register_method("nda")
class NDA(AttributionMethod):
    """Nonparametric data attribution: compares patches of the noisy query with train images; needs no model.

    Every patch of the noised query divides a weight of 1 among all patches of all train images, by the posterior that
    each is what the patch was before the noise (arXiv 2510.14269). A train image's score at a timestep and resolution
    is the weight it gets from all patches, so it lies between 0 and their number. Scores are averaged over timesteps
    and noise draws. All queries share the noise of a timestep.

    Args:
        timesteps: diffusion timesteps, each in 0..999; above 500 there is little but noise.
        patch_size: side of the patches at full resolution, one for all timesteps or one a timestep. May exceed the
            image; should grow with the timestep.
        low_resolution_patch_size: side of the patches, in pixels of the full image, that are compared at half
            resolution; even; one for all timesteps or one a timestep; null for full resolution alone.
        alpha: weight of the full-resolution score, in [0, 1], the low-resolution score having 1 - alpha; one for all
            timesteps or one a timestep. A score of weight 0 is not computed. Without low resolution it has no effect.
        top_k: how many patches of a train image count for each patch of the query: the best matching ones.
        noise_draws: draws of noise a timestep to average over.
        flips: compare with every train image mirrored as well, as a model trained with horizontal flips saw them; a
            train image's score is then that of the image and of its mirror image together.
        engine: how the scores are computed: ``fast``, or ``convolution``, the readable reference; they agree up to
            rounding.

    Raises:
        UsageError: an option is out of range, or has neither one value nor one a timestep.
    """

    access = Access.DATA
    takes_latents = True
    search_from: ClassVar[Mapping[str, Sequence[int]]] = {"timesteps": TIMESTEPS}

    def __init__(
        self,
        timesteps: Sequence[int] = (100, 200, 300, 400, 500),
        patch_size: int | Sequence[int] = (7, 9, 11, 15, 21),
        low_resolution_patch_size: int | Sequence[int] | None = (14, 14, 18, 22, 22),
        alpha: float | Sequence[float] = 0.5,
        top_k: int = 100,
        noise_draws: int = 1,
        flips: bool = False,
        engine: Literal["fast", "convolution"] = "fast",
    ) -> None:
        if not timesteps:
            raise UsageError("timesteps: at least one is needed.")
        for timestep in timesteps:
            if not 0 <= timestep < NUM_TIMESTEPS:
                raise UsageError(f"timesteps: each must lie in 0..{NUM_TIMESTEPS - 1}; got {timestep}.")
        for name, count in (("top_k", top_k), ("noise_draws", noise_draws)):
            if count < 1:
                raise UsageError(f"{name} must be at least 1; got {count}.")
        if engine not in ENGINES:
            raise UsageError(f"Unknown engine {engine!r}.{nearest(engine, ENGINES)} Known: {', '.join(ENGINES)}.")
        self._terms = _terms(timesteps, patch_size, low_resolution_patch_size, alpha)
        self._num_timesteps = len(timesteps)
        self._top_k, self._noise_draws, self._flips, self._engine = top_k, noise_draws, flips, engine
        self._device = torch.device("cpu")
        self._scorer: PatchScorer | None = None
        self._distributed: DistributedScorer | None = None

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose patch sizes and α a timestep, the timesteps, and top-k."""
        return search_per_timestep(evaluate, options)

    def prepare(self, context: AttributionContext) -> None:
        """Give the train images to the engine."""
        self._device = float64_device(context.device)  # which sums over patches need
        compared = self._compared(context.train_images)
        self._scorer = ENGINES[self._engine](compared, self._device)
        if context.distribute is not None and self._engine == "fast":
            from attribench.methods.nda.distributed import DistributedScorer

            if DistributedScorer.fits(compared):
                self._distributed = DistributedScorer(compared, context.store, context.distribute, self._device)

    @property
    def distributes(self) -> bool:
        """Where there are so many train images that they are read twice."""
        return self._distributed is not None

    def attribute(self, queries: Queries) -> Tensor:
        """Return float32 scores ``(num_queries, num_train)``, nonnegative; see the class."""
        if self._scorer is None:
            raise AttribenchError("NDA is not prepared: call start(method, context) first.")
        num_train = len(self.context.train)
        images = queries.unit_range()
        weights = self._weights()
        tasks_per_query, copies = len(weights), 2 if self._flips else 1
        # Scores of every task are kept until they are summed: bounded, whatever the number of queries.
        together = max(1, _MAX_SCORES // (tasks_per_query * copies * num_train))
        scores = torch.empty(len(images), num_train)
        pairs = "query × train image"
        with self.context.progress.task("comparing patches", len(images) * num_train, pairs) as progress:
            for begin in range(0, len(images), together):
                part = images[begin : begin + together]
                tasks = [task for image in part for task in self._tasks(image)]
                if self._distributed is None:
                    saved = SavedState.of(self.context.store, tasks, self.context.train, flips=self._flips)
                    found = self._scorer(tasks, lambda done: progress.advance(done / tasks_per_query / copies), saved)
                else:
                    found = self._distributed(tasks)
                    progress.advance(len(part) * num_train)
                found = found.reshape(len(part), tasks_per_query, copies, num_train).sum(dim=2)
                # Term by term: a matrix product's last bits would depend on where an image stands.
                total = torch.zeros(len(part), num_train, dtype=torch.float64)
                for weight, term in zip(weights, found.unbind(1), strict=True):
                    total += weight * term
                scores[begin : begin + together] = total
        return scores

    def explain(self, query: Queries, indices: Sequence[int]) -> list[SpatialEvidence]:
        """Show which regions of the query and of the train images make up the scores, and the patches that match.

        Works with either engine, by the fast one.
        """
        from attribench.methods.nda.explanation import explain, require_memory, with_mirrored

        (image,) = query.unit_range()
        tasks, train, chosen = self._tasks(image), self._compared(self.context.train_images), list(indices)
        require_memory(tasks)
        labels = [
            f"t = {term.timestep}, {term.patch_size}×{term.patch_size}{' at half resolution' if term.downsample == 2 else ''}"
            for term in self._terms
            for _ in range(self._noise_draws)
        ]
        scorer = self._scorer if isinstance(self._scorer, FastScorer) else FastScorer(train, self._device)
        with self.context.progress.task("weighing all train images", len(tasks) * len(train)) as progress:
            totals = scorer.normalisers(tasks, progress.advance)
        found = explain(tasks, self._weights(), labels, totals, train[chosen])
        if not self._flips:
            return found
        mirrored = explain(tasks, self._weights(), labels, totals, train[chosen].flip(-1))
        return [with_mirrored(*both) for both in zip(found, mirrored, strict=True)]

    def _compared(self, images: Tensor) -> Tensor:
        """What the patches of a query are compared with: the train images, and with ``flips`` their mirror images after them.

        Raises:
            AttribenchError: the mirror images do not fit into memory.
        """
        if not self._flips:
            return images
        reason = shortage(
            "Train images with their mirror images", 2 * images.nbytes, torch.device("cpu"),
            remedy="Compare without --method.flips.",
        )  # fmt: skip
        if reason is not None:
            raise AttribenchError(reason)
        return torch.cat([images, images.flip(-1)])

    def _weights(self) -> list[float]:
        """Of every task of a query in its score."""
        share = 1.0 / (self._num_timesteps * self._noise_draws)
        return [term.weight * share for term in self._terms for _ in range(self._noise_draws)]

    def _tasks(self, image: Tensor) -> list[PatchTask]:
        """What to ask for one query: every term and noise draw."""
        schedule, seed = self.context.schedule, self.context.seed
        tasks = []
        for term in self._terms:
            for draw in range(self._noise_draws):
                # "nda" stands where a sample's id would: one draw of a timestep serves all queries.
                noise = sample_noise(seed, "nda", term.timestep, draw, image.shape)
                noisy = schedule.add_noise(image, noise, term.timestep)
                alpha_bar = schedule.alpha_bar[term.timestep].item()
                tasks.append(PatchTask(noisy, alpha_bar, term.patch_size, self._top_k, term.downsample))
        return tasks


def _terms(
    timesteps: Sequence[int],
    patch_size: int | Sequence[int],
    low_resolution_patch_size: int | Sequence[int] | None,
    alpha: float | Sequence[float],
) -> list[_Term]:
    """The summands of a score, those of weight 0 left out; checks the options on the way."""
    count = len(timesteps)
    full_sizes = _each("patch_size", patch_size, count)
    weights = _each("alpha", alpha, count)
    for weight in weights:
        if not 0.0 <= weight <= 1.0:
            raise UsageError(f"alpha must lie in [0, 1]; got {weight}.")
    for size in full_sizes:
        check_patch_size(size, downsample=1)
    if low_resolution_patch_size is None:
        return [_Term(timestep, size, 1, 1.0) for timestep, size in zip(timesteps, full_sizes, strict=True)]
    low_sizes = _each("low_resolution_patch_size", low_resolution_patch_size, count)
    for size in low_sizes:
        check_patch_size(size, downsample=2)
    terms = []
    for timestep, full_size, low_size, weight in zip(timesteps, full_sizes, low_sizes, weights, strict=True):
        terms += [_Term(timestep, full_size, 1, weight), _Term(timestep, low_size, 2, 1.0 - weight)]
    return [term for term in terms if term.weight > 0.0]


def _each(name: str, value: T | Sequence[T], count: int) -> Sequence[T]:
    """One value a timestep, from one for all or a list."""
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name}: {len(value)} values for {count} timesteps; give one for all, or one a timestep.")
    return value
