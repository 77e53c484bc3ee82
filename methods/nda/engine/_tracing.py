"""The best candidates of every position of a query in one train image, and where they lie: for evidence.

The notation is that of :mod:`attribench.methods.nda.engine._kernels`. Here all pairs of rows of one displacement come one
after the other, so that one set of column sums serves them all: it grows with the square of the image's side, not the cube.
Each position's best candidates so far are kept meanwhile, in a heap.
"""

from __future__ import annotations

from typing import Any

from attribench.methods.nda.engine._products import (
    best_logits,
    entering_and_leaving,
    fresh_products,
    slide,
    update_column_sums,
)
from attribench.methods.nda.engine._simd import compiled, highest, inlined, load, pointer, splat, width


@inlined
def _keep(logits: Any, partners: Any, at: int, count: int, most: int, logit: float, partner: int) -> int:
    """Put a candidate into the heap at ``at``, whose first one is the worst; if it is full, in place of that one."""
    i = count
    if count < most:
        count += 1
        while i > 0 and logits[at + (i - 1) // 2] > logit:
            logits[at + i], partners[at + i] = logits[at + (i - 1) // 2], partners[at + (i - 1) // 2]
            i = (i - 1) // 2
    else:
        i = 0
        while 2 * i + 1 < count:
            child = 2 * i + 1
            if child + 1 < count and logits[at + child + 1] < logits[at + child]:
                child += 1
            if logits[at + child] >= logit:
                break
            logits[at + i], partners[at + i] = logits[at + child], partners[at + child]
            i = child
    logits[at + i], partners[at + i] = logit, partner
    return count


@compiled
def best_candidates(
    x_array: Any, y_array: Any, energy_array: Any, shape: Any, first_row: int, end_row: int, least_array: Any,
    counts_array: Any, logits_array: Any, partners_array: Any, c_array: Any, d_array: Any, at_x_array: Any,
    at_y_array: Any,
) -> None:  # fmt: skip
    """Find the best candidates of some rows of a query's positions. Arrays are flat, and float64 but for indices.

    Args:
        x: (x', −x'), padded, ``(2, C, map height, map width + step)``.
        y: the train image's map, padded, ``(C, map height, stride)``.
        energy: β Σ_patch y² of all positions, and a vector more.
        shape: see :attr:`attribench.methods.nda.engine.tracing.Tracer.shape`.
        first_row: of the positions.
        end_row: the row after the last.
        least: of each position: only larger logits count; overwritten.
        counts: int64, zeros; gets the number of candidates found.
        logits: ``(positions, k)``; gets their logits, in no order.
        partners: int32, likewise; gets their positions in the train image.
        c: work space for column sums, as are all that follow: of products, and indices of rows.
    """
    channels, height, map_width, stride, columns, top, bottom, left, right, step, taps, k = shape
    x, y, energy, c, d = pointer(x_array), pointer(y_array), pointer(energy_array), pointer(c_array), pointer(d_array)
    at_x, at_y, least, counts = pointer(at_x_array), pointer(at_y_array), pointer(least_array), pointer(counts_array)
    logits, partners = pointer(logits_array), pointer(partners_array)
    v = width(y)
    one = splat(1.0, load(y, 0))
    length = right - left
    head = min((step + v - 1) // v * v, length)
    gap = stride + step  # from a tap's column sum to the next one's: both columns move
    # Positions step by step along both axes share sums; with step 2 there are four such classes.
    for corner in range(step * step):
        ay, ax = corner // step, corner % step
        uses = (columns - ax + step - 1) // step + taps - 1
        for shift in range(min(0, top + 1 - bottom), max(1, bottom - top)):
            begin, end = first_row, end_row
            if shift != 0:  # rows of positions that hang over an edge match only themselves
                begin, end = max(begin, top + max(0, -shift)), min(end, bottom - max(0, shift))
            begin += (ay - begin) % step
            for row in range(begin, end, step):
                rows = entering_and_leaving(
                    at_x,
                    at_y,
                    row,
                    row + shift,
                    row == begin,
                    taps,
                    step,
                    channels,
                    height,
                    map_width + step,
                    stride,
                    0,
                )
                update_column_sums(
                    c, 0, stride, x, y, at_x, at_y, rows, row == begin, uses, ax, step, map_width, max(length - 1, 0), 1, v
                )  # fmt: skip
                at_e = (row + shift) * columns
                for column in range(ax, columns, step):
                    p = (row - first_row) * columns + column
                    tap, floor = column // step * stride + column, least[p]
                    if left <= column < right:
                        tap, at_d, first, count = tap + left - column, columns - column, left, length
                        if column < left + step:
                            fresh_products(d, at_d, c, tap, gap, taps, length, v)
                        else:
                            slide(d, at_d, c, tap + (taps - 1) * gap, tap - gap, head, length, v)
                            fresh_products(d, at_d, c, tap, gap, taps, head, v)
                        if highest(best_logits(d, at_d, energy, at_e + left, one, length, v)) <= floor:
                            continue
                    else:  # and so do columns
                        at_d, first, count = 0, column, 1
                        d[0] = 0.0
                        for i in range(tap, tap + taps * gap, gap):
                            d[0] += c[i]
                    size = counts[p]
                    for j in range(count):
                        logit = d[at_d + j] - energy[at_e + first + j]
                        if logit > floor:
                            size = _keep(logits, partners, p * k, size, k, logit, at_e + first + j)
                            if size == k:
                                floor = logits[p * k]
                    counts[p], least[p] = size, floor
