"""φ(x)ᵀ(ΦᵀΦ + λI)⁻¹φ(n), in float64 and in whichever form is smaller: what TRAK and its relatives are made of.

The rows of Φ are the features of the N train images, D numbers each. With H = ΦᵀΦ + λI (D × D) and K = ΦΦᵀ (N × N),

    H⁻¹Φᵀ = Φᵀ(K + λI)⁻¹,

so the scores of a query x, φ(x)ᵀH⁻¹Φᵀ, are also k(x)(K + λI)⁻¹ with k(x) = φ(x)ᵀΦᵀ: the dual form. Both give the same
numbers; the first needs D × D entries, the second N × N.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from attribench.computing.precision import float64_device
from attribench.errors import AttribenchError, UsageError
from attribench.gradients.budget import shortage
from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.inner_products import inner_products


class Ridge:
    """The regularised kernel of the train features, factorised.

    λ is ``regularization`` times the mean squared length of a train feature, which is the mean of K's diagonal. A λ of its
    own unit would mean something else for every model, every f, every K and every proj_dim (a Gaussian projection alone
    makes squared lengths proj_dim times larger); a share of the mean stays put.

    Args:
        train: features of the train images.
        regularization: positive.
        device: where to compute; where it has no float64, on the CPU.

    Attributes:
        lam: λ.
        norms: float64 ``(num_train,)``: the lengths of the train features.

    Raises:
        UsageError: ``regularization`` is not positive.
        AttribenchError: the kernel does not fit into memory.
    """

    def __init__(self, train: FeatureSet, regularization: float, device: torch.device) -> None:
        check_regularization(regularization)
        self._train = train
        self._device = float64_device(device)
        self.dual = train.num_samples <= train.dimensions
        reason = kernel_refusal(train.num_samples, train.dimensions, device)
        if reason is not None:
            raise AttribenchError(reason)
        self._kernel = inner_products(train, train, self._device) if self.dual else self._primal_kernel()
        self.norms = self._lengths().cpu()
        mean_square = self.norms.square().mean().item()
        self.lam = regularization * mean_square if mean_square > 0 else 1.0  # all features are 0, and so is every score
        regular = self._kernel.clone()
        regular.diagonal().add_(self.lam)
        self._factor: Tensor = torch.linalg.cholesky(regular)

    def scores(self, queries: FeatureSet) -> Tensor:
        """φ(x)ᵀH⁻¹φ(n): float64 ``(num_queries, num_train)`` on the CPU."""
        if self.dual:
            return self._solve(inner_products(queries, self._train, self._device).T).T.cpu()
        return torch.cat([self._primal_scores(self._float64(block)).cpu() for block in queries.blocks()])

    @cached_property
    def solution_norms(self) -> Tensor:
        """‖H⁻¹φ(n)‖: float64 ``(num_train,)`` on the CPU."""
        if self.dual:
            # H⁻¹Φᵀ = ΦᵀG with G = (K + λI)⁻¹, so the squared lengths of its columns are the diagonal of GKG.
            inverse = torch.cholesky_inverse(self._factor)
            squares = (inverse * (self._kernel @ inverse)).sum(0)
            return squares.clamp(min=0).sqrt().cpu()
        columns = [self._solve(self._float64(block).T).norm(dim=0).cpu() for block in self._train.blocks()]
        return torch.cat(columns)

    @cached_property
    def leverages(self) -> Tensor:
        """h(n) = φ(n)ᵀH⁻¹φ(n): float64 ``(num_train,)`` on the CPU, at least 0 and below 1."""
        if self.dual:
            # The diagonal of K(K + λI)⁻¹ = I − λ(K + λI)⁻¹.
            return (1 - self.lam * torch.cholesky_inverse(self._factor).diagonal()).clamp(min=0).cpu()
        solved = (
            torch.linalg.solve_triangular(self._factor, self._float64(block).T, upper=False)
            for block in self._train.blocks()
        )
        return torch.cat([columns.square().sum(0).cpu() for columns in solved])

    def _lengths(self) -> Tensor:
        if self.dual:
            return self._kernel.diagonal().clamp(min=0).sqrt()
        return torch.cat([self._float64(block).norm(dim=1) for block in self._train.blocks()])

    def _primal_scores(self, queries: Tensor) -> Tensor:
        solved = self._solve(queries.T).T
        return torch.cat([solved @ self._float64(block).T for block in self._train.blocks()], dim=1)

    def _primal_kernel(self) -> Tensor:
        size = self._train.dimensions
        kernel = torch.zeros(size, size, dtype=torch.float64, device=self._device)
        for block in self._train.blocks():
            rows = self._float64(block)
            kernel.addmm_(rows.T, rows)
        return kernel

    def _solve(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right, self._factor)

    def _float64(self, block: Tensor) -> Tensor:
        return block.to(self._device, torch.float64)


def kernel_refusal(num_train: int, dimensions: int, device: torch.device) -> str | None:
    """Say why the kernel of so many train features does not fit into memory, or return None."""
    size = min(num_train, dimensions)
    what, memory = f"A kernel of {size} × {size} entries", 3 * 8 * size**2
    return shortage(what, memory, float64_device(device), remedy="Use fewer train images.")


def check_regularization(regularization: float) -> None:
    """Refuse a regularization that no kernel can be made invertible with.

    Raises:
        UsageError: it is not positive, or infinite: nothing but zeros would come out.
    """
    if not (regularization > 0 and math.isfinite(regularization)):
        raise UsageError(f"regularization must be positive and finite; got {regularization}.")


def divide(scores: Tensor, norms: Tensor) -> Tensor:
    """Divide each column by its norm; a train image whose norm is 0 has scores of 0."""
    return torch.where(norms > 0, scores / norms.where(norms > 0, torch.ones_like(norms)), 0.0)
