"""The layers whose gradient is a sum of outer products g·aᵀ: of what came out of the layer, and of what went into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribench.diffusion.inputs import Conditions
from attribench.diffusion.parameters import trainable
from attribench.gradients.layerwise import LayerCall
from attribench.gradients.per_sample import NO_CONDITIONS, blank_gradients, num_parameters


@dataclass(frozen=True)
class KroneckerLayer:
    """A linear layer or 2-d convolution: its gradient is Σ g·aᵀ, a matrix, over positions (tokens, places in the output).

    a is what the weights see at a position: the input, or its patch, and a 1 for the bias where there is one. g is the
    gradient of the output there.

    Attributes:
        name: of the weight.
        weight: where the weight's entries lie in a gradient of all parameters.
        bias: likewise, or None.
        outputs: length of g.
        inputs: length of a, with the 1.
        positions: of one image, in all calls of the layer.
    """

    name: str
    weight: slice
    bias: slice | None
    outputs: int
    inputs: int
    positions: int

    def matrices(self, gradients: Tensor) -> Tensor:
        """Take the layer's ``(n, outputs, inputs)`` out of gradients ``(n, num_parameters)``; the bias is the last column."""
        weight = gradients[:, self.weight].reshape(len(gradients), self.outputs, -1)
        return weight if self.bias is None else torch.cat([weight, gradients[:, self.bias, None]], 2)

    def put(self, matrices: Tensor, into: Tensor) -> None:
        """Write ``(n, outputs, inputs)`` to where :meth:`matrices` takes them from."""
        if self.bias is not None:
            into[:, self.bias] = matrices[:, :, -1]
            matrices = matrices[:, :, :-1]
        into[:, self.weight] = matrices.reshape(len(matrices), -1)

    def factors(self, call: LayerCall, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """All a and g of a call of this layer: ``(rows, positions, inputs)`` and ``(rows, positions, outputs)``.

        Args:
            gradient: of the call's output.
        """
        if call.function is F.conv2d:
            given = call.arguments
            layout = {name: given.get(name, usual) for name, usual in (("dilation", 1), ("padding", 0), ("stride", 1))}
            seen = F.unfold(given["input"], given["weight"].shape[2:], **layout).mT
            output = gradient.flatten(2).mT
        else:
            seen, output = (
                value.reshape(len(value), -1, value.shape[-1]) for value in (call.arguments["input"], gradient)
            )
        return (seen if self.bias is None else F.pad(seen, (0, 1), value=1.0)), output


def kronecker_layers(
    network: nn.Module, image_shape: Sequence[int], device: torch.device, conditions: Conditions = NO_CONDITIONS
) -> list[KroneckerLayer] | None:
    """All linear layers and 2-d convolutions of a network, or None where gradients cannot be taken layer by layer.

    Those whose weights are frozen are none.

    Left out are norms, embeddings, convolutions in groups, and a weight that is used with several biases, or a bias with
    several weights. Found out by taking the gradient of blank images.

    Args:
        image_shape: (C, H, W).
        conditions: what the network is told of one image.
    """
    calls: list[tuple[LayerCall, Tensor]] = []

    def note(call: LayerCall, gradient: Tensor) -> None:
        calls.append((call, gradient))

    if not blank_gradients(network, image_shape, device, note, conditions):
        return None
    starts, end = {}, 0
    for name, parameter in trainable(network).items():
        starts[end] = name
        end += parameter.numel()
    assert end == num_parameters(network)
    found: dict[int, KroneckerLayer] = {}
    unfit: set[int] = set()
    weight_of_bias: dict[int, int] = {}
    for call, gradient in calls:
        if call.weight is None:
            continue
        start, weight = call.weight.start, call.arguments["weight"]
        known = call.function in (F.conv2d, F.linear) and call.arguments.get("groups", 1) == 1
        if call.bias is not None and weight_of_bias.setdefault(call.bias.start, start) != start:
            unfit |= {start, weight_of_bias[call.bias.start]}
        before = found.get(start)
        if not known or (before is not None and before.bias != call.bias):
            unfit.add(start)
        inputs = weight[0].numel() + (call.bias is not None)
        positions = gradient[0].numel() // len(weight) + (before.positions if before else 0)
        found[start] = KroneckerLayer(starts[start], call.weight, call.bias, len(weight), inputs, positions)
    return [found[start] for start in sorted(found) if start not in unfit]
