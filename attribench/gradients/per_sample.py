"""Gradients of a model output, one a sample, summed over timesteps and draws of noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribench.computing.device import exact_float32
from attribench.data import ImageSet, to_unit_range
from attribench.diffusion.inputs import Conditions, ModelInputs, Rows
from attribench.diffusion.noise import NoiseSchedule, sample_noise_batch
from attribench.diffusion.parameters import trainable
from attribench.gradients.layerwise import LayerwiseGradients, Take, whole
from attribench.gradients.outputs import OutputFunction, loss_weights

#: A timestep and the number of a draw of noise at it.
Term = tuple[int, int]

#: Samples whose gradients are taken at a time, at most: beyond it, activations cost memory and gain no speed.
_LARGEST_BATCH = 64

#: Bytes of gradients that are held at a time, about, for the samples of one batch.
_BATCH_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}

#: Rows (samples times terms) of one forward pass, at most, and bytes that they may hold for its backward pass.
_LARGEST_PASS = 640
_PASS_BYTES = {"cpu": 512 * 2**20, "cuda": 8 * 2**30}


#: Images that a network is looked at with.
_BLANKS = 2


def batch_size(num_parameters: int, device: torch.device) -> int:
    """Samples whose gradients are taken together: bounded by memory alone, so the same in every run."""
    budget = _BATCH_BYTES.get(device.type, _BATCH_BYTES["cpu"])
    return max(1, min(_LARGEST_BATCH, budget // (4 * num_parameters)))


def pass_size(row_bytes: int, device: torch.device) -> int:
    """Rows that go through the network together.

    Args:
        row_bytes: what :func:`layerwise_bytes` says.
    """
    budget = _PASS_BYTES.get(device.type, _PASS_BYTES["cpu"])
    return max(1, min(_LARGEST_PASS, budget // max(1, row_bytes)))


def num_parameters(network: nn.Module) -> int:
    """The length of a gradient."""
    return sum(parameter.numel() for parameter in trainable(network).values())


#: For networks that are told nothing.
NO_CONDITIONS: Conditions = {}


class Example(NamedTuple):
    """What a network needs for one image of a kind, whatever is on it.

    Attributes:
        shape: (C, H, W) of what goes into the network.
        conditions: what the network is told of one image.
    """

    shape: Sequence[int]
    conditions: Conditions

    @classmethod
    def of(cls, inputs: ModelInputs, images: ImageSet) -> Example:
        """The first of the images, which are such as ``inputs.seen`` gives."""
        first = images[:1]
        return cls(inputs.clean(first).shape[1:], inputs.conditions(first))


def blank_gradients(
    network: nn.Module,
    image_shape: Sequence[int],
    device: torch.device,
    take: Take,
    conditions: Conditions = NO_CONDITIONS,
) -> bool:
    """Take the gradient of the sum of the predictions for blank images, layer by layer.

    Two of them: with one, a layer that is given the same single row for all images looks like one with a row an image.

    Args:
        image_shape: (C, H, W).
        take: is shown each call of a layer, with the gradient of its output.
        conditions: what the network is told of one image.

    Returns:
        Whether layer by layer is all there is to it; see :attr:`LayerwiseGradients.complete`.
    """
    gradients = gradients_of(network, device)
    blank = torch.zeros(_BLANKS, *image_shape, device=device, dtype=_dtype(network))
    steps = torch.zeros(_BLANKS, dtype=torch.long, device=device)
    told = told_rows(conditions, slice(0, 1), _BLANKS, blank)
    with sdpa_kernel(SDPBackend.MATH):
        return gradients.probe(blank, steps, lambda predicted: predicted.sum(), take, told)


def layerwise_bytes(
    network: nn.Module, image_shape: Sequence[int], device: torch.device, conditions: Conditions = NO_CONDITIONS
) -> int | None:
    """What :func:`row_bytes` says, or None where layer by layer does not work."""
    held, complete = held_bytes(network, image_shape, device, conditions)
    return _with_layers(held) if complete else None


def row_bytes(
    network: nn.Module, image_shape: Sequence[int], device: torch.device, conditions: Conditions = NO_CONDITIONS
) -> int:
    """Bytes that a row takes between forward and backward pass, and while that goes."""
    return _with_layers(held_bytes(network, image_shape, device, conditions)[0])


def _with_layers(held: int) -> int:
    # The same again for what the layers themselves hold, their inputs, and for gradients on their way.
    return 2 * held


def held_bytes(
    network: nn.Module, image_shape: Sequence[int], device: torch.device, conditions: Conditions = NO_CONDITIONS
) -> tuple[int, bool]:
    """Bytes that the graph of one row holds for its backward pass, and whether gradients can be taken layer by layer.

    Found out by taking the gradient of blank images.

    Args:
        image_shape: (C, H, W).
        conditions: what the network is told of one image.
    """
    held: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return value

    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
    with saved_tensors_hooks(note, lambda value: value):
        complete = blank_gradients(network, image_shape, device, lambda layer, gradient: None, conditions)
    return sum(size for pointer, size in held.items() if pointer not in weights) // _BLANKS, complete


@dataclass(frozen=True, eq=False)
class Pass:
    """What goes through the network together: some images at some timesteps and draws, a row each, term by term.

    Attributes:
        images: which of the images.
        ids: their names.
        terms: each with all of the images.
        noisy: ``(T · N, C, H, W)``.
        target: what the network is to predict, likewise.
        timesteps: int ``(T · N,)``.
        conditions: what the network is told, ``(T · N, …)`` each.
    """

    images: slice
    ids: Sequence[str]
    terms: Sequence[Term]
    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    conditions: Mapping[str, Tensor]


def noised_passes(
    images: Tensor,
    ids: Sequence[str],
    terms: Sequence[Term],
    samples: int,
    together: int,
    seed: int,
    schedule: NoiseSchedule,
    like: Tensor,
    conditions: Conditions = NO_CONDITIONS,
) -> Iterator[Pass]:
    """Every image at every term, in passes of at most ``samples`` images and ``together`` terms.

    Args:
        images: ``(num_images, C, H, W)``, as :meth:`attribench.diffusion.inputs.ModelInputs.clean` gives them.
        ids: one name an image; its noise is a function of (seed, id, timestep, draw) alone.
        like: of the type, and on the device, that a pass shall be.
        conditions: what the network is told of each image.
    """
    for begin in range(0, len(images), samples):
        some_images = slice(begin, min(begin + samples, len(images)))
        clean, names = to_clean(images[some_images]), ids[some_images]
        for first in range(0, len(terms), together):
            some = terms[first : first + together]
            noise = [sample_noise_batch(seed, names, timestep, draw, clean.shape[1:]) for timestep, draw in some]
            noisy = [schedule.add_noise(clean, one, timestep) for one, (timestep, _) in zip(noise, some, strict=True)]
            target = [schedule.target(clean, one, timestep) for one, (timestep, _) in zip(noise, some, strict=True)]
            steps = torch.tensor([timestep for timestep, _ in some], device=like.device).repeat_interleave(len(clean))
            told = told_rows(conditions, some_images, len(some), like)
            yield Pass(some_images, names, some, torch.cat(noisy).to(like), torch.cat(target).to(like), steps, told)


def to_clean(images: Tensor) -> Tensor:
    """What noise is added to: pixels scaled to [-1, 1], or what is in the model's own space already."""
    return to_unit_range(images) if images.dtype == torch.uint8 else images.float()


def told_rows(conditions: Conditions, images: slice, num_terms: int, like: Tensor) -> dict[str, Tensor]:
    """What the network is told of some images, once a term."""
    rows = {}
    for name, value in conditions.items():
        part = value.of(images) if isinstance(value, Rows) else value[images]
        part = part.to(like.device, like.dtype if part.is_floating_point() else None)
        rows[name] = part.repeat(num_terms, *(1 for _ in part.shape[1:]))
    return rows


class Reduction(Protocol):
    """A linear map of gradients that is applied layer by layer.

    Attributes:
        dim: length of what they are mapped to.
    """

    dim: int

    def take(self, into: Tensor) -> Take:
        """Add mapped gradients to ``(N, dim)``; see :func:`attribench.gradients.layerwise.whole`."""


@contextmanager
def reproducible() -> Iterator[None]:
    """Inside, gradients have float32's precision and the same bits every time."""
    # Attention's fused kernels neither promise the same bits twice nor can be mapped over samples everywhere.
    with exact_float32(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        yield


def summed_gradients(
    network: nn.Module,
    images: Tensor,
    ids: Sequence[str],
    terms: Sequence[Term],
    output: OutputFunction,
    seed: int,
    schedule: NoiseSchedule,
    device: torch.device,
    row_bytes: int | None,
    report: Callable[[float], None] = lambda passes: None,
    normalized: bool = False,
    reduction: Reduction | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> Tensor:
    """Sum ∇_θ f, or ∇_θ f / ‖∇_θ f‖, over timesteps and draws of noise, for every sample.

    Of the parameters that are not frozen; nothing of ``network`` is changed.

    Args:
        network: in evaluation mode, on ``device``; it predicts what ``schedule.target`` says.
        images: ``(num_images, C, H, W)``, as :meth:`attribench.diffusion.inputs.ModelInputs.clean` gives them.
        ids: one name an image; its noise is a function of (seed, id, timestep, draw) alone.
        row_bytes: what :func:`layerwise_bytes` says of the network; None makes one pass a term with ``torch.func``, which
            works for every network.
        report: called with the number of backward passes (samples times terms) just done.
        normalized: divide the gradient of each timestep and draw by its length, before the sum; one of length 0 adds 0.
            Each must then be there by itself, in place of a sum over terms inside the product that makes it.
        reduction: what gradients are mapped to while they are made, and before they are normalised; needs ``row_bytes``.
        conditions: what the network is told of each image.

    Returns:
        ``(num_images, num_parameters)``, or as long as ``reduction`` makes them, on ``device``, of the parameters' type and in
        the order of :func:`attribench.diffusion.parameters.trainable`.
    """
    length = num_parameters(network) if reduction is None else reduction.dim
    result = torch.zeros(len(images), length, device=device, dtype=_dtype(network))
    samples, together = rows_together(len(images), len(terms), length, row_bytes, device, normalized)
    weights = loss_weights(schedule).to(result)
    if row_bytes is None:
        assert reduction is None
        add = _mapped_adder(network, output, weights, device)
    else:
        add = _layerwise_adder(network, output, weights, device, whole if reduction is None else reduction.take)
    if normalized:
        add = _normalizing(add)
    with reproducible():
        for some in noised_passes(images, ids, terms, samples, together, seed, schedule, result, conditions):
            add(some, result[some.images])
            report(float(len(some.noisy)))
    return result


def rows_together(
    num_images: int, num_terms: int, length: int, row_bytes: int | None, device: torch.device, normalized: bool = False
) -> tuple[int, int]:
    """Images, and terms of each, that :func:`summed_gradients` puts through the network together.

    Args:
        length: of what is added up for an image.
    """
    samples, together = batch_size(length, device), 1
    if row_bytes is not None:
        rows = pass_size(row_bytes + (own_bytes(length) if normalized else 0), device)
        together = min(rows, num_terms)
        samples = min(samples, rows // together)
    return min(samples, max(1, num_images)), together


def own_bytes(length: int) -> int:
    """Bytes that a row takes whose gradient is kept apart from those of other terms: itself, and what it is made from."""
    return 2 * 4 * length


#: Of what goes through the network together, and where to add the gradients: ``(N, num_parameters)`` where rows come term by
#: term, N in each.
_Adder = Callable[[Pass, Tensor], None]


def _normalizing(add: _Adder) -> _Adder:
    def add_normalized(some: Pass, into: Tensor) -> None:
        rows = into.new_zeros(len(some.noisy), into.shape[1])
        add(some, rows)  # as if every row were a sample
        lengths = rows.norm(dim=1, keepdim=True)
        rows /= lengths.where(lengths > 0, torch.ones_like(lengths))
        into += rows.view(-1, *into.shape).sum(0)

    return add_normalized


def _layerwise_adder(
    network: nn.Module,
    output: OutputFunction,
    weights: Tensor,
    device: torch.device,
    take: Callable[[Tensor], Take],
) -> _Adder:
    gradients = gradients_of(network, device)

    def add(some: Pass, into: Tensor) -> None:
        def total(predicted: Tensor) -> Tensor:
            return vmap(output)(predicted, some.target, weights[some.timesteps]).sum()

        gradients.visit(some.noisy, some.timesteps, total, take(into), some.conditions)

    return add


def _mapped_adder(network: nn.Module, output: OutputFunction, weights: Tensor, device: torch.device) -> _Adder:
    parameters, buffers = _state(network, device)

    def evaluate(
        parameters: dict[str, Tensor],
        noisy: Tensor,
        target: Tensor,
        step: Tensor,
        weight: Tensor,
        told: dict[str, Tensor],
    ) -> Tensor:
        told = {name: value[None] for name, value in told.items()}
        predicted = functional_call(network, (parameters, buffers), (noisy[None], step[None]), told).sample[0]
        return output(predicted, target, weight)

    gradients = vmap(grad(evaluate), in_dims=(None, 0, 0, 0, 0, 0))

    def add(some: Pass, into: Tensor) -> None:
        at, steps = 0, some.timesteps
        found = gradients(parameters, some.noisy, some.target, steps, weights[steps], dict(some.conditions))
        for gradient in found.values():
            flat = gradient.reshape(len(into), -1)  # added one by one: a copy of all would be as large again
            into[:, at : at + flat.shape[1]] += flat
            at += flat.shape[1]

    return add


def gradients_of(network: nn.Module, device: torch.device) -> LayerwiseGradients:
    """Layer by layer, of the parameters of ``network`` that are not frozen, on ``device``."""
    return LayerwiseGradients(network, *_state(network, device))


def _state(network: nn.Module, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters that gradients are of, and all other tensors."""
    parameters = {name: value.detach().to(device) for name, value in trainable(network).items()}
    others = [*network.named_parameters(), *network.named_buffers()]
    return parameters, {name: value.detach().to(device) for name, value in others if name not in parameters}


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
