"""attribench from Python: attribute images, and evaluate scores, in one call each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribench.computing.progress import Progress, silent_progress
from attribench.configuration.files import DatasetConfig
from attribench.configuration.resolution import MethodConfig, class_config, method_config
from attribench.data.decoding import Channels
from attribench.errors import UsageError
from attribench.method import AttributionMethod
from attribench.metrics.lds import predict_outputs, score_predictions, undefined_correlations
from attribench.metrics.resampling import lds_interval
from attribench.records.answers import Attributed, save_scores, score_table
from attribench.reporting.pages.attribution import attribution_page
from attribench.settings import Runtime
from attribench.store.files import atomic_write
from attribench.truth.bundle import Bundle
from attribench.truth.catalog import find
from attribench.truth.ground_truth import GroundTruth
from attribench.workflows.attribution import attribute as compute
from attribench.workflows.decoys import DecoyRequest
from attribench.workflows.model_space import GivenCaptions
from attribench.workflows.own_images import Request, Space

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Attribution:
    """Which train images shaped each query, by one method.

    Attributes:
        scores: ``(num_queries, num_train)`` on the CPU; higher = stronger proponent.
        train: names of the train images, in the order of the columns: paths in a folder, else numbers.
        queries: names of the queries, in the order of the rows.
        method: the method, with options that were changed.
        answer: all that the page shows; with decoys, ``answer.judgement`` says what stands out.
    """

    scores: Tensor
    train: tuple[str, ...]
    queries: tuple[str, ...]
    method: str
    answer: Attributed

    @property
    def num_left_out(self) -> int:
        """Pictures that could not be read; the page names them."""
        return sum(len(names) for names in self.answer.skipped.values())

    def to_pandas(self) -> pd.DataFrame:
        """The strongest train images of each query: columns ``query``, ``train``, ``rank`` from 1, ``score``.

        With decoys also ``p_value``, ``adjusted`` and ``stands_out``.
        """
        return score_table(self.answer)

    def to_parquet(self, path: str | Path) -> Path:
        """Write :meth:`to_pandas` as a Parquet file."""
        save_scores(self.answer, Path(path))
        return Path(path)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page: each query with its strongest train images."""
        atomic_write(Path(path), attribution_page(self.answer).encode())
        return Path(path)


def attribute(
    train: object,
    queries: object,
    *,
    model: object = None,
    method: str | type[AttributionMethod] = "nda",
    options: Mapping[str, Any] | None = None,
    scheduler: object = None,
    checkpoints: str | Path | None = None,
    lora: str | Path | None = None,
    captions: GivenCaptions = None,
    query_captions: GivenCaptions = None,
    space: Space = "pixel",
    image_size: int | None = None,
    channels: Channels = "auto",
    top: int = 20,
    heat_maps: int = 20,
    decoys: str | Path | None = None,
    contributors: str | Path = "",
    false_discovery: float = 0.05,
    workdir: str | Path = "runs",
    accelerator: str = "auto",
    progress: Progress = silent_progress,
) -> Attribution:
    """Rank train images by how they shaped each query.

    Args:
        train: the train images: a folder; a tensor ``(N, C, H, W)``, uint8 or float in [0, 1]; or a sequence of pictures
            (PIL), or of items with an ``image``, as data sets of Hugging Face and torchvision have them.
        queries: the images to explain, likewise.
        model: the model that was trained on the train images: a diffusers folder with safetensors, a Lightning checkpoint of
            attribench, a diffusers pipeline or ``UNet2DModel``. Without it, methods that compare images can be used.
        method: a name (``attribench list``), an import path, a YAML file, or a class.
        options: of the method, by name.
        scheduler: the model's noise schedule where ``model`` does not bring it: a diffusers scheduler, its folder, or
            ``"ddpm"`` for the defaults of ``DDPMScheduler``.
        checkpoints: folder of models of the course of the training, for methods that look at these.
        lora: file of the model's LoRA, as peft and diffusers write it (safetensors); gradients are then of that alone.
        captions: of the train images, for a model that is told a text: a file (CSV or JSONL: ``file_name``, ``caption``), a
            mapping from names to captions, or one an image. Without it, ``metadata.jsonl``, text files beside the images, or
            what items call ``caption`` or ``text``; and where there is none, the empty text for all.
        query_captions: of the queries, likewise.
        space: what methods that compare images are given: ``"pixel"``, or ``"latent"``, the latents of the model's autoencoder
            with the model's noise schedule.
        image_size: side of the squares that pictures are brought to, in pixels; by default the model's, or 32.
        channels: ``"RGB"``, ``"grey"``, or ``"auto"``: the model's, or grey if no image has colour.
        top: train images a query in :meth:`Attribution.to_pandas` and on the page; 0 for all.
        heat_maps: for how many of them the page shows where in the picture they come in, where the method can.
        decoys: what else to score, to see whether anything stands out: a folder of images that were not trained on; or
            ``"auto"``: a random tenth of the train images, 50 at least, which are then not ranked; it takes 200 train images.
        contributors: whose images they are, for totals with decoys: ``"subfolder"``, or a CSV file with the columns ``train``
            and ``contributor``.
        false_discovery: the share of images said to stand out that may be wrong.
        workdir: where all that is expensive is kept; a call that was stopped goes on there.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"cuda"`` or ``"mps"``.
        progress: shows how far it is, and says what it takes before it begins.

    Raises:
        UsageError: arguments that make no sense together, or a method that cannot run here; it says why.
        ModelError: the model cannot be read, or is of a kind that is not supported.
        DataError: images cannot be read, or do not fit the model.
    """
    judged = decoy_request(decoys, contributors, false_discovery)
    (found,) = attribute_all(
        Request(
            train,
            queries,
            top,
            image_size,
            channels,
            heat_maps,
            model,
            scheduler,
            checkpoints,
            judged,
            lora,
            captions,
            query_captions,
            space,
        ),
        [own_method_config(method, options or {})],
        Runtime(workdir=str(workdir), accelerator=accelerator),
        progress,
    )
    return found


def attribute_all(
    request: Request, methods: Sequence[MethodConfig], runtime: Runtime, progress: Progress = silent_progress
) -> Iterator[Attribution]:
    """The same by several methods, one after the other, which share what they can: images, model, gradients.

    Args:
        request: what is asked for.
        methods: from :func:`own_method_config`.
        runtime: where and how to compute.
    """
    for answer in compute(request, methods, runtime, progress):
        yield Attribution(answer.scores, answer.train.ids, answer.queries.ids, answer.method, answer)


def decoy_request(
    decoys: str | Path | None, contributors: str | Path = "", false_discovery: float = 0.05
) -> DecoyRequest | None:
    """What is asked of decoys, see :func:`attribute`; None without them.

    Raises:
        UsageError: contributors without decoys, or a rate outside 0…1.
    """
    if not decoys:
        if contributors:
            raise UsageError("--contributors needs --decoys: their totals are judged against decoys.")
        return None
    return DecoyRequest(str(decoys), str(contributors or ""), false_discovery)


def own_method_config(method: str | type[AttributionMethod], options: Mapping[str, Any]) -> MethodConfig:
    """A method with its options, for images that belong to no data set of the benchmark.

    Raises:
        UsageError: there is no such method or option, or a value of the wrong type.
    """
    if isinstance(method, str):
        return method_config(method, DatasetConfig("", "", {}, {}, {}), "", options)
    return class_config(method, options)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well scores predict what retraining does: the linear datamodeling score (LDS).

    Attributes:
        lds: the mean over queries, in −1…1.
        low: lower end of its interval, for new queries and new subsets.
        high: upper end.
        level: of the interval.
        per_query: float64 ``(num_queries,)``.
        num_undefined: queries that have no correlation, and count as 0.
    """

    lds: float
    low: float
    high: float
    level: float
    per_query: Tensor
    num_undefined: int

    def __str__(self) -> str:
        return f"LDS×100 {100 * self.lds:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def evaluate(
    scores: object,
    truth: object,
    *,
    query_set: str = "validation",
    workdir: str | Path = "runs",
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """The linear datamodeling score of scores, with its interval.

    Args:
        scores: ``(num_queries, num_train)``, a tensor, an array or an :class:`Attribution`; higher = stronger proponent.
        truth: what retraining did: the name or file of a ground truth (``attribench ground-truth list``), or a pair of masks,
            bool ``(num_subsets, num_train)``, and losses ``(num_subsets, num_queries)``.
        query_set: which of a ground truth's query sets the scores are of.
        workdir: where imported ground truths are.
        level: the share of such intervals that should contain the expected LDS.
        num_resamples: of the interval's bootstrap.
        seed: of the interval's bootstrap.

    Raises:
        UsageError: there is no such ground truth, what is given is none, or no numbers.
        BundleError: the file cannot be read, or has no losses on that query set.
        DataError: scores of another number of queries or train images, or that are not finite.
    """
    masks, outputs = _masks_and_outputs(truth, query_set, Path(workdir))
    values = scores.scores if isinstance(scores, Attribution) else _tensor(scores, "scores")
    predictions = predict_outputs(values, masks)
    per_query = score_predictions(predictions, outputs)
    interval = lds_interval(predictions, outputs, level=level, num_resamples=num_resamples, seed=seed)
    undefined = int(undefined_correlations(predictions, outputs).sum())
    return Evaluation(per_query.mean().item(), interval.low, interval.high, interval.level, per_query, undefined)


def _masks_and_outputs(truth: object, query_set: str, workdir: Path) -> tuple[Tensor, Tensor]:
    if isinstance(truth, str | Path):
        truth = Bundle(find(str(truth), workdir)).ground_truth(query_set)
    if isinstance(truth, Bundle):
        truth = truth.ground_truth(query_set)
    if isinstance(truth, GroundTruth):
        return truth.masks, truth.outputs
    if isinstance(truth, tuple | list) and len(truth) == 2:
        return _tensor(truth[0], "masks"), _tensor(truth[1], "losses")
    raise UsageError("truth must be the name or file of a ground truth, or a pair (masks, losses).")


def _tensor(values: object, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} must be a tensor or an array of numbers, not a {type(values).__name__}.") from error
