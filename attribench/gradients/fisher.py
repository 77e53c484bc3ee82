"""The diagonal of the Fisher information, from per-sample gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.precision import float64_device
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.gradients.features import model_digest
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import Term, batch_size, layerwise_bytes, num_parameters, summed_gradients
from attribench.method import AttributionContext
from attribench.store.artifacts import Spec, Staging
from attribench.store.code import ROOT, source_hash

_KIND = "fisher"

#: The files that decide it; relative to the package.
_DECISIVE = (
    "gradients/fisher.py", "gradients/features.py", "gradients/layerwise.py", "gradients/outputs.py",
    "gradients/per_sample.py",
    "diffusion/noise.py", "data/image_sets.py", "computing/device.py", "computing/precision.py", "computing/seeding.py",
)  # fmt: skip

#: Images whose squares are stored together; a killed computation loses one such part at most.
_IMAGES_PER_PART = 512


def diagonal_fisher(context: AttributionContext, model: nn.Module, terms: Sequence[Term]) -> Tensor:
    """The mean, over train images and terms, of the squared gradient of the loss at that image and term alone.

    That is the empirical Fisher information, whose gradients are those of the loss itself, up to a constant factor. It is
    kept in the shared store, in parts.

    Args:
        context: of the method that asks; it needs ``Access.MODEL`` at least.
        model: the target model, as the context gave it.
        terms: timesteps and draws of noise; an image's noise is that of :class:`attribench.gradients.GradientFeatures`.

    Returns:
        float64 ``(num_parameters,)`` on the CPU, in the order of ``named_parameters()``, at least 0.
    """
    shared, train = context.shared_store(), context.train
    common: Spec = {
        "code": source_hash(*(ROOT / name for name in _DECISIVE)),
        "weights": model_digest(model),
        "seed": context.seed,
        "timesteps_and_draws": list(terms),
    }
    total = torch.zeros(num_parameters(model), dtype=torch.float64)
    with context.progress.task(f"Fisher information of {len(train)} images", len(train) * len(terms)) as task:
        for begin in range(0, len(train), _IMAGES_PER_PART):
            part = ImageSet(train.images[begin : begin + _IMAGES_PER_PART], train.ids[begin : begin + _IMAGES_PER_PART])

            def build(staging: Staging, part: ImageSet = part) -> None:
                with measure(context.device) as cost:
                    squares = _squares(context, model, part, terms, task.advance)
                staging.save_tensors("squares", {"squares": squares})
                staging.note(peak_bytes=cost.peak_bytes)

            artifact = shared.get_or_create(_KIND, {**common, "images": part.content_hash}, build)
            total += artifact.load_tensors("squares")["squares"]
    return total / (len(train) * len(terms))


def _squares(
    context: AttributionContext,
    model: nn.Module,
    images: ImageSet,
    terms: Sequence[Term],
    report: Callable[[float], None],
) -> Tensor:
    """The squares summed over images and terms: float64 ``(num_parameters,)``."""
    row_bytes = layerwise_bytes(model, images.images.shape[1:], context.device)
    samples = batch_size(num_parameters(model), context.device)
    device = float64_device(context.device)
    total = torch.zeros(num_parameters(model), dtype=torch.float64, device=device)
    for begin in range(0, len(images), samples):
        for term in terms:
            gradients = summed_gradients(
                model,
                images.images[begin : begin + samples],
                images.ids[begin : begin + samples],
                [term],
                output_function("loss"),
                derive_seed(context.seed, "gradients"),
                context.schedule,
                context.device,
                row_bytes,
                report,
            )
            total += gradients.square_().to(device).sum(0, dtype=torch.float64)
    return total.cpu()
