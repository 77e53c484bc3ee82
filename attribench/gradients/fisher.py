"""The diagonal of the Fisher information, from per-sample gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.precision import float64_device
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.errors import AttribenchError
from attribench.gradients.budget import shortage
from attribench.gradients.features import model_digest
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import (
    Term,
    batch_size,
    held_bytes,
    layerwise_bytes,
    num_parameters,
    own_bytes,
    pass_size,
    summed_gradients,
)
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

    Raises:
        AttribenchError: it does not fit into memory or on the disk; nothing has been computed then.
    """
    shared, train = context.shared_store(), context.train
    reason = fisher_refusal(context, model, terms)
    if reason is not None:
        raise AttribenchError(reason)
    total = torch.zeros(num_parameters(model), dtype=torch.float64)
    with context.progress.task(f"Fisher information of {len(train)} images", len(train) * len(terms)) as task:
        for part, spec in _parts(context, model, terms):

            def build(staging: Staging, part: ImageSet = part) -> None:
                with measure(context.device) as cost:
                    squares = _squares(context, model, part, terms, task.advance)
                staging.save_tensors("squares", {"squares": squares})
                staging.note(peak_bytes=cost.peak_bytes)

            total += shared.get_or_create(_KIND, spec, build).load_tensors("squares")["squares"]
    return total / (len(train) * len(terms))


def fisher_refusal(context: AttributionContext, model: nn.Module, terms: Sequence[Term]) -> str | None:
    """Say why :func:`diagonal_fisher` cannot be had here, or return None: for a method's ``skip_reason``."""
    store, device, length = context.shared_store().store, context.device, num_parameters(model)
    missing = [part for part, spec in _parts(context, model, terms) if store.find(_KIND, spec) is None]
    if not missing:
        return None
    held, layerwise = held_bytes(model, context.train.image_shape, device)
    samples = min(batch_size(length, device), max(map(len, missing)))
    passes = held * (min(samples, pass_size(held, device)) if layerwise else samples)
    # The weights, a batch's gradients and what they are made from; in float64, the sums of a part and of all.
    memory = 4 * length + own_bytes(length) * samples + 2 * 8 * length + passes
    per_artifact = 8 * length + 4096  # specification and manifest
    what = f"The diagonal Fisher information of {length:,} parameters"
    return shortage(what, memory * 9 // 8, device, len(missing) * per_artifact, store.root)


def _parts(context: AttributionContext, model: nn.Module, terms: Sequence[Term]) -> Iterator[tuple[ImageSet, Spec]]:
    """What is stored by itself: some images each, and what identifies their squares."""
    train = context.train
    common: Spec = {
        "code": source_hash(*(ROOT / name for name in _DECISIVE)),
        "weights": model_digest(model),
        "seed": context.seed,
        "timesteps_and_draws": list(terms),
    }
    for begin in range(0, len(train), _IMAGES_PER_PART):
        part = ImageSet(train.images[begin : begin + _IMAGES_PER_PART], train.ids[begin : begin + _IMAGES_PER_PART])
        yield part, {**common, "images": part.content_hash}


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
