"""Dot product and cosine between rows of two matrices: pixels, embeddings or gradient features."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from attribench.computing.device import exact_float32
from attribench.errors import DataError, UsageError

Kind = Literal["dot", "cosine"]

#: Bytes of working memory, about, beside arguments and result.
_WORKING_MEMORY = 128 * 2**20


def similarity(queries: Tensor, train: Tensor, kind: Kind) -> Tensor:
    """Compare every query with every train sample.

    Both are taken in float32 whatever their type, block by block. A row of zeros has cosine 0 with everything.

    Args:
        queries: ``(num_queries, dimensions)``, floating point.
        train: ``(num_train, dimensions)``, floating point, on the same device.
        kind: ``"dot"``, or ``"cosine"``, in [-1, 1] up to rounding.

    Returns:
        float32 ``(num_queries, num_train)``, higher = more alike.

    Raises:
        UsageError: ``kind`` is neither.
        DataError: the arguments are not matrices of one width.
    """
    check_kind(kind)
    if queries.ndim != 2 or train.ndim != 2 or queries.shape[1] != train.shape[1]:
        raise DataError(
            f"Two matrices of one width are needed, (num_queries, D) and (num_train, D); got {tuple(queries.shape)} "
            f"and {tuple(train.shape)}."
        )
    # Either side's block is held twice while it is scaled.
    block = max(1, _WORKING_MEMORY // (16 * max(1, queries.shape[1])))
    result = torch.empty(len(queries), len(train), device=queries.device)
    with exact_float32():
        for start in range(0, len(train), block):
            columns = _rows(train[start : start + block], kind).T
            for first in range(0, len(queries), block):
                rows = _rows(queries[first : first + block], kind)
                result[first : first + block, start : start + block] = rows @ columns
    return result


def check_kind(kind: str) -> Kind:
    """Insist on a kind of similarity that there is.

    Raises:
        UsageError: it is none.
    """
    if kind not in get_args(Kind):
        raise UsageError(f"similarity must be 'dot' or 'cosine'; got {kind!r}.")
    return cast(Kind, kind)


def _rows(block: Tensor, kind: Kind) -> Tensor:
    block = block.to(torch.float32)
    if kind == "dot":
        return block
    # Scaled to a largest entry of 1 first: squares of very small or large gradients leave float32's range.
    largest = block.abs().amax(1, keepdim=True)
    block = torch.where(largest > 0, block / largest, 0.0)
    norms: Tensor = torch.linalg.vector_norm(block, dim=1, keepdim=True)
    return block / norms.clamp_(min=1.0)  # 1 at least, but for a row of zeros
