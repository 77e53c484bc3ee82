"""Gradient features chunk by chunk on other machines, where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import nn

from attribench.computing.progress import Task
from attribench.data import ImageSet
from attribench.diffusion.inputs import ModelInputs
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import AttribenchError
from attribench.gradients.features import GradientFeatures
from attribench.gradients.options import FeatureOptions
from attribench.method import Access, AttributionContext, ModelProvider
from attribench.store.artifacts import ArtifactStore, Spec, Staging
from attribench.store.files import canonical
from attribench.store.shared import SharedStore


class PortableModels(ModelProvider, Protocol):
    """Models that can be had on another machine, from what a store holds there: a picklable value."""

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        """Kinds and specifications of the artifacts that they are read from."""

    def at(self, store: ArtifactStore) -> ModelProvider:
        """The same from another store."""


@dataclass(frozen=True, eq=False)
class FeaturePart:
    """The features of one chunk of images, summed over one part of the timesteps and draws.

    Attributes:
        spec: of the artifact, which names model, images and terms by their content.
        images: the chunk.
        namespace: of shared artifacts.
    """

    options: FeatureOptions
    spec: Spec
    images: ImageSet
    models: PortableModels
    namespace: str
    schedule: NoiseSchedule
    inputs_of: ModelInputs
    seed: int
    passes: int
    memory: int

    @property
    def name(self) -> str:
        return f"gradients of {self.options.f} on images {self.images.ids[0]} … {self.images.ids[-1]}"

    @property
    def cost(self) -> float:
        return float(self.passes)

    @property
    def kind(self) -> str:
        return f"{self.namespace}{GradientFeatures.KIND}"

    @property
    def inputs(self) -> list[tuple[str, Spec]]:
        return self.models.inputs

    def make(
        self, store: ArtifactStore, device: torch.device, staging: Staging, report: Callable[[float], None]
    ) -> None:
        models = self.models.at(store)
        context = AttributionContext(
            self.images, self.schedule, device, self.seed, store.scoped("methods/features"), Access.CHECKPOINTS, models,
            shared=SharedStore(store.scoped("shared")), inputs=self.inputs_of,
        )  # fmt: skip
        features = GradientFeatures(context, self.options)
        bar = _Report(report)
        for model in [models.target_model(), *models.checkpoints()]:
            if features.make(model.to(device).eval(), self.images, self.spec, staging, bar):
                return
        raise AttribenchError(
            f"The {self.name} would be other ones on this node than on the command's: another kind of device, or another model."
        )


def provide_features(context: AttributionContext, options: FeatureOptions, model: nn.Module) -> None:
    """Have those features of the train images that are missing made on other machines, if there are any.

    Args:
        model: the target model or a checkpoint, as the context gave it.
    """
    if context.distribute is None or not hasattr(context.models, "at"):
        return
    models = cast(PortableModels, context.models)
    plan = GradientFeatures(context, options).plan(model, context.train)
    parts = [
        FeaturePart(
            options, part.spec, part.images, models, context.shared_store().store.namespace, context.schedule,
            context.inputs, context.seed, len(part.images) * len(part.terms), plan.memory(len(part.images)),
        )
        for part in plan.missing
    ]  # fmt: skip
    if parts:
        distinct = {canonical(part.spec): part for part in parts}
        context.distribute(list(distinct.values()), f"gradients of {options.f} on {len(context.train)} images")


class _Report(Task):
    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report

    def advance(self, amount: float = 1.0) -> None:
        self._report(amount)
