"""Questions with known answers, put to methods of which it is known what they can see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attribench import Access, AttributionMethod, Queries
from attribench.cli import main
from attribench.data import ImageSet
from attribench.data.known_cases import Case
from attribench.errors import UsageError
from attribench.metrics.ranking import auc_per_query
from attribench.records.known_answers import KnownAnswers
from attribench.registry import load_method
from attribench.testing import known_answers
from attribench.workflows.known_answers import judge

COPIES = ("copy", "duplicates")


class Distance(AttributionMethod):
    """Minus the squared distance of pixels.

    Args:
        flips: of the nearer of image and mirror image.
        sign: −1 makes opponents of proponents.
    """

    access = Access.DATA

    def __init__(self, flips: bool = False, sign: float = 1.0) -> None:
        self.flips, self.sign = flips, sign

    def attribute(self, queries: Queries) -> Tensor:
        train, asked = self.context.train.unit_range(), queries.unit_range()
        found = torch.cdist(asked.flatten(1), train.flatten(1)) ** 2
        if self.flips:
            found = torch.minimum(found, torch.cdist(asked.flip(-1).flatten(1), train.flatten(1)) ** 2)
        return -self.sign * found


class LooksAtTheModel(AttributionMethod):
    access = Access.MODEL

    def attribute(self, queries: Queries) -> Tensor:
        """How alike the model's outputs on the clean images are: it was trained on these."""
        model = self.context.target_model()
        with torch.no_grad():
            train, asked = (
                model(images, torch.tensor([50])).sample.flatten(1)
                for images in (self.context.train.unit_range(), queries.unit_range())
            )
        return -torch.cdist(asked, train)


class OfItsOwn(Distance):
    def undefined_on(self, queries: Queries) -> str | None:
        return None if queries.sampling else "there is no trajectory."


class Refuses(Distance):
    def skip_reason(self, context: object) -> str | None:
        return "it never runs."


@pytest.fixture(scope="module")
def distance() -> KnownAnswers:
    return known_answers(Distance)


def test_the_median_rank_of_an_even_number_of_queries_is_the_middle_of_two() -> None:
    """Ranks 1, 1, 2 and 5."""
    scores = -torch.arange(6.0).repeat(4, 1)
    right = torch.zeros(4, 6, dtype=torch.bool)
    right[range(4), [0, 0, 1, 4]] = True
    queries = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), tuple("abcd"))
    assert judge(Case("case", "asked", queries, right), scores).rank == 1.5


def test_a_method_sees_what_it_is_made_to_see(distance: KnownAnswers) -> None:
    for name in COPIES:
        assert (distance[name].auc, distance[name].low, distance[name].rank) == (1.0, 1.0, 1.0)
        assert distance[name].seen
    assert distance["darker"].seen
    assert not distance["pasted"].seen  # wherever it lies, pixels are compared place by place
    assert distance["mirrored"].auc < 0.95
    flipped = known_answers(Distance, flips=True)
    assert (flipped["mirrored"].auc, flipped["mirrored"].rank) == (1.0, 1.0)


def test_opponents_for_proponents_are_the_opposite(distance: KnownAnswers) -> None:
    opposite = known_answers(Distance, sign=-1.0)
    for name in (*COPIES, "mirrored", "shifted", "darker", "pasted", "class"):
        assert opposite[name].auc == pytest.approx(1.0 - distance[name].auc, abs=1e-12)


def test_chance_sees_nothing() -> None:
    found = known_answers(load_method("random"))
    for case in found.cases:
        assert case.low < 0.5 < case.high, case
    assert found["copy"].rank is not None
    assert 20 < found["copy"].rank < 92
    assert found["held out"].rank is None


def test_the_numbers_are_those_of_the_scores(distance: KnownAnswers) -> None:
    from attribench.data.known_cases import known_cases

    known = known_cases()
    pixels = known.train.images.double().flatten(1) / 127.5 - 1
    for case in known.cases:
        asked = case.queries.images.double().flatten(1) / 127.5 - 1
        scores = -((asked[:, None] - pixels[None]) ** 2).sum(dim=2)
        if case.right is not None:
            assert distance[case.name].auc == pytest.approx(auc_per_query(scores, case.right).mean().item(), abs=1e-3)
        else:
            best = scores.amax(dim=1)
            wins = (best[:16, None] > best[None, 16:]).double().mean().item()
            assert distance[case.name].auc == pytest.approx(wins, abs=1e-3)


def test_a_method_that_cannot_be_asked_says_why() -> None:
    with pytest.raises(UsageError, match="none is trained unless asked for"):
        known_answers(LooksAtTheModel)
    with pytest.raises(UsageError, match="it never runs"):
        known_answers(Refuses)
    with pytest.raises(UsageError, match="there is no trajectory"):
        known_answers(OfItsOwn)
    with pytest.raises(UsageError, match="retrained on subsets"):
        known_answers(load_method("datamodel"), train_model=True)


@pytest.mark.slow
def test_with_a_model_trained_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from attribench.workflows import known_answers as module

    quick = replace(module._SETTINGS, training=replace(module._SETTINGS.training, epochs=2))
    monkeypatch.setattr(module, "_SETTINGS", quick)
    found = known_answers(LooksAtTheModel, train_model=True)
    assert found["copy"].rank == 1.0
    assert found.access == "MODEL"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["known-answers", "--method", "pixel-cosine,pixel-dot,trak,datamodel", "--workdir", str(tmp_path / "runs"),
            "--accelerator", "cpu", "--format", "markdown", "--out", str(tmp_path / "answers.json")]  # fmt: skip
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert "| pixel-cosine | **100 (1)** |" in printed
    assert "trak was left out: it looks at a model" in printed
    assert "datamodel was left out: it is given models" in printed
    answers = json.loads((tmp_path / "answers.json").read_text("utf-8"))
    assert [one["method"] for one in answers] == ["pixel-cosine", "pixel-dot"]
    assert answers[0]["cases"][0]["auc"] == 1.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "pixell"], "Did you mean 'pixel'"),
        (["--format", "pdf"], "Unknown --format"),
        (["--method", "nda,pixel", "--method.top_k", "3"], "exactly one --method"),
        (["--data.root", "x"], "Unknown option --data"),
    ],
)
def test_wrong_calls(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["known-answers", *more]) == 2
    assert message in capsys.readouterr().err


def test_nobody_to_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["known-answers", "--method", "trak", "--workdir", str(tmp_path)]) == 1
    assert "left out" in capsys.readouterr().out


def test_the_page_shows_what_was_filed(tmp_path: Path) -> None:
    import shutil

    from attribench.errors import RecordError
    from attribench.records.known_answers import load_known_answers

    records = Path(__file__).parents[2] / "results" / "records" / "digits" / "board"
    shutil.copytree(
        records, tmp_path / "records" / "digits" / "board", ignore=shutil.ignore_patterns("[!r]*", "*.safetensors")
    )
    file = tmp_path / "known-answers" / "answers.json"
    assert (
        main(["known-answers", "--method", "pixel-cosine", "--workdir", str(tmp_path / "runs"), "--out", str(file)])
        == 0
    )
    assert main(["report", "--results", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "What methods can see" in page
    assert '<td class="best">100 (1)</td>' in page
    file.write_text("[{}]")
    with pytest.raises(RecordError, match=r"answers\.json"):
        load_known_answers(tmp_path)
