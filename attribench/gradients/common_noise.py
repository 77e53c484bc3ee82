"""What a change of the weights does to the train images' losses, under noise that stays the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribench.computing.cost import measure
from attribench.computing.device import exact_float32
from attribench.computing.precision import float64_device, to_float64
from attribench.computing.seeding import derive_seed
from attribench.diffusion.inputs import Conditions
from attribench.diffusion.noise import NoiseSchedule, sample_noise_batch
from attribench.diffusion.parameters import trainable
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.budget import shortage
from attribench.gradients.features import model_spec
from attribench.gradients.needs import ARTIFACT_BYTES, LIBRARY_BYTES
from attribench.gradients.per_sample import (
    NO_CONDITIONS,
    Example,
    Term,
    num_parameters,
    pass_size,
    row_bytes,
    to_clean,
    told_rows,
)
from attribench.method import AttributionContext
from attribench.store.artifacts import Spec, Staging
from attribench.store.code import ROOT, source_hash

#: A network's parameters by name: those that are not frozen.
Weights = Mapping[str, Tensor]

#: Whose noise an image gets: ``common``, the same for all images and for the query; ``own``.
NoiseOwner = Literal["common", "own"]

_KIND = "common-noise-losses"

#: The files that decide the losses; relative to the package.
_DECISIVE = (
    "gradients/common_noise.py", "gradients/features.py", "gradients/per_sample.py",
    "diffusion/digests.py", "diffusion/inputs.py",
    "diffusion/noise.py", "diffusion/parameters.py",
    "data/image_sets.py", "computing/device.py", "computing/precision.py", "computing/seeding.py",
)  # fmt: skip

#: Images of one forward pass, and of one backward pass, at most: beyond it, they cost memory and gain no speed.
_FORWARD_ROWS = {"cpu": 256, "cuda": 1024}
_BACKWARD_ROWS = {"cpu": 64, "cuda": 128}

#: Bytes of noise that are kept; what is more is drawn again for every change of the weights.
_NOISE_BYTES = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}


class CommonNoiseLosses:
    """The denoising losses of every train image at any weights, kept in the shared store.

    The noise of an image at a timestep and draw is the same whatever the weights, so that it cancels out of a difference.

    Args:
        context: of the method that asks; it needs ``Access.MODEL`` at least.
        model: the target model, as the context gave it; the architecture, and where weights are changed from.
        terms: the timesteps and draws of noise.
        owner: ``common`` noise is the same for all images too, so that it also cancels out of their ranking.

    Raises:
        UsageError: there is no such owner.
    """

    def __init__(
        self, context: AttributionContext, model: nn.Module, terms: Sequence[Term], owner: NoiseOwner = "common"
    ) -> None:
        self._context, self._terms, self._owner = context, list(terms), check_owner(owner)
        self._model, self._train = model, context.inputs.seen(context.train)
        self._shared = context.shared_store()
        self._spec: Spec = {
            "code": source_hash(*(ROOT / name for name in _DECISIVE)),
            **model_spec(context, model),
            "seed": context.seed,
            "images": self._train.content_hash,
            "timesteps_and_draws": self._terms,
            "noise": owner,
        }

    @property
    def passes(self) -> int:
        """Forward passes (images) at every change of the weights."""
        return len(self._terms) * len(self._context.train)

    @cached_property
    def row_bytes(self) -> int:
        """What :func:`attribench.gradients.per_sample.row_bytes` says."""
        example = self._example
        return row_bytes(self._model, example.shape, self._context.device, example.conditions)

    @cached_property
    def _example(self) -> Example:
        return Example.of(self._context.inputs, self._train)

    def memory(self, copies: int) -> int:
        """Bytes at the peak, about: train images, the noise that is kept, sets of weights, and a pass.

        Args:
            copies: of the parameters, in their own type, that making other weights takes, those themselves included.
        """
        device, images = self._context.device, len(self._context.train)
        first, pixels = next(self._model.parameters()), prod(self._example.shape)
        noise = first.element_size() * pixels * (images if self._owner == "own" else 1)
        kept = min(_limit(_NOISE_BYTES, device), len(self._terms) * noise) + noise
        # Of what a backward pass would need, a forward pass holds a part at a time.
        forward = min(forward_rows(self.row_bytes, device), images) * self.row_bytes // 6
        backward = backward_rows(self.row_bytes, device) * self.row_bytes
        results = 3 * 8 * self.passes
        weights = first.element_size() * num_parameters(self._model) * (1 + copies)
        return weights + first.element_size() * images * pixels + kept + results + max(forward, backward)

    def refusal(self, copies: int, changes: Sequence[Spec] = ()) -> str | None:
        """Say why losses at other weights cannot be had here, or return None.

        Args:
            copies: see :meth:`memory`.
            changes: by which the weights are to be changed; none for those of a single query.
        """
        store = self._shared.store
        missing = sum(store.find(_KIND, self._changed_spec(change)) is None for change in changes) if changes else 1
        return shortage(
            f"Taking {self.passes:,} losses at changed weights of {num_parameters(self._model):,} parameters",
            self.memory(copies) + LIBRARY_BYTES,
            self._context.device,
            missing * self.stored_bytes,
            store.root,
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk of the losses at one set of weights."""
        return next(self._model.parameters()).element_size() * self.passes + ARTIFACT_BYTES

    def at_target(self) -> Tensor:
        """The losses at the target model: ``(num_terms, num_train)`` of its type, each at least 0."""
        parameters = {name: value.detach() for name, value in trainable(self._model).items()}
        return self.at({}, lambda: parameters)

    def at(self, change: Spec, weights: Callable[[], Weights]) -> Tensor:
        """The losses at other weights, per-pixel means of squared errors: ``(num_terms, num_train)`` of the model's type.

        Args:
            change: identifies how the weights come from the target model; {} for its own.
            weights: makes them; called only where the losses are not in the store.

        Raises:
            AttribenchError: a loss is not finite: the weights were moved too far.
        """

        def build(staging: Staging) -> None:
            with measure(self._context.device) as cost:
                moved = weights()
                own = trainable(self._model)
                if change and all(torch.equal(value, own[name]) for name, value in moved.items()):
                    losses = self.at_target()  # to the bit, so that it shows that nothing has moved
                else:
                    losses = self._losses(moved)
            if not torch.isfinite(losses).all():
                raise AttribenchError("The losses of train images are not finite: the weights were moved too far.")
            staging.save_tensors("losses", {"losses": losses})
            staging.note(peak_bytes=cost.peak_bytes)

        return self._shared.get_or_create(_KIND, self._changed_spec(change), build).load_tensors("losses")["losses"]

    def _changed_spec(self, change: Spec) -> Spec:
        return {**self._spec, "change": change}

    @torch.inference_mode()
    def trial(self) -> float:
        """Seconds that a forward pass takes for an image, found out with a few."""
        clean = self._clean[:16]
        steps = torch.zeros(len(clean), dtype=torch.long, device=clean.device)
        told = told_rows(self._context.inputs.conditions(self._train), slice(0, len(clean)), 1, clean)

        def run() -> float:
            started = time.perf_counter()
            self._model(clean, steps, **told).sample.sum().item()
            return time.perf_counter() - started

        run()  # the first one finds out how to compute
        return run() / len(clean)

    def _losses(self, weights: Weights) -> Tensor:
        device, images = self._context.device, len(self._context.train)
        buffers = dict(self._model.named_buffers())
        clean, told = self._clean, self._context.inputs.conditions(self._train)
        result = torch.empty(len(self._terms), images, dtype=clean.dtype)
        rows = forward_rows(self.row_bytes, device)
        with exact_float32(), sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
            for number, (timestep, _) in enumerate(self._terms):
                noise = self._noise(number)
                for begin in range(0, images, rows):
                    part, schedule = slice(begin, begin + rows), self._context.schedule
                    noisy = schedule.add_noise(clean[part], noise[part], timestep)
                    steps = torch.full((len(noisy),), timestep, device=device)
                    own = told_rows(told, part, 1, noisy)
                    predicted = functional_call(self._model, (dict(weights), buffers), (noisy, steps), own).sample
                    target = schedule.target(clean[part], noise[part], timestep)
                    errors = (predicted - target).square().flatten(1).mean(1)
                    result[number, part] = errors.cpu()
        return result

    @cached_property
    def _clean(self) -> Tensor:
        first = next(self._model.parameters())
        return to_clean(self._context.inputs.clean(self._train)).to(self._context.device, first.dtype)

    def _noise(self, number: int) -> Tensor:
        """The noise of every image at a term, kept where it fits."""
        if number not in self._kept:
            noise = self._draw(number)
            each = noise.nbytes // (len(noise) if self._owner == "common" else 1)
            if (len(self._kept) + 1) * each > _limit(_NOISE_BYTES, self._context.device):
                return noise
            self._kept[number] = noise
        return self._kept[number]

    @cached_property
    def _kept(self) -> dict[int, Tensor]:
        return {}

    def _draw(self, number: int) -> Tensor:
        timestep, draw = self._terms[number]
        shape = tuple(self._clean.shape[1:])
        names = [COMMON] if self._owner == "common" else self._context.train.ids
        noise = sample_noise_batch(noise_seed(self._context), names, timestep, draw, shape).to(self._clean)
        return noise.expand(len(self._clean), *shape)


#: What common noise is a function of in place of an image's name, which is never empty.
COMMON = ""


def noise_seed(context: AttributionContext) -> int:
    """The seed that, with a name, a timestep and a draw, decides the noise that train images get."""
    return derive_seed(context.seed, "common noise")


def check_owner(owner: str) -> NoiseOwner:
    """Insist on an owner of noise that there is.

    Raises:
        UsageError: it is none.
    """
    if owner not in get_args(NoiseOwner):
        raise UsageError(f"noise must be 'common' or 'own'; got {owner!r}.")
    return cast(NoiseOwner, owner)


def mean_loss(
    model: nn.Module,
    weights: Weights,
    noisy: Tensor,
    target: Tensor,
    timesteps: Tensor,
    row_bytes: int = 0,
    conditions: Conditions = NO_CONDITIONS,
) -> Tensor:
    """The mean denoising loss over rows, a float64 scalar; see :func:`mean_loss_and_gradient`."""
    buffers = dict(model.named_buffers())
    total = torch.zeros((), dtype=torch.float64, device=float64_device(noisy.device))
    rows = forward_rows(row_bytes, noisy.device)
    with exact_float32(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for begin in range(0, len(noisy), rows):
            part = slice(begin, begin + rows)
            told = told_rows(conditions, slice(0, 1), len(noisy[part]), noisy)
            predicted = functional_call(model, (dict(weights), buffers), (noisy[part], timesteps[part]), told).sample
            total += to_float64((predicted - target[part]).square().flatten(1).mean(1).sum() / len(noisy))
    return total


def mean_loss_and_gradient(
    model: nn.Module,
    weights: Weights,
    noisy: Tensor,
    target: Tensor,
    timesteps: Tensor,
    row_bytes: int = 0,
    conditions: Conditions = NO_CONDITIONS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean denoising loss over rows, and its gradient, by ordinary backward passes.

    Args:
        model: the architecture and its buffers.
        weights: where to take the gradient.
        noisy: ``(B, C, H, W)``, on the model's device.
        target: what the network is to predict, likewise.
        timesteps: int ``(B,)``.
        row_bytes: of memory that a row holds between forward and backward pass; bounds how many go together.
        conditions: what it is told, of one image: the same in all rows.

    Returns:
        A float64 scalar, and gradients by name, of the weights' shapes.
    """
    buffers = dict(model.named_buffers())
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    total = torch.zeros((), dtype=torch.float64, device=float64_device(noisy.device))
    gradients = {name: torch.zeros_like(value) for name, value in weights.items()}
    rows = backward_rows(row_bytes, noisy.device)
    with exact_float32(), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for begin in range(0, len(noisy), rows):
            part = slice(begin, begin + rows)
            told = told_rows(conditions, slice(0, 1), len(noisy[part]), noisy)
            predicted = functional_call(model, (leaves, buffers), (noisy[part], timesteps[part]), told).sample
            loss = (predicted - target[part]).square().flatten(1).mean(1).sum() / len(noisy)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            total += to_float64(loss.detach())
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    gradients[name] += gradient
    return total, gradients


def noisy_rows(
    image: Tensor, name: str, terms: Sequence[Term], seed: int, schedule: NoiseSchedule, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One image under the noise of every term.

    Args:
        image: ``(C, H, W)``, as :meth:`attribench.diffusion.inputs.ModelInputs.clean` gives it.
        name: the noise is a function of (seed, name, timestep, draw).
        like: of the type and on the device that the network works with.

    Returns:
        Noisy images and what the network is to predict, ``(num_terms, C, H, W)``, and timesteps ``(num_terms,)``.
    """
    clean = to_clean(image).to(like)
    shape = tuple(clean.shape)
    noise = torch.cat([sample_noise_batch(seed, [name], timestep, draw, shape) for timestep, draw in terms]).to(like)
    noisy = torch.stack(
        [schedule.add_noise(clean, one, timestep) for one, (timestep, _) in zip(noise, terms, strict=True)]
    )
    target = torch.stack(
        [schedule.target(clean, one, timestep) for one, (timestep, _) in zip(noise, terms, strict=True)]
    )
    return noisy, target, torch.tensor([timestep for timestep, _ in terms], device=like.device)


def forward_rows(row_bytes: int, device: torch.device) -> int:
    """Images of one forward pass. Nothing is held for a backward pass, so that a row takes half as much at most."""
    return min(_limit(_FORWARD_ROWS, device), pass_size(row_bytes // 2, device))


def backward_rows(row_bytes: int, device: torch.device) -> int:
    """Images of one backward pass."""
    return min(_limit(_BACKWARD_ROWS, device), pass_size(row_bytes, device))


def _limit(limits: Mapping[str, int], device: torch.device) -> int:
    return limits.get(device.type, limits["cpu"])
