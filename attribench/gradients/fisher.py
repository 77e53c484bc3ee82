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
from attribench.gradients.features import model_spec
from attribench.gradients.needs import ARTIFACT_BYTES, LIBRARY_BYTES
from attribench.gradients.outputs import output_function
from attribench.gradients.per_sample import (
    Example,
    Term,
    batch_size,
    layerwise_bytes,
    num_parameters,
    own_bytes,
    pass_size,
    row_bytes,
    summed_gradients,
)
from attribench.method import AttributionContext, Needs
from attribench.store.artifacts import Spec, Staging
from attribench.store.code import ROOT, source_hash

_KIND = "fisher"

#: The files that decide it; relative to the package.
_DECISIVE = (
    "gradients/fisher.py", "gradients/features.py", "gradients/layerwise.py", "gradients/outputs.py",
    "gradients/per_sample.py", "diffusion/digests.py", "diffusion/inputs.py",
    "diffusion/noise.py", "diffusion/parameters.py",
    "data/image_sets.py", "computing/device.py", "computing/precision.py", "computing/seeding.py",
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
        float64 ``(num_parameters,)`` on the CPU, in the order of those that are not frozen, at least 0.

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
    needs = fisher_needs(context, model, terms, 0.0)
    if not needs.disk:
        return None
    what = f"The diagonal Fisher information of {num_parameters(model):,} parameters"
    return shortage(what, needs.memory + LIBRARY_BYTES, context.device, needs.disk, context.shared_store().store.root)


def fisher_needs(context: AttributionContext, model: nn.Module, terms: Sequence[Term], pass_seconds: float) -> Needs:
    """What :func:`diagonal_fisher` takes; nothing where it is in the store.

    Args:
        pass_seconds: time of the gradient of one image at one timestep and draw.
    """
    store, device, length = context.shared_store().store, context.device, num_parameters(model)
    missing = [part for part, spec in _parts(context, model, terms) if store.find(_KIND, spec) is None]
    if not missing:
        return Needs(0, 0, 0.0)
    example = Example.of(context.inputs, missing[0])
    layerwise = layerwise_bytes(model, example.shape, device, example.conditions)
    samples = min(batch_size(length, device), max(map(len, missing)))
    if layerwise is None:
        passes = samples * row_bytes(model, example.shape, device, example.conditions)
    else:
        passes = layerwise * min(samples, pass_size(layerwise, device))
    # The weights, a batch's gradients and what they are made from; in float64, the sums of a part and of all.
    memory = 4 * length + own_bytes(length) * samples + 2 * 8 * length + passes
    disk = len(missing) * (8 * length + ARTIFACT_BYTES)
    return Needs(memory, disk, pass_seconds * sum(map(len, missing)) * len(terms))


def _parts(context: AttributionContext, model: nn.Module, terms: Sequence[Term]) -> Iterator[tuple[ImageSet, Spec]]:
    """What is stored by itself: some images each, and what identifies their squares."""
    train = context.inputs.seen(context.train)
    common: Spec = {
        "code": source_hash(*(ROOT / name for name in _DECISIVE)),
        **model_spec(context, model),
        "seed": context.seed,
        "timesteps_and_draws": list(terms),
    }
    for begin in range(0, len(train), _IMAGES_PER_PART):
        part = train[begin : begin + _IMAGES_PER_PART]
        yield part, {**common, "images": part.content_hash}


def _squares(
    context: AttributionContext,
    model: nn.Module,
    images: ImageSet,
    terms: Sequence[Term],
    report: Callable[[float], None],
) -> Tensor:
    """The squares summed over images and terms: float64 ``(num_parameters,)``."""
    example = Example.of(context.inputs, images)
    layerwise = layerwise_bytes(model, example.shape, context.device, example.conditions)
    samples = batch_size(num_parameters(model), context.device)
    device = float64_device(context.device)
    total = torch.zeros(num_parameters(model), dtype=torch.float64, device=device)
    for begin in range(0, len(images), samples):
        some = images[begin : begin + samples]
        for term in terms:
            gradients = summed_gradients(
                model,
                context.inputs.clean(some),
                some.ids,
                [term],
                output_function("loss"),
                derive_seed(context.seed, "gradients"),
                context.schedule,
                context.device,
                layerwise,
                report,
                conditions=context.inputs.conditions(some),
            )
            total += gradients.square_().to(device).sum(0, dtype=torch.float64)
    return total.cpu()
