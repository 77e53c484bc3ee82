"""What gradient methods take, estimated before any work: memory by counting what is held together, time by a trial.

Memory is what is allocated at the peak beside what was in use before. Numbers of bytes are those of the code that they
speak of, step by step; ``benchmarks/own_model_memory.py`` compares them with what is measured.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from attribench.method import Needs

#: Bytes of features that are iterated over together, see :meth:`attribench.gradients.feature_set.FeatureSet.blocks`.
BLOCK_BYTES = 256 * 2**20

#: Queries that are scored together, see :mod:`attribench.workflows.scoring`.
PIECE = 64

#: What libraries take for themselves at the first passes: compiled kernels, buffers, memory that is not given back at once.
LIBRARY_BYTES = 150 * 2**20

#: Specification, manifest and the header of a payload.
ARTIFACT_BYTES = 4096


def stored_bytes(dimensions: int, rows: int, parts: int) -> int:
    """Bytes of so many rows of features in so many parts."""
    return 4 * dimensions * rows + ARTIFACT_BYTES * parts


#: Multiplications and additions in a second: of a core, and of a GPU.
_FLOPS = {"cpu": 2.5e10, "cuda": 1e12}
#: Normal random numbers that are drawn in a second.
_DRAWS = {"cpu": 2e8, "cuda": 1e10}


def block_bytes(num_rows: int, dimensions: int, chunk_rows: int) -> tuple[int, int]:
    """Bytes of one block of features when they are iterated over, and bytes held while it is in use.

    Args:
        chunk_rows: rows that are stored together.
    """
    chunk, whole = 4 * dimensions * min(chunk_rows, num_rows), 4 * dimensions * num_rows
    if chunk >= whole:
        return whole, whole
    block = min(whole, max(1, BLOCK_BYTES // chunk) * chunk)
    # Of several chunks a copy is made, and the chunks are held beside it; the next chunk is read meanwhile.
    return block, (2 * block if block > chunk else block) + (chunk if block < whole else 0)


def ridge_bytes(num_train: int, dimensions: int, chunk_rows: int) -> int:
    """Peak of :class:`attribench.gradients.ridge.Ridge` while it is made."""
    size = min(num_train, dimensions)
    block, held = block_bytes(num_train, dimensions, chunk_rows)
    blocks = 2 if num_train <= dimensions else 1  # each with its copy in float64, beside the kernel
    return max(8 * size**2 + blocks * (held + 2 * block), 3 * 8 * size**2)


def ridge_scoring_bytes(num_train: int, dimensions: int, chunk_rows: int, num_queries: int) -> int:
    """Peak of its scores of one piece of queries, kernel and factor included."""
    size, queries = min(num_train, dimensions), min(PIECE, num_queries)
    block, held = block_bytes(num_train, dimensions, chunk_rows)
    return 2 * 8 * size**2 + 3 * 4 * queries * dimensions + held + 2 * block


def comparison_bytes(num_train: int, dimensions: int, chunk_rows: int, num_queries: int) -> int:
    """Peak of comparing features of train images with those of one piece of queries."""
    queries = min(PIECE, num_queries)
    block, held = block_bytes(num_train, dimensions, chunk_rows)
    if block < 4 * dimensions * num_train:  # the one before is held while the next is made
        held += block
    working = min(128 * 2**20, 4 * dimensions * (min(num_train, chunk_rows) + queries))
    return held + 4 * queries * dimensions + 2 * working


def products_seconds(rows: float, columns: float, inner: float, device: str) -> float:
    """Time of a matrix product."""
    cores = torch.get_num_threads() if device == "cpu" else 1
    return 2 * rows * columns * inner / (cores * _FLOPS.get(device, _FLOPS["cpu"]))


def draws_seconds(count: float, device: str) -> float:
    """Time of drawing normal random numbers."""
    return count / _DRAWS.get(device, _DRAWS["cpu"])


def total(features: Needs, *later: Needs, left_over: int = 0) -> Needs:
    """All that a method takes: its steps, and what libraries take.

    Args:
        features: of the step that takes the model's gradients.
        later: of what is made of them.
        left_over: bytes that stay in use after that first step.
    """
    whole = joined(features, *(replace(part, memory=part.memory + left_over) for part in later))
    return replace(whole, memory=whole.memory + LIBRARY_BYTES)


def joined(*parts: Needs) -> Needs:
    """Of steps one after the other: the largest memory, all of the disk and time."""
    return Needs(
        max(part.memory for part in parts), sum(part.disk for part in parts), sum(part.seconds for part in parts)
    )
