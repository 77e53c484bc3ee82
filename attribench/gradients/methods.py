"""What the gradient methods have in common; the file of a method says only how it differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attribench.computing.similarity import Kind, similarity
from attribench.errors import AttribenchError
from attribench.gradients.distributed import provide_features
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.features import GradientFeatures
from attribench.gradients.inner_products import kept_bytes
from attribench.gradients.needs import (
    ARTIFACT_BYTES,
    PIECE,
    comparison_bytes,
    products_seconds,
    ridge_bytes,
    ridge_scoring_bytes,
    total,
)
from attribench.gradients.options import FeatureOptions
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.projection import ProjectionName
from attribench.gradients.ridge import Ridge, check_regularization, kernel_refusal
from attribench.gradients.search import NUM_TIMESTEPS, search_ridge
from attribench.method import Access, AttributionContext, AttributionMethod, Evaluate, Needs, Queries


class KernelMethod(AttributionMethod):
    """Scores φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n) with the gradient features φ of query and train images at the target model.

    Args:
        f: the model output whose gradients are features; see :func:`attribench.gradients.outputs.output_function`.
        num_timesteps: gradients are averaged over so many evenly spaced timesteps.
        projection: of the gradients: ``identity`` (none), ``basic`` (CPU or GPU), ``cuda`` (trak's kernel), or ``auto``:
            ``identity`` up to 16 · proj_dim parameters, beyond it ``cuda`` where it works and ``basic`` elsewhere. Or
            ``factored``: each layer from two sides, as LoGra does.
        proj_dim: length of a projected gradient, with ``factored`` at most so long.
        regularization: λ as a share of the mean squared length of a train image's features; see
            :class:`attribench.gradients.ridge.Ridge`. The default comes from a pilot on validation queries of digits.
        noise_draws: gradients are averaged over so many draws of noise at every timestep.
        layers: the parameters that gradients are of, by patterns of their names, separated by commas, such as ``attn*``; none:
            all, or LoRA's where the model has one. Parameters that are frozen never count.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL
    #: Model outputs that ``attribench tune`` tries; none leaves f as it is.
    outputs: ClassVar[Sequence[ModelOutput]] = ()
    #: Whether the gradient of each timestep and draw is divided by its length before the average.
    normalized: ClassVar[bool] = False

    def __init__(
        self,
        f: ModelOutput = "loss",
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        regularization: float = 0.1,
        noise_draws: int = 1,
        layers: str = "",
    ) -> None:
        check_regularization(regularization)
        self._options = FeatureOptions(f, num_timesteps, projection, proj_dim, noise_draws, self.normalized, layers)
        self._regularization = regularization
        self._ridge: Ridge | None = None

    @classmethod
    def search(cls, evaluate: Evaluate, options: Mapping[str, Any]) -> dict[str, Any]:
        """Choose λ, the number of timesteps and, where :attr:`outputs` has several, f."""
        return search_ridge(evaluate, options, cls.outputs)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when the gradients do not fit into memory or on the disk, or their kernel into memory."""
        features = GradientFeatures(context, self._options)
        reason = features.refusal(context.train)
        if reason is not None:
            return reason
        dimensions, _ = features.layout(context.train)
        return kernel_refusal(len(context.train), dimensions, context.device)

    def needs(self, context: AttributionContext, num_queries: int) -> Needs:
        """Of gradients, of the kernel, and of the scores."""
        features, count = GradientFeatures(context, self._options), len(context.train)
        dim, chunk = features.layout(context.train)
        size = min(count, dim)
        seconds = products_seconds(count, size, dim, context.device.type) + products_seconds(
            size, size, size, context.device.type
        )
        kept = 0
        if count <= dim:
            pieces = [min(PIECE, num_queries - begin) for begin in range(0, num_queries, PIECE)]
            kept = sum(kept_bytes(rows, count) + ARTIFACT_BYTES for rows in (count, *pieces))
        return total(
            features.needs(context.train, num_queries),
            Needs(ridge_bytes(count, dim, chunk), kept, seconds),
            Needs(ridge_scoring_bytes(count, dim, chunk, num_queries), 0, 0.0),
            left_over=features.left_over(context.train),
        )

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients, unless another method has, and factorise their kernel."""
        model = context.target_model()
        provide_features(context, self._options, model)
        features = GradientFeatures(context, self._options).of(model, context.train)
        self._ridge = Ridge(features, self._regularization, context.device)

    def attribute(self, queries: Queries) -> Tensor:
        """Return float64 scores ``(num_queries, num_train)``."""
        if self._ridge is None:
            raise AttribenchError(f"{type(self).__name__} is not prepared: call start(method, context) first.")
        return self.rescale(self._ridge.scores(self.query_features(queries)), self._ridge)

    def query_features(self, queries: Queries) -> FeatureSet:
        """φ(x) of the queries: made like those of the train images, unless overridden."""
        return GradientFeatures(self.context, self._options).of(self.context.target_model(), queries)

    def rescale(self, scores: Tensor, ridge: Ridge) -> Tensor:
        """What a method makes of the kernel's scores ``(num_queries, num_train)``; as they are, unless overridden."""
        return scores


class SimilarityMethod(AttributionMethod):
    """Similarity of the loss gradients of query and train images, averaged over models.

    The models are the target model, or its checkpoints with equal weights where the method declares
    ``Access.CHECKPOINTS``.

    Args:
        num_timesteps: gradients are averaged over so many evenly spaced timesteps.
        projection: of the gradients: ``identity`` (none), ``basic`` (CPU or GPU), ``cuda`` (trak's kernel), or ``auto``:
            ``identity`` up to 16 · proj_dim parameters, beyond it ``cuda`` where it works and ``basic`` elsewhere. Or
            ``factored``: each layer from two sides, as LoGra does.
        proj_dim: length of a projected gradient, with ``factored`` at most so long.
        noise_draws: gradients are averaged over so many draws of noise at every timestep.
        layers: the parameters that gradients are of, by patterns of their names, separated by commas, such as ``attn*``; none:
            all, or LoRA's where the model has one. Parameters that are frozen never count.

    Raises:
        UsageError: an option is out of range.
    """

    access = Access.MODEL
    search_space: ClassVar[Mapping[str, Sequence[Any]]] = {"num_timesteps": NUM_TIMESTEPS}
    #: How two gradients are compared.
    kind: Kind

    def __init__(
        self,
        num_timesteps: int = 10,
        projection: ProjectionName = "auto",
        proj_dim: int = 32768,
        noise_draws: int = 1,
        layers: str = "",
    ) -> None:
        self._options = FeatureOptions("loss", num_timesteps, projection, proj_dim, noise_draws, layers=layers)

    def skip_reason(self, context: AttributionContext) -> str | None:
        """Refuse when the gradients do not fit into memory or on the disk."""
        checkpoints = self.access >= Access.CHECKPOINTS
        return GradientFeatures(context, self._options).refusal(context.train, checkpoints=checkpoints)

    def needs(self, context: AttributionContext, num_queries: int) -> Needs:
        """Of gradients at every model, and of comparing them."""
        features, checkpoints = GradientFeatures(context, self._options), self.access >= Access.CHECKPOINTS
        dim, chunk = features.layout(context.train, checkpoints)
        return total(
            features.needs(context.train, num_queries, checkpoints),
            Needs(comparison_bytes(len(context.train), dim, chunk, num_queries), 0, 0.0),
            left_over=features.left_over(context.train, checkpoints),
        )

    def prepare(self, context: AttributionContext) -> None:
        """Compute the train images' gradients at every model, unless another method has."""
        features = GradientFeatures(context, self._options)
        for model in self._models(context):
            provide_features(context, self._options, model)
            features.of(model, context.train)

    def attribute(self, queries: Queries) -> Tensor:
        """Return scores ``(num_queries, num_train)``: dot products, or cosines in -1…1."""
        features = GradientFeatures(self.context, self._options)
        total, count = torch.zeros(len(queries), len(self.context.train), dtype=torch.float64), 0
        for model in self._models(self.context):
            total += compare(features.of(model, queries), features.of(model, self.context.train), self.kind)
            count += 1
        return total / count

    def _models(self, context: AttributionContext) -> Iterable[nn.Module]:
        return context.checkpoints() if self.access >= Access.CHECKPOINTS else [context.target_model()]


def compare(queries: FeatureSet, train: FeatureSet, kind: Kind) -> Tensor:
    """Compare two sets of features block by block: float32 ``(num_queries, num_train)``."""
    rows = [
        torch.cat([similarity(rows, columns, kind) for columns in train.blocks()], dim=1) for rows in queries.blocks()
    ]
    return torch.cat(rows)
