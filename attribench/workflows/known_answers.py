"""Questions with known answers, put to attribution methods: what each can see and what it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from attribench.computing.progress import Progress
from attribench.configuration.resolution import MethodConfig
from attribench.data import AttributionDataModule, ImageSet
from attribench.data.known_cases import Case, KnownCases, known_cases
from attribench.method import Access, Queries
from attribench.metrics.ranking import auc_of_two, auc_per_query, first_rank, mean_interval
from attribench.records.known_answers import CaseResult, KnownAnswers
from attribench.records.lds import row_name
from attribench.settings import ModelSettings, Runtime, Settings, TrainingSettings
from attribench.store.json_values import json_value
from attribench.truth.experiment import Experiment
from attribench.workflows.checks import Method, check_names, instances
from attribench.workflows.scoring import Scoring, make_context, reason_to_skip, undefined_on

_SETTINGS = Settings(
    model=ModelSettings(
        block_out_channels=[16, 32],
        down_block_types=["DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=None,
    ),
    # A picture is seen a few hundred times, so that the model knows it by heart.
    training=TrainingSettings(epochs=200, batch_size=32, learning_rate=2e-3, horizontal_flip=False, num_checkpoints=2),
)


@dataclass(frozen=True)
class Asked:
    """What came of it.

    Attributes:
        answers: one a method that was asked.
        skipped: the reason of each method that was not, by name.
    """

    answers: list[KnownAnswers] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def known_answers(
    configs: Sequence[MethodConfig], runtime: Runtime, progress: Progress, *, train_model: bool = False
) -> Asked:
    """Put the cases of :func:`attribench.data.known_cases.known_cases` to methods.

    Args:
        configs: the methods.
        train_model: train a small model on the train images, for methods that look at one; they are left out otherwise. Methods
            that are given retrained models are left out always: there are none.

    Raises:
        UsageError: two methods of one name, or options that a method refuses.
    """
    check_names(configs)
    known = known_cases()
    experiment = Experiment(_Pictures(known), _SETTINGS, runtime, progress)
    asked = Asked()
    for config, method in instances(configs):
        name = row_name(config.name, config.changed)
        reason = _left_out(method.access, train_model)
        if reason is None:
            if method.access >= Access.MODEL:
                job = experiment.target
                with progress.task("training the model of the known answers", job.cost) as task:
                    experiment.train_only([job], task)
            reason = reason_to_skip(method, make_context(experiment, method, config))
        if reason is None:
            reason = next(iter(undefined_on(method, _queries(known)).values()), None)
        if reason is None:
            asked.answers.append(_ask((config, method), known, experiment))
        else:
            asked.skipped[name] = reason
    return asked


def _left_out(access: Access, train_model: bool) -> str | None:
    if access >= Access.RETRAINED:
        return "it is given models retrained on subsets, and here are none."
    if access >= Access.MODEL and not train_model:
        return "it looks at a model, and none is trained unless asked for: --model does it, in a minute or two."
    return None


def _queries(known: KnownCases) -> dict[str, Queries]:
    return {case.name: Queries.of(case.queries, case.name) for case in known.cases}


def _ask(method: Method, known: KnownCases, experiment: Experiment) -> KnownAnswers:
    config, instance = method
    scoring = Scoring.of(experiment, instance, config, make_context(experiment, instance, config))
    queries = _queries(known)
    scores = scoring.scores(queries)
    return KnownAnswers(
        method=scoring.name,
        options=json_value(config.options),
        access=instance.access.name,
        cases=[judge(case, scores[case.name]) for case in known.cases],
        seconds=scoring.cost.prepare_seconds + scoring.cost.seconds_per_query * sum(map(len, queries.values())),
        num_train=len(known.train),
    )


def judge(case: Case, scores: Tensor) -> CaseResult:
    """What scores ``(num_queries, num_train)`` say to a case."""
    if case.right is not None:
        per_query = auc_per_query(scores, case.right)
        auc, interval = per_query.mean().item(), mean_interval(per_query)
        rank = first_rank(scores, case.right).quantile(0.5).item()  # median() is the lower of two in the middle
    else:
        assert case.answerable is not None
        best = scores.double().amax(dim=1)
        auc, interval = auc_of_two(best[case.answerable], best[~case.answerable])
        rank = None
    return CaseResult(
        name=case.name,
        asked=case.asked,
        auc=auc,
        low=interval.low,
        high=interval.high,
        rank=rank,
        num_queries=len(case.queries),
    )


class _Pictures(AttributionDataModule):
    """The pictures as a data set."""

    licence = "Apache-2.0"

    def __init__(self, known: KnownCases) -> None:
        super().__init__()
        self._known = known

    @property
    def label(self) -> str:
        return "known-answers"

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._known.train, self._known.queries()
