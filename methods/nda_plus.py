"""NDA and influence in the local score machine, mixed term by term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from attribench.data import ImageSet
from attribench.diffusion.noise import NUM_TIMESTEPS
from attribench.errors import UsageError, nearest
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Queries, start
from attribench.methods.nda import NDA
from attribench.methods.nda.patches import check_patch_size
from attribench.methods.nda.search import LOW_RESOLUTION_PATCH_SIZES, PATCH_SIZES, TIMESTEPS, TOP_KS
from attribench.methods.score_machine import ScoreMachine
from attribench.methods.score_machine.machine import ORDERS, Order, check_odd
from attribench.methods.score_machine.search import TIMESTEPS as MACHINE_TIMESTEPS
from attribench.registry import register_method
from attribench.store.artifacts import Staging
from attribench.store.code import method_hash

T = TypeVar("T", int, float)

ENGINES = ("fast", "reference")

#: A term whose standard deviation over the train images is below this, in patches of NDA's or in squared error of pixels in
#: [-1, 1], does not tell them apart: what is left is rounding.
LEAST_SPREAD = 1e-6

#: What the search tries as a term's weight.
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
#: How often the search goes over all terms, at most.
ROUNDS = 2


@dataclass(frozen=True)
class Term:
    """A summand of the score: what is compared at one timestep, with patches of one size.

    Args:
        kind: ``nda`` or ``influence``.
        timestep: of the diffusion.
        patch_size: side of the patches, in pixels of the full image.
        downsample: 1, or 2 for NDA at half resolution.
    """

    kind: Literal["nda", "influence"]
    timestep: int
    patch_size: int
    downsample: int = 1


@register_method("nda-plus")
class NDAPlus(AttributionMethod):
    """NDA mixed with influence in the machine that it takes its weights from (arXiv 2510.14269, 2412.20292); needs no model.

    A score is a weighted sum of terms, each one timestep and patch size of ``nda`` or of ``score-machine``. For every query, a
    term is divided by its own standard deviation over the train images, so that weights compare; a term that does not tell
    them apart is left out. A timestep may come several times: that is how it gets several patch sizes and resolutions.

    NDA's and the machine's formulas are published; the influence and the mixture are ours.

    Args:
        timesteps: of NDA's terms, each in 0..999; none leaves NDA out.
        patch_size: side of the patches of NDA's terms, one for all or one a term; even at half resolution.
        downsample: resolution of NDA's terms, 1 for the full one, 2 for half; one for all or one a term.
        weight: of NDA's terms, not negative; one for all or one a term. A term of weight 0 is not computed.
        influence_timesteps: of the machine's terms; none leaves the machine out.
        influence_patch_size: side of the patches of the machine's terms, odd; one for all or one a term.
        influence_weight: of the machine's terms, not negative; one for all or one a term.
        order: of the influence, ``first`` or ``leave-one-out``; see ``score-machine``.
        top_k: how many patches of a train image count for NDA, for each patch of the query.
        noise_draws: draws of noise a timestep to average over.
        flips: compare with mirror images of train images as well, as a model trained with horizontal flips saw them.
        engine: how patches are compared: ``fast``, or ``reference``, the readable one; they agree up to rounding.
        keep_terms: keep the scores of every term in the store, where other mixtures of the same terms find them. It is for
            searches: a run that finds them looks cheaper than it is, and they take as much space as the scores, each.

    Raises:
        UsageError: an option is out of range, has neither one value nor one a term, or no term is left.
    """

    access = Access.DATA
    takes_latents = True
    search_from: ClassVar[Mapping[str, Sequence[int]]] = {
        "timesteps": TIMESTEPS,
        "influence_timesteps": MACHINE_TIMESTEPS,
    }

    def __init__(
        self,
        timesteps: Sequence[int] = (100, 200, 300, 400, 500, 100, 200, 300, 400, 500),
        patch_size: int | Sequence[int] = (7, 9, 11, 15, 21, 14, 14, 18, 22, 22),
        downsample: int | Sequence[int] = (1, 1, 1, 1, 1, 2, 2, 2, 2, 2),
        weight: float | Sequence[float] = 1.0,
        influence_timesteps: Sequence[int] = (300, 500),
        influence_patch_size: int | Sequence[int] = (11, 21),
        influence_weight: float | Sequence[float] = 1.0,
        order: Order = "first",
        top_k: int = 100,
        noise_draws: int = 1,
        flips: bool = False,
        engine: Literal["fast", "reference"] = "fast",
        keep_terms: bool = False,
    ) -> None:
        count = len(timesteps)
        sizes = _each("patch_size", patch_size, count)
        scales, weights = _each("downsample", downsample, count), _each("weight", weight, count)
        influence_count = len(influence_timesteps)
        influence_sizes = _each("influence_patch_size", influence_patch_size, influence_count)
        influence_weights = _each("influence_weight", influence_weight, influence_count)
        _check_timesteps("timesteps", timesteps)
        _check_timesteps("influence_timesteps", influence_timesteps)
        _check_weights("weight", weights)
        _check_weights("influence_weight", influence_weights)
        for size, scale in zip(sizes, scales, strict=True):
            check_patch_size(size, scale)
        for size in influence_sizes:
            check_odd(size, "influence_patch_size")
        for name, value, known in (("order", order, ORDERS), ("engine", engine, ENGINES)):
            if value not in known:
                raise UsageError(f"Unknown {name} {value!r}.{nearest(value, known)} Known: {', '.join(known)}.")
        for name, number in (("top_k", top_k), ("noise_draws", noise_draws)):
            if number < 1:
                raise UsageError(f"{name} must be at least 1; got {number}.")
        own = [Term("nda", *term) for term in zip(timesteps, sizes, scales, strict=True)]
        own += [Term("influence", *term) for term in zip(influence_timesteps, influence_sizes, strict=True)]
        every = zip(own, [*weights, *influence_weights], strict=True)
        self._terms = [(term, share) for term, share in every if share > 0.0]
        if not self._terms:
            raise UsageError("No term has a weight: give timesteps or influence_timesteps with a weight above 0.")
        self._order, self._top_k, self._noise_draws, self._flips = order, top_k, noise_draws, flips
        self._engine, self._keep_terms = engine, keep_terms

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the terms and their weights, then top-k; see :func:`search_terms`."""
        return search_terms(evaluate, options)

    def prepare(self, context: AttributionContext) -> None:
        """Compile what the terms need."""
        for term in {term.kind: term for term, _ in self._terms}.values():
            start(self._method(term), context)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 scores ``(num_queries, num_train)``, signed where a term is; in units of standard deviations."""
        total = torch.zeros(len(queries), len(self.context.train), dtype=torch.float64)
        for term, weight in self._terms:
            scores = self._scores(term, queries).to(torch.float64)
            spread = scores.std(dim=1, correction=0, keepdim=True)
            total += weight * torch.where(spread > LEAST_SPREAD, scores / spread.clamp(min=LEAST_SPREAD), 0.0)
        return total

    def _scores(self, term: Term, queries: Queries) -> Tensor:
        """The scores of one term; with ``keep_terms`` from the store, if they are there."""
        if not self._keep_terms:
            return self._computed(term, queries)
        options = {"order": self._order} if term.kind == "influence" else {"top_k": self._top_k}
        spec = {
            "code": method_hash(type(self)),
            "train": self.context.train.content_hash,
            "queries": ImageSet(queries.images, queries.ids, latent=queries.latent).content_hash,
            **self.context.schedule.spec,
            "seed": self.context.seed,
            "term": {**asdict(term), **options, "noise_draws": self._noise_draws, "flips": self._flips},
            "engine": self._engine,
        }

        def build(staging: Staging) -> None:
            staging.save_tensors("scores", {"scores": self._computed(term, queries)})

        return self.context.store.get_or_create("terms", spec, build).load_tensors("scores")["scores"]

    def _computed(self, term: Term, queries: Queries) -> Tensor:
        # One after the other: with flips, each holds the train images and their mirror images.
        method = self._method(term)
        start(method, self.context)
        return method.attribute(queries)

    def _method(self, term: Term) -> NDA | ScoreMachine:
        if term.kind == "influence":
            return ScoreMachine(
                [term.timestep], term.patch_size, self._order, "uniform", self._noise_draws, flips=self._flips,
                engine="fast" if self._engine == "fast" else "reference",
            )  # fmt: skip
        full = term.downsample == 1
        return NDA(
            [term.timestep],
            term.patch_size,
            None if full else term.patch_size,
            1.0 if full else 0.0,
            self._top_k,
            self._noise_draws,
            self._flips,
            "fast" if self._engine == "fast" else "convolution",
        )


def search_terms(evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the terms of a mixture, and their weights, one after the other, by the LDS of the whole; then top-k.

    Timesteps are those of ``options``: NDA's and the machine's own lists, or the caller's. Every patch size is measured alone
    first. Of every timestep of NDA's, the two best ones at full resolution and the best one at half resolution go into the
    pool; of the machine's, the best one. The search begins with NDA's best of every timestep at weight 1, and goes over the
    pool, giving each term the best of :data:`WEIGHTS`, until nothing rises, or :data:`ROUNDS` times.
    """

    def measure(weights: Mapping[Term, float], **more: Any) -> float:
        return evaluate({**_options(weights), "keep_terms": True, **more})

    def best(terms: list[Term], number: int) -> dict[Term, float]:
        alone = {term: measure({term: 1.0}) for term in terms}
        return dict(sorted(alone.items(), key=lambda item: -item[1])[:number])

    pool: dict[Term, float] = {}  # with the LDS of each alone
    weights: dict[Term, float] = {}
    for timestep in sorted(set(options["influence_timesteps"])):
        pool |= best([Term("influence", timestep, size) for size in PATCH_SIZES], 1)
    for timestep in sorted(set(options["timesteps"])):
        found = best([Term("nda", timestep, size) for size in PATCH_SIZES], 2)
        found |= best([Term("nda", timestep, size, 2) for size in LOW_RESOLUTION_PATCH_SIZES], 1)
        weights[max(found, key=found.__getitem__)] = 1.0
        pool |= found
    weights = weights or {max(pool, key=pool.__getitem__): 1.0}
    lds = measure(weights)
    for _ in range(ROUNDS):
        before = lds
        for term in sorted(pool, key=lambda term: -pool[term]):
            for weight in WEIGHTS:
                trial = {**weights, term: weight}
                if weight == weights.get(term, 0.0) or not any(trial.values()):
                    continue
                measured = measure(trial)
                if measured > lds:
                    weights, lds = trial, measured
        if lds == before:
            break
    chosen = _options(weights)
    if not chosen["timesteps"]:
        return chosen
    top_ks = {options["top_k"]: None, **dict.fromkeys(TOP_KS)}
    return {**chosen, "top_k": max(top_ks, key=lambda top_k: measure(weights, top_k=top_k))}


def _options(weights: Mapping[Term, float]) -> dict[str, Any]:
    """The options of a mixture, terms of weight 0 left out."""
    own = sorted(
        ((term, weight) for term, weight in weights.items() if weight > 0.0),
        key=lambda item: (item[0].downsample, item[0].timestep, item[0].patch_size),
    )
    nda = [(term, weight) for term, weight in own if term.kind == "nda"]
    influence = [(term, weight) for term, weight in own if term.kind == "influence"]
    return {
        "timesteps": [term.timestep for term, _ in nda],
        "patch_size": [term.patch_size for term, _ in nda],
        "downsample": [term.downsample for term, _ in nda],
        "weight": [weight for _, weight in nda],
        "influence_timesteps": [term.timestep for term, _ in influence],
        "influence_patch_size": [term.patch_size for term, _ in influence],
        "influence_weight": [weight for _, weight in influence],
    }


def _check_timesteps(name: str, timesteps: Sequence[int]) -> None:
    for timestep in timesteps:
        if not 0 <= timestep < NUM_TIMESTEPS:
            raise UsageError(f"{name}: each must lie in 0..{NUM_TIMESTEPS - 1}; got {timestep}.")


def _check_weights(name: str, weights: Sequence[float]) -> None:
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0.0):
            raise UsageError(f"{name}: each must be finite and not negative; got {weight}.")


def _each(name: str, value: T | Sequence[T], count: int) -> Sequence[T]:
    """One value a term, from one for all or a list."""
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name}: {len(value)} values for {count} timesteps; give one for all, or one a term.")
    return value
