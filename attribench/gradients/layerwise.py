"""Gradients one a sample from one backward pass over many, layer by layer.

The gradient of a layer's weights is a product of what went into the layer and of the gradient of what came out of it. Both
are at hand for every row of a batch, so the gradients of each sample, summed over the timesteps at which it is in the
batch, take no more arithmetic than an ordinary backward pass, which sums over everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

from attribench.errors import AttribenchError

#: Of a layer's arguments by name, the gradient of its output ``(T · N, …)`` and N: the gradients of weight and bias,
#: ``(N, …)`` each. Rows come timestep by timestep, the N samples in one order within each.
_Rule = Callable[[Mapping[str, Any], Tensor, int], tuple[Tensor, Tensor]]


def _conv2d(call: Mapping[str, Any], gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    # The samples side by side as groups of channels: the weights of a group meet the rows of one sample alone.
    rows, gradients = (
        value.reshape(-1, samples * value.shape[1], *value.shape[2:]) for value in (call["input"], gradient)
    )
    weight = call["weight"]
    shape = (samples * weight.shape[0], *weight.shape[1:])
    groups = samples * call.get("groups", 1)
    layout = (call.get("stride", 1), call.get("padding", 0), call.get("dilation", 1))
    found: Tensor = conv2d_weight(rows, shape, gradients, *layout, groups)  # type: ignore[no-untyped-call]
    return found, _sum(gradient, samples)


def _linear(call: Mapping[str, Any], gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    batch = len(gradient) // samples
    rows, gradients = (value.reshape(batch, samples, -1, value.shape[-1]) for value in (call["input"], gradient))
    return torch.einsum("tnpo,tnpi->noi", gradients, rows), gradients.sum((0, 2))


def _group_norm(call: Mapping[str, Any], gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    normal = F.group_norm(call["input"], call["num_groups"], eps=call.get("eps", 1e-5))
    return _sum(normal * gradient, samples), _sum(gradient, samples)


def _layer_norm(call: Mapping[str, Any], gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    shape = tuple(call["normalized_shape"])
    normal = F.layer_norm(call["input"], shape, eps=call.get("eps", 1e-5))
    found = (value.reshape(len(gradient) // samples, samples, -1, *shape) for value in (normal * gradient, gradient))
    weight, bias = (value.sum((0, 2)) for value in found)
    return weight, bias


def _sum(rows: Tensor, samples: int) -> Tensor:
    """Sum ``(T · N, C, …)`` over timesteps and positions: ``(N, C)``."""
    return rows.reshape(len(rows) // samples, samples, rows.shape[1], -1).sum((0, 3))


def _embedding(call: Mapping[str, Any], gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    batch, weight = len(gradient) // samples, call["weight"]
    chosen = F.one_hot(call["input"], len(weight)).to(gradient).reshape(batch, samples, -1, len(weight))
    gradients = gradient.reshape(batch, samples, -1, weight.shape[1])
    return torch.einsum("tnpe,tnpd->ned", chosen, gradients), gradient.new_zeros(samples, 0)  # there is no bias


#: The layers that are known, each with the names of its arguments in order.
_LAYERS: dict[Any, tuple[_Rule, tuple[str, ...]]] = {
    F.conv2d: (_conv2d, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    F.linear: (_linear, ("input", "weight", "bias")),
    F.embedding: (
        _embedding,
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    ),
    F.group_norm: (_group_norm, ("input", "num_groups", "weight", "bias", "eps")),
    F.layer_norm: (_layer_norm, ("input", "normalized_shape", "weight", "bias", "eps")),
}


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A layer as the network called it, with what is needed for its weights' gradients once that of its output is known.

    Attributes:
        function: of ``torch.nn.functional``, such as ``F.conv2d``.
        arguments: by name; the input does not ask for a gradient.
        weight: where the weight's entries lie in a gradient, or None for a weight that is no parameter.
        bias: likewise.
    """

    function: Any
    arguments: Mapping[str, Any]
    weight: slice | None
    bias: slice | None

    def gradients(self, gradient: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """The gradients of weight and bias, ``(samples, …)`` each, summed over timesteps and positions.

        Args:
            gradient: of the output, ``(T · samples, …)``, timestep by timestep.
        """
        return _LAYERS[self.function][0](self.arguments, gradient, samples)


#: Takes a layer and the gradient of its output, one row a row of the batch.
Take = Callable[[LayerCall, Tensor], None]


class LayerwiseGradients:
    """Takes the gradients of one network's parameters, one a sample.

    It works where parameters are used as weights and biases of 2-d convolutions, linear layers, embeddings, group and layer
    normalisations and in no other way, whichever module does so: :attr:`complete` says whether that held.

    Args:
        parameters: that gradients are of, by name, in the order of the gradient's entries.
        buffers: by name, and parameters that count as such.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        self._network = network
        self._state = ({name: value.detach().requires_grad_() for name, value in parameters.items()}, dict(buffers))
        self._slots: dict[int, slice] = {}
        end = 0
        for value in self._state[0].values():
            self._slots[id(value)] = slice(end, end + value.numel())
            end += value.numel()

    @property
    def complete(self) -> bool:
        """Whether no gradient has been missed: none went to a parameter but through a layer that is known."""
        return all(value.grad is None for value in self._state[0].values())

    def add(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        output: Callable[[Tensor], Tensor],
        into: Tensor,
        conditions: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Add to each sample's row the gradient of the sum of its outputs.

        Args:
            noisy: ``(T · N, C, H, W)``, timestep by timestep.
            timesteps: int ``(T · N,)``.
            output: of the network's predictions, like ``noisy``, a scalar: the sum of one term a row.
            into: ``(N, num_parameters)``.
            conditions: what the network is told beside, one a row.
        """

        self.visit(noisy, timesteps, output, whole(into), conditions)

    def visit(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        output: Callable[[Tensor], Tensor],
        take: Take,
        conditions: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Show every layer, as soon as it is known, the gradient of its output; see :meth:`add`.

        Args:
            take: called once a call of a layer, the last layer first, without building a graph.

        Raises:
            AttribenchError: a gradient was missed: what a network does with its parameters depends on what it is given.
        """
        if not self.probe(noisy, timesteps, output, take, conditions):
            raise AttribenchError(
                "The network used a parameter in another way than for the blank images it was looked at with, so that its "
                "gradients cannot be taken layer by layer."
            )

    def probe(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        output: Callable[[Tensor], Tensor],
        take: Take,
        conditions: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> bool:
        """Do as :meth:`visit`, and return whether no gradient was missed; see :attr:`complete`."""
        with torch.enable_grad():
            with _Watch(self._slots, len(noisy), take):
                predicted = functional_call(self._network, self._state, (noisy, timesteps), dict(conditions)).sample
            output(predicted).backward()  # type: ignore[no-untyped-call]
        return self.complete


def whole(into: Tensor) -> Take:
    """Add the gradients of samples, as they are, to ``(N, num_parameters)``."""

    def take(layer: LayerCall, gradient: Tensor) -> None:
        for slot, found in zip((layer.weight, layer.bias), layer.gradients(gradient, len(into)), strict=True):
            if slot is not None:
                into[:, slot] += found.reshape(len(into), -1)

    return take


class _Watch(TorchFunctionMode):
    """Calls layers with constant weights, and hands them over as soon as the gradient of their output is known.

    A parameter that anything else uses keeps its place in the graph, and so gets a gradient of its own.
    """

    def __init__(self, slots: Mapping[int, slice], num_rows: int, take: Take) -> None:
        super().__init__()
        self._slots, self._num_rows, self._take = slots, num_rows, take

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function not in _LAYERS:
            return function(*args, **(kwargs or {}))
        names = _LAYERS[function][1]
        call = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        slots = [self._slots.get(id(call.get(name))) for name in ("weight", "bias")]
        odd = isinstance(call.get("padding"), str) or any(
            call.get(name) is not None for name in ("padding_idx", "max_norm")
        )
        if slots == [None, None] or len(call["input"]) != self._num_rows or odd:
            return function(**call)
        for name, slot in zip(("weight", "bias"), slots, strict=True):
            if slot is not None:
                call[name] = call[name].detach()
        output = function(**call)
        if not output.requires_grad:  # the first layers: nothing before them needs a gradient
            output.requires_grad_()
        layer = LayerCall(function, {**call, "input": call["input"].detach()}, *slots)
        output.register_hook(partial(_hand_over, self._take, layer))
        return output


@torch.no_grad()
def _hand_over(take: Take, layer: LayerCall, gradient: Tensor) -> None:
    take(layer, gradient)
