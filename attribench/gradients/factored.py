"""A projection of a layer's gradient from both sides, which is never made without it (LoGra, arXiv 2405.13954)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attribench.computing.seeding import derive_seed
from attribench.errors import UsageError
from attribench.gradients.kronecker import KroneckerLayer
from attribench.gradients.layerwise import LayerCall, Take


class FactoredProjection:
    """Maps a layer's gradient G = Σ g·aᵀ to P_out G P_inᵀ = Σ (P_out g)(P_in a)ᵀ: factors are projected, then multiplied.

    Every layer's factors are projected to the same width k, the largest for which all features of a gradient number at most
    ``dim``; a factor that is no longer than k stays as it is. A bias is part of its layer, as the entry of a that is 1.
    Parameters without two factors (norms, convolutions in groups) are kept whole, unless they would take more than half of
    ``dim``: then each norm's, or each run of such parameters, are projected to k numbers as well.

    Entries of P are normal, of variance 1/k, the two sides and all layers independent: inner products of features are those of
    gradients in expectation. (The other projections make them ``dim`` times as large.) Our reading: the paper's matrices
    may also be principal components; those are not here.

    Args:
        layers: those with two factors.
        num_parameters: length of a gradient.
        dim: length of a projected gradient, at most.
        seed: of the random matrices.
        device: where gradients lie. The numbers do not depend on it.

    Attributes:
        dim: length of a projected gradient.
        width: k.
        row_bytes: bytes that one image at one timestep takes on the way, about.

    Raises:
        UsageError: even with k = 1 there are more than ``dim`` features.
    """

    name = "factored"

    def __init__(
        self, layers: Sequence[KroneckerLayer], num_parameters: int, dim: int, seed: int, device: torch.device
    ) -> None:
        self._layers = layers
        taken = [part for layer in layers for part in (layer.weight, layer.bias) if part is not None]
        gaps = _gaps(taken, num_parameters)
        self._keeps_rest = 2 * sum(end - begin for begin, end in gaps) <= dim

        def total(width: int) -> int:
            sizes = [min(layer.outputs, width) * min(layer.inputs, width) for layer in layers]
            rest = [end - begin if self._keeps_rest else min(end - begin, width) for begin, end in gaps]
            return sum(sizes) + sum(rest)

        if total(1) > dim:
            raise UsageError(
                f"proj_dim must be at least {total(1)} for a factored projection of this network; got {dim}."
            )
        widest = [max(layer.outputs, layer.inputs) for layer in layers]
        low, high = 1, max([1, *widest, *([] if self._keeps_rest else (end - begin for begin, end in gaps))])
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if total(middle) <= dim else (low, middle - 1)
        self.width, self.dim, self._seed = low, total(low), seed
        self._blocks: dict[int, tuple[KroneckerLayer, slice, Tensor | None, Tensor | None]] = {}
        at = 0
        for layer in layers:
            left, right = (
                self._matrix(layer.name, side, length, device)
                for side, length in (("outputs", layer.outputs), ("inputs", layer.inputs))
            )
            end = at + min(layer.outputs, low) * min(layer.inputs, low)
            self._blocks[layer.weight.start] = (layer, slice(at, end), left, right)
            at = end
        self._rest: dict[tuple[int, int], tuple[slice, Tensor | None]] = {}
        for begin, end in gaps:
            matrix = None if self._keeps_rest else self._matrix(str(begin), "rest", end - begin, device)
            length = end - begin if matrix is None else low
            self._rest[begin, end] = slice(at, at + length), matrix
            at += length
        matrices = [matrix for _, _, *pair in self._blocks.values() for matrix in pair]
        matrices += [matrix for _, matrix in self._rest.values()]
        self.matrix_bytes = sum(matrix.nbytes for matrix in matrices if matrix is not None)
        self.row_bytes = max((4 * 2 * layer.positions * (layer.outputs + layer.inputs) for layer in layers), default=0)

    @property
    def spec(self) -> dict[str, object]:
        """What identifies the map, for one network."""
        rest = {} if self._keeps_rest else {"rest": "projected"}
        return {"name": self.name, "width": self.width, "seed": self._seed, **rest}

    def __call__(self, gradients: Tensor) -> Tensor:
        """What :meth:`take` has added up is projected already."""
        return gradients

    def take(self, into: Tensor) -> Take:
        """Add the projected gradients of samples to ``(N, dim)``: what to show calls of layers, with rows term by term."""

        def add(call: LayerCall, gradient: Tensor) -> None:
            block = self._blocks.get(call.weight.start) if call.weight is not None else None
            if block is not None:
                layer, own, left, right = block
                into[:, own] += _product(layer, call, gradient, len(into), left, right).flatten(1)
                return
            for slot, found in zip((call.weight, call.bias), call.gradients(gradient, len(into)), strict=True):
                if slot is not None:
                    self._add_rest(slot, found.reshape(len(into), -1), into)

        return add

    def _add_rest(self, slot: slice, found: Tensor, into: Tensor) -> None:
        """Add the gradients of parameters without two factors."""
        for (begin, end), (place, matrix) in self._rest.items():
            if begin <= slot.start < end:
                own = slice(slot.start - begin, slot.stop - begin)
                if matrix is None:
                    into[:, place.start + own.start : place.start + own.stop] += found
                else:
                    into[:, place] += found @ matrix[:, own].to(found).T
                return
        raise AssertionError(f"{slot} belongs to a layer with two factors")

    def _matrix(self, name: str, side: str, length: int, device: torch.device) -> Tensor | None:
        if length <= self.width:
            return None
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "factored", name, side))
        matrix = torch.randn(self.width, length, generator=generator) * (1 / math.sqrt(self.width))
        return matrix.to(device)


def _product(
    layer: KroneckerLayer, call: LayerCall, gradient: Tensor, samples: int, left: Tensor | None, right: Tensor | None
) -> Tensor:
    """P_out G P_inᵀ of every sample, ``(samples, ≤ k, ≤ k)``; None is the identity."""
    if left is None and right is None:
        weight, bias = call.gradients(gradient, samples)
        weight = weight.reshape(samples, layer.outputs, -1)
        return weight if layer.bias is None else torch.cat([weight, bias[:, :, None]], 2)
    if call.function is F.conv2d and right is not None:
        # P_in times the patches of an image is a convolution with P_in's rows.
        given = call.arguments
        kernel, right = given["weight"].shape[1:], right.to(gradient)
        weights = (right if layer.bias is None else right[:, :-1]).reshape(-1, *kernel)
        constant = None if layer.bias is None else right[:, -1]
        layout = {name: given.get(name, usual) for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1))}
        seen = F.conv2d(given["input"], weights, constant, **layout).flatten(2).mT
        output = gradient.flatten(2).mT
    else:
        seen, output = layer.factors(call, gradient)
        if right is not None:
            seen = seen @ right.to(seen).T
    if left is not None:
        output = output @ left.to(output).T
    seen, output = (rows.reshape(-1, samples, *rows.shape[1:]) for rows in (seen, output))
    return torch.einsum("tnpo,tnpi->noi", output, seen)


def _gaps(taken: Sequence[slice], length: int) -> list[tuple[int, int]]:
    """What ``taken`` leaves of ``range(length)``, in order."""
    gaps, at = [], 0
    for part in sorted(taken, key=lambda part: part.start):
        if part.start > at:
            gaps.append((at, part.start))
        at = part.stop
    return [*gaps, *([(at, length)] if at < length else [])]
