"""Chunks of features that other processes made are those of this one."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import TinyData

from attribench.computing.progress import Progress
from attribench.configuration.resolution import MethodConfig
from attribench.errors import AttribenchError
from attribench.gradients import features as module
from attribench.gradients.methods import KernelMethod
from attribench.method import AttributionMethod, score, start
from attribench.methods.gas import GAS
from attribench.settings import Runtime, Settings
from attribench.store.artifacts import Artifact, ArtifactStore
from attribench.store.parcels import adopt, pack
from attribench.store.parts import Part
from attribench.truth.executors import InProcessExecutor
from attribench.truth.experiment import Experiment
from attribench.truth.part_jobs import PartJob
from attribench.workflows.scoring import make_context

pytestmark = pytest.mark.slow


class Elsewhere:
    """Does parts in a store of its own, to which only what they name as inputs is carried."""

    def __init__(self, here: ArtifactStore, folder: Path) -> None:
        self._here, self._there = here, ArtifactStore(folder)
        self.done: list[Part] = []

    def __call__(self, parts: Sequence[Part], description: str) -> list[Artifact]:
        jobs = [PartJob(pickle.loads(pickle.dumps(part))) for part in parts]
        for job in jobs:
            for kind, spec in job.inputs(self._here):
                found = self._here.find(kind, spec)
                assert found is not None
                adopt(self._there, pack(found))
        runtime = Runtime(workdir=str(self._there.root), accelerator="cpu")
        with Progress().task("", 1) as task:
            InProcessExecutor(self._there, runtime, Progress()).run(jobs, task)
        self.done += parts
        made = [job.find(self._there) for job in jobs]
        return [adopt(self._here, pack(artifact)) for artifact in made if artifact is not None]


@pytest.mark.parametrize("cls", [KernelMethod, GAS])
def test_features_made_elsewhere_are_those_made_here(
    cls: type[AttributionMethod],
    tmp_path: Path,
    tiny_data: TinyData,
    tiny_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LARGEST_CHUNK", 10)
    found, digests = [], []
    for name in ("here", "there"):
        runtime = Runtime(workdir=str(tmp_path / name), accelerator="cpu", workers=1)
        experiment = Experiment(tiny_data, tiny_settings, runtime)
        with Progress().task("", 1) as task:
            experiment.train_only([experiment.target], task)
        method = cls(num_timesteps=3)  # type: ignore[call-arg]
        context = make_context(experiment, method, MethodConfig("m", cls, {}))
        elsewhere = Elsewhere(experiment.store, tmp_path / "elsewhere")
        if name == "there":
            context = replace(context, distribute=elsewhere)
        start(method, context)
        made = len(context.store.made)
        found.append(score(method, experiment.queries("validation")))
        stored = [artifact for artifact in experiment.store.artifacts() if artifact.kind == "shared/gradients"]
        digests.append({artifact.key: artifact.digest for artifact in stored})
        models = 1 if cls is KernelMethod else 2  # one, or the checkpoints
        if name == "there":
            assert len(elsewhere.done) == 3 * models, "24 images in chunks of 10"
            assert {artifact.kind for artifact in context.store.made[:made]}.isdisjoint({"shared/gradients"})
    assert torch.equal(*found)
    assert digests[0] == digests[1]


def test_another_model_is_refused(tmp_path: Path, tiny_data: TinyData, tiny_settings: Settings) -> None:
    experiment = Experiment(
        tiny_data, tiny_settings, Runtime(workdir=str(tmp_path / "runs"), accelerator="cpu", workers=1)
    )
    with Progress().task("", 1) as task:
        experiment.train_only([experiment.target], task)
    method = KernelMethod(num_timesteps=3)
    context = make_context(experiment, method, MethodConfig("m", KernelMethod, {}))
    kept: list[Part] = []

    def keep(parts: Sequence[Part], description: str) -> list[Artifact]:
        kept.extend(replace(part, seed=8) for part in parts)  # type: ignore[type-var]
        return Elsewhere(experiment.store, tmp_path / "elsewhere")(kept, description)

    with pytest.raises(AttribenchError, match="would be other ones on this node"):
        start(method, replace(context, distribute=keep))
