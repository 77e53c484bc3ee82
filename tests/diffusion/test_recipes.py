"""Stored models, losses and generated images outlive edits of the source; these tests keep that honest."""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attribench.data import to_unit_range
from attribench.diffusion import recipes
from attribench.settings import GenerationSettings, ModelSettings, TrainingSettings
from attribench.store.artifacts import Artifact, ArtifactStore
from attribench.store.code import ROOT, essence
from attribench.truth import generation as counterfactual_jobs
from attribench.truth import jobs
from attribench.truth.experiment import Experiment
from attribench.truth.generation import GenerateJob, QueriesJob
from attribench.truth.jobs import LossJob, TrainJob

Part = str | Callable[..., Any]

#: What decides the numbers of each recipe: files of the package, or single functions.
DECISIVE: dict[str, list[Part]] = {
    "TRAINING": [
        "diffusion/training/loop.py", "diffusion/training/module.py", "diffusion/network.py", "diffusion/noise.py",
        "diffusion/training/tuning.py", "diffusion/peft_parts.py", "diffusion/examples.py", "diffusion/spaces.py",
        "computing/seeding.py", to_unit_range,
        TrainJob.run,
    ],
    "LOSSES": [
        "diffusion/losses.py", "diffusion/network.py", "diffusion/noise.py", "diffusion/examples.py", "diffusion/spaces.py",
        "computing/seeding.py", to_unit_range, LossJob.run,
    ],
    "SAMPLING": [
        "diffusion/sampling.py", "diffusion/trajectory.py", "diffusion/network.py", "diffusion/spaces.py", GenerateJob.run,
        QueriesJob.run,
    ],
}  # fmt: skip

#: Each recipe's number and the hash of what decided it when somebody last thought about it.
ACKNOWLEDGED = {
    "TRAINING": (1, "e744258756747e64"),
    "LOSSES": (1, "5243905fd4721897"),
    "SAMPLING": (1, "f752a5d3da227718"),
}


def digest(parts: list[Part]) -> str:
    sources = (
        (ROOT / part).read_bytes() if isinstance(part, str) else textwrap.dedent(inspect.getsource(part)).encode()
        for part in parts
    )
    return hashlib.sha256("".join(essence(source) for source in sources).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", DECISIVE)
def test_who_edits_what_decides_stored_things_says_whether_they_still_hold(name: str) -> None:
    found = (getattr(recipes, name), digest(DECISIVE[name]))
    parts = ", ".join(part if isinstance(part, str) else part.__qualname__ for part in DECISIVE[name])
    assert found == ACKNOWLEDGED[name], (
        f"What decides {name} was edited ({parts}). Do the same settings now give other numbers? Then raise {name} in "
        "attribench/diffusion/recipes.py: all that it made is made anew, in hours. If they give the same bits, leave it. "
        f"Either way, write {found!r} as what is acknowledged for {name} in this test."
    )


def keys() -> list[str]:
    """Of a model, its losses, an image it generates, and a generated query set."""
    model = ModelSettings([8, 16], ["DownBlock2D"] * 2, ["UpBlock2D"] * 2, layers_per_block=1, norm_num_groups=4)
    job = TrainJob("m", "t" * 64, (1, 8, 8), (0, 2, 3), 3, model, TrainingSettings(), 7, 2)
    weights = Artifact("models", "k" * 32, Path(), {}, "d" * 64, {})
    generation = GenerationSettings()
    specs = [
        job.spec,
        LossJob(job, "q" * 64, 5, (0, 500), 3, 42).spec(weights),
        GenerateJob(job, (0, 4), generation).spec(weights),
        Experiment.generation_spec(
            SimpleNamespace(settings=SimpleNamespace(generation=generation), base=None), weights
        ),  # type: ignore[arg-type]
    ]
    return [ArtifactStore(Path("nowhere")).key(spec) for spec in specs]


#: As stores have them since the first version.
KEYS = [
    "7cbdd06825592e2d36c529ad1a3de809",
    "1d61d1b959028228555d179b2a3cb25b",
    "ac78a41e8d9e83e3895c0e0d6d9f651b",
    "7d7f563a4f2f35be62ef9e6f5986b69c",
]


@pytest.mark.skipif((recipes.TRAINING, recipes.LOSSES, recipes.SAMPLING) != (1, 1, 1), reason="recipes were raised")
def test_what_an_old_store_holds_is_found() -> None:
    assert keys() == KEYS


def test_a_raised_number_makes_all_of_its_kind_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr(jobs, "LOSSES", 2)
    assert [a == b for a, b in zip(keys(), before, strict=True)] == [True, False, True, True]
    monkeypatch.setattr(jobs, "TRAINING", 2)
    assert keys()[0] != before[0]
    monkeypatch.setattr(counterfactual_jobs, "SAMPLING", 2)
    assert not set(keys()) & set(before)
