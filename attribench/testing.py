"""A conformance suite for attribution methods, for the tests of whoever writes one.

    from attribench.testing import check_method

    def test_my_method_keeps_the_rules():
        check_method(MyMethod, top_k=5)

It needs neither pytest nor a data set: it makes a small problem of its own, in grey and in colour, with a tiny target
model, two checkpoints, and two query sets, held-out images and images sampled from the target model. It takes seconds for a
method that does little work.

Whether a method finds what there is to find is another question: :func:`known_answers` puts some to it whose answer is known.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from attribench.data import ImageSet
from attribench.diffusion.network import build_network
from attribench.diffusion.noise import NoiseSchedule
from attribench.diffusion.sampling import generate_images
from attribench.errors import AccessError, AttribenchError, UsageError
from attribench.method import Access, AttributionContext, AttributionMethod, Queries, RetrainedModels, Sampling, start
from attribench.registry import METHODS
from attribench.settings import GenerationSettings, ModelSettings
from attribench.store.artifacts import ArtifactStore

if TYPE_CHECKING:
    from attribench.records.known_answers import KnownAnswers

_SEED = 42
_NUM_TRAIN, _NUM_QUERIES, _NUM_SAMPLED, _SIZE = 12, 5, 3, 8
_GENERATION = GenerationSettings(num_images=_NUM_SAMPLED, num_inference_steps=4)

#: How far scores may move with the queries beside them, relative to the largest: the rounding of float32 sums.
_BATCH_TOLERANCE = 1e-5


class ConformanceError(AttribenchError, AssertionError):
    """A method breaks a rule; the message names the check and says what was seen."""


def check_method(method_class: type[AttributionMethod], /, **options: Any) -> str | None:
    """Check that a method keeps the rules every table and every stored result relies on.

    On held-out queries, and on queries that come with the way they were sampled (:attr:`Queries.sampling`); not on those
    that the method's ``undefined_on`` gives a reason for.

    ========== ========================================================================================================
    access     ``access`` is an :class:`~attribench.Access`, and no model beyond it is touched, by whatever way.
    shape      Scores are ``(num_queries, num_train)``.
    dtype      Scores are floating point.
    finite     No score is NaN or infinite.
    in place   Train images, labels and queries are left as they were.
    repeats    Two fresh instances with empty stores give the same scores, bit for bit, and so does a third one that
               finds the first one's store.
    batch      Each query alone, or all in reverse order, score as all together do, to 1e-5 of the largest score.
    undefined  ``undefined_on`` gives a text or None, the same one for a query set and for each part of it.
    ========== ========================================================================================================

    Args:
        method_class: the class to check.
        **options: for its ``__init__``, e.g. to make the work small. Images are 8×8.

    Returns:
        None when all checks passed. Where the method's ``skip_reason`` refuses both the grey and the colour problem, or it is
        defined on neither query set, that reason: nothing was run, so a test may want to skip or to insist on None.

    Raises:
        ConformanceError: a check failed. It is an ``AssertionError`` and an :class:`~attribench.AttribenchError`.
    """
    if not isinstance(getattr(method_class, "access", None), Access):
        raise ConformanceError(f"{method_class.__name__}: check 'access': declare `access = Access.DATA` (or another).")
    reasons = [_Check(method_class, options, channels).run() for channels in (1, 3)]
    return None if None in reasons else reasons[0]


def known_answers(
    method_class: type[AttributionMethod], /, *, train_model: bool = False, **options: Any
) -> KnownAnswers:
    """Ask a method about pictures whose relations are known; the cases are those of ``attribench known-answers``.

        found = known_answers(MyMethod, top_k=5)
        assert found["copy"].auc > 0.99 and found["copy"].rank == 1

    See :func:`attribench.data.known_cases.known_cases` for the cases. Images are 16×16, grey. Nothing is left on the disk.

    Args:
        method_class: the class to ask.
        train_model: train a small model first, if the method looks at one: a minute or two.
        **options: for its ``__init__``.

    Raises:
        UsageError: the method cannot run here; with its reason. Without ``train_model`` none that looks at a model can.
    """
    from attribench.computing.progress import silent_progress
    from attribench.configuration.options import option_defaults
    from attribench.configuration.resolution import MethodConfig
    from attribench.settings import Runtime
    from attribench.workflows.known_answers import known_answers as ask

    name = METHODS.name_of(method_class) or method_class.__name__
    config = MethodConfig(name, method_class, {**option_defaults(method_class), **options}, options)
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(workdir=folder, accelerator="cpu", workers=1)
        asked = ask([config], runtime, silent_progress, train_model=train_model)
    if not asked.answers:
        (reason,) = asked.skipped.values()
        raise UsageError(f"{method_class.__name__} cannot be asked: {reason}")
    return asked.answers[0]


class _Check:
    """The checks of one method on images of so many channels."""

    def __init__(self, method_class: type[AttributionMethod], options: dict[str, Any], channels: int) -> None:
        self._class, self._options, self._channels = method_class, options, channels

    def run(self) -> str | None:
        train, held_out = _images(self._channels)
        asked = [held_out, _sampled(self._channels)]
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            with self._untouched(train, asked):
                method, context = self._create(train, Path(first))
                reason = method.skip_reason(context)
                if reason is not None:
                    self._check_reason("skip reason", "skip_reason", reason)
                    return reason
                reasons = [self._undefined(method, queries) for queries in asked]
                asked = [queries for queries, reason in zip(asked, reasons, strict=True) if reason is None]
                if not asked:
                    return reasons[0]
                scores = self._scores(method, context, asked)
            self._check_repeats(scores, train, asked, [Path(second), Path(first)])
            with self._untouched(train, asked):
                for found, queries in zip(scores, asked, strict=True):
                    self._check_batches(method, found, queries)
        return None

    def _check_reason(self, check: str, name: str, reason: object) -> None:
        if not isinstance(reason, str) or not reason:
            self._fail(check, f"{name} must return a text or None; got {reason!r}")

    def _undefined(self, method: AttributionMethod, queries: Queries) -> str | None:
        """Why the method is not defined on a query set, asked before it is started."""
        whole = method.undefined_on(queries)
        if whole is not None:
            self._check_reason("undefined", "undefined_on", whole)
        for part in (queries[:1], queries[1:], queries.select(range(len(queries))[::-1])):
            if method.undefined_on(part) != whole:
                self._fail("undefined", "undefined_on says otherwise of a query set than of a part of it")
        return whole

    def _create(self, train: ImageSet, folder: Path) -> tuple[AttributionMethod, AttributionContext]:
        name = METHODS.name_of(self._class) or self._class.__name__
        context = AttributionContext(
            train=train,
            schedule=NoiseSchedule(),
            device=torch.device("cpu"),
            seed=_SEED,
            store=ArtifactStore(folder).scoped(f"method/{name}"),
            access=self._class.access,
            models=_Models(self._channels, self._class.access),
            retrained=_retrained(self._channels) if self._class.access >= Access.RETRAINED else None,
        )
        return self._class(**self._options), context

    def _scores(self, method: AttributionMethod, context: AttributionContext, asked: Sequence[Queries]) -> list[Tensor]:
        try:
            start(method, context)
            return [self._attribute(method, queries) for queries in asked]
        except AccessError as error:
            self._fail("access", f"it declares Access.{context.access.name}, but: {error}")

    def _attribute(self, method: AttributionMethod, queries: Queries) -> Tensor:
        """Score and check all that holds of scores alone."""
        scores = method.attribute(queries)
        expected = (len(queries), _NUM_TRAIN)
        if not isinstance(scores, Tensor):
            self._fail("shape", f"attribute must return a tensor; got {type(scores).__name__}")
        if tuple(scores.shape) != expected:
            self._fail(
                "shape", f"attribute returned {tuple(scores.shape)}; expected (num_queries, num_train) {expected}"
            )
        if not scores.is_floating_point():
            self._fail("dtype", f"scores must be floating point; got {scores.dtype}")
        if not torch.isfinite(scores).all():
            self._fail(
                "finite", f"{int((~torch.isfinite(scores)).sum())} of {scores.numel()} scores are NaN or infinite"
            )
        return scores.detach().to("cpu", torch.float64)

    @contextmanager
    def _untouched(self, train: ImageSet, asked: Sequence[Queries]) -> Iterator[None]:
        tensors = {"train images": train.images, **{f"{queries.name} queries": queries.images for queries in asked}}
        if train.labels is not None:
            tensors["train labels"] = train.labels
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        yield
        for name, copy in before.items():
            if not torch.equal(copy, tensors[name]):
                self._fail("in place", f"the method has changed the {name} it was given; work on a copy")

    def _check_repeats(
        self, scores: Sequence[Tensor], train: ImageSet, asked: Sequence[Queries], folders: list[Path]
    ) -> None:
        for folder, what in zip(
            folders, ("a fresh instance", "an instance that finds the first one's store"), strict=True
        ):
            for first, other in zip(scores, self._scores(*self._create(train, folder), asked), strict=True):
                if not torch.equal(first, other):
                    self._fail(
                        "repeats",
                        f"{what} gives other scores, by up to {_difference(first, other):.1e} of the largest; take random "
                        "numbers from a generator seeded with attribench.computing.seeding.derive_seed(context.seed, ...)",
                    )

    def _check_batches(self, method: AttributionMethod, scores: Tensor, queries: Queries) -> None:
        alone = torch.cat([self._attribute(method, queries[i : i + 1]) for i in range(len(queries))])
        reverse = self._attribute(method, queries.select(range(len(queries))[::-1])).flip(0)
        for other, what in ((alone, "each query alone scores"), (reverse, "the queries in reverse order score")):
            if _difference(scores, other) > _BATCH_TOLERANCE:
                self._fail(
                    "batch",
                    f"{what} otherwise than all together, by up to {_difference(scores, other):.1e} of the largest; a "
                    "query's scores may depend on its image and id alone",
                )

    def _fail(self, check: str, message: str) -> NoReturn:
        images = "grey" if self._channels == 1 else "colour"
        raise ConformanceError(f"{self._class.__name__}, {images} images: check '{check}': {message}.")


def _difference(scores: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest score."""
    return float((scores - other).abs().max() / scores.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def _images(channels: int) -> tuple[ImageSet, Queries]:
    """Random train images in three classes, one of them black; queries, one of which is a train image."""
    generator = torch.Generator().manual_seed(_SEED + channels)
    shape = (_NUM_TRAIN + _NUM_QUERIES, channels, _SIZE, _SIZE)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    pixels[0] = 0
    pixels[_NUM_TRAIN] = pixels[1]
    train = ImageSet(
        pixels[:_NUM_TRAIN].clone(), tuple(f"train-{i}" for i in range(_NUM_TRAIN)), torch.arange(_NUM_TRAIN) % 3
    )
    return train, Queries(pixels[_NUM_TRAIN:].clone(), tuple(f"query-{i}" for i in range(_NUM_QUERIES)), "held-out")


def _sampled(channels: int) -> Queries:
    """Queries that the target model made, and how."""
    seeds = tuple(range(_NUM_SAMPLED))
    shape = (channels, _SIZE, _SIZE)
    images = generate_images(_tiny_model(channels, seed=0).eval(), seeds, shape, _GENERATION, torch.device("cpu"))
    sampling = Sampling(seeds, _GENERATION.num_inference_steps, _GENERATION.eta)
    # Made in inference mode, images could not be written to, and a method that does so could not be told.
    return Queries(images.clone(), tuple(f"sampled-{seed}" for seed in seeds), "sampled", sampling)


def _retrained(channels: int) -> RetrainedModels:
    """Eight subsets, and losses that depend on a query's image alone."""
    generator = torch.Generator().manual_seed(_SEED)
    masks = torch.rand(8, _NUM_TRAIN, generator=generator) < 0.5
    weights = torch.rand(8, channels * _SIZE * _SIZE, dtype=torch.float64, generator=generator)
    return RetrainedModels(masks, lambda queries: weights @ queries.images.double().flatten(1).T)


class _Models:
    """A tiny target model and two checkpoints; refuses what the method does not declare, however it is asked."""

    def __init__(self, channels: int, access: Access) -> None:
        self._channels, self._access = channels, access

    def target_model(self) -> nn.Module:
        self._require(Access.MODEL, "the target model")
        return _tiny_model(self._channels, seed=0)

    def checkpoints(self) -> Iterator[nn.Module]:
        self._require(Access.CHECKPOINTS, "the checkpoints")
        return iter([_tiny_model(self._channels, seed) for seed in (1, 0)])

    def _require(self, needed: Access, what: str) -> None:
        if self._access < needed:
            raise AccessError(f"{what} needs access = Access.{needed.name}")


def _tiny_model(channels: int, seed: int) -> nn.Module:
    settings = ModelSettings(
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(settings, (channels, _SIZE, _SIZE))
