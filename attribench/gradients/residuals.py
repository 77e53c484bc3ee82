"""How well the model predicts what it is to, at the timesteps and draws that an image's gradients come from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attribench.computing.cost import measure
from attribench.computing.seeding import derive_seed
from attribench.data import ImageSet
from attribench.errors import AttribenchError
from attribench.gradients.features import DECISIVE, model_spec
from attribench.gradients.options import FeatureOptions
from attribench.gradients.per_sample import Term, noised_passes, reproducible
from attribench.method import AttributionContext
from attribench.store.artifacts import Staging
from attribench.store.code import ROOT, source_hash

_KIND = "residuals"

#: The files that decide residuals; relative to the package.
_DECISIVE = ("gradients/residuals.py", *DECISIVE)

#: Rows (images times terms) of one forward pass, at most.
_ROWS = 256


def mean_residuals(
    context: AttributionContext, options: FeatureOptions, model: nn.Module, images: ImageSet, normalized: bool = False
) -> Tensor:
    """√(mean((ε_θ − ε)²)) of every image, or of what else the network predicts, averaged over timesteps and draws of noise.

    Timesteps, draws and noise are those of the gradient features of the same options. Sums over them are kept in the parts
    in which features are: more timesteps or draws add to what is there.

    Args:
        normalized: divide those of each timestep and draw by their length, over all images, before the average.

    Returns:
        float64 ``(num_images,)`` on the CPU, each at least 0.

    Raises:
        AccessError: the method declared ``Access.DATA``.
        AttribenchError: an error is not finite.
    """
    shared, images = context.shared_store(), context.inputs.seen(images)
    common = {
        "code": source_hash(*(ROOT / name for name in _DECISIVE)),
        **model_spec(context, model),
        "seed": context.seed,
        "images": images.content_hash,
        **({"normalized": True} if normalized else {}),
    }
    total, count = torch.zeros(len(images), dtype=torch.float64), 0
    passes = len(images) * sum(map(len, options.stages))
    with context.progress.task(f"errors of the model on {len(images)} images", passes) as task:
        for terms in options.stages:
            spec = {**common, "timesteps_and_draws": terms}
            part = shared.get_or_create(_KIND, spec, _builder(context, model, images, terms, normalized, task.advance))
            total += part.load_tensors("residuals")["residuals"]
            count += len(terms)
    return total / count


def _builder(
    context: AttributionContext,
    model: nn.Module,
    images: ImageSet,
    terms: list[Term],
    normalized: bool,
    report: Callable[[float], None],
) -> Callable[[Staging], None]:
    def build(staging: Staging) -> None:
        like = next(model.parameters()).detach()
        found = torch.empty(len(terms), len(images), dtype=torch.float64)
        seed = derive_seed(context.seed, "gradients")
        together, inputs = min(len(terms), 8), context.inputs
        clean, told = inputs.clean(images), inputs.conditions(images)
        with measure(context.device) as cost, reproducible():
            for some in noised_passes(
                clean, images.ids, terms, _ROWS // together, together, seed, context.schedule, like, told
            ):
                predicted = model(some.noisy, some.timesteps, **some.conditions).sample
                errors = (predicted - some.target).square().flatten(1).mean(1).sqrt()
                rows = [terms.index(term) for term in some.terms]
                found[rows, some.images] = errors.cpu().double().view(len(some.terms), -1)
                report(float(len(errors)))
        if normalized:
            lengths = found.norm(dim=1, keepdim=True)
            found /= lengths.where(lengths > 0, torch.ones_like(lengths))
        total = found.sum(0)
        if not torch.isfinite(total).all():
            raise AttribenchError(f"The model's errors on {images.ids[0]!r}…{images.ids[-1]!r} are not finite.")
        staging.save_tensors("residuals", {"residuals": total})
        staging.note(peak_bytes=cost.peak_bytes)

    return build
