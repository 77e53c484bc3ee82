"""The inner loops that add up, for every train image and position of a query, the weights and the weighted pixels.

Notation and running sums are those of :mod:`attribench.methods.nda.engine._kernels`; patches have a pixel in their middle (P is
odd) and full resolution, which leaves one class of positions, and makes a position's number that of its pixel.
"""

from __future__ import annotations

import math
from typing import Any

from attribench.methods.nda.engine._products import (
    FRESH_TAPS,
    best_logits,
    entering_and_leaving,
    fresh_products,
    slide,
    update_column_sums,
)
from attribench.methods.nda.engine._selection import exp2, fold, power_of_2
from attribench.methods.nda.engine._simd import (
    add,
    any_above,
    choose,
    compiled,
    fma,
    fms,
    highest,
    inlined,
    load,
    mul,
    pointer,
    splat,
    store,
    width,
)


@inlined
def _add_row(
    top: Any, p: int, at_s: int, d: Any, at_d: int, energy: Any, at_e: int, y: Any, at_y: int, plane: int, channels: int,
    length: int, beta: Any, cut: float, peak: Any, w: Any, s: Any, v: int,
) -> None:  # fmt: skip
    """Weigh a row of candidates of position p, if its largest logits, ``top``, say that one of them matters.

    Adds the weights to ``s[at_s:]``, and the weighted pixels of each channel to the vectors after it.
    """
    best = highest(top)
    if best < peak[p] - cut:
        return
    if best >= peak[p] + 1.0:  # from now on, weights are relative to the whole number below it
        reference = math.floor(best)
        factor = splat(power_of_2(peak[p] - reference), beta)
        peak[p] = reference
        for k in range(1 + channels):
            store(s, at_s + k * v, mul(factor, load(s, at_s + k * v)))
    zero, reference_v, floor = splat(0.0, beta), splat(peak[p], beta), splat(peak[p] - cut, beta)
    total = zero
    for j in range(0, length, v):
        logit = fms(beta, load(energy, at_e + j), load(d, at_d + j))
        weight = zero
        if any_above(logit, floor):
            weight = choose(logit, floor, exp2(logit, reference_v), zero)
            total = add(total, weight)
        store(w, j, weight)
    store(s, at_s, add(total, load(s, at_s)))
    store(w, (length + v - 1) // v * v, zero)
    for k in range(1, 1 + channels):
        a = b = zero
        for j in range(0, length, 2 * v):
            a = fma(load(w, j), load(y, at_y + j), a)
            b = fma(load(w, j + v), load(y, at_y + j + v), b)
        store(s, at_s + k * v, add(load(s, at_s + k * v), add(a, b)))
        at_y += plane


@compiled
def pixel_sums(
    x_array: Any, y_array: Any, rows_array: Any, edges_array: Any, shape: Any, beta: Any, cut: float, first_group: int,
    groups: int, peak_array: Any, sums_array: Any, references_array: Any, c_array: Any, d_array: Any, w_array: Any,
    s_array: Any, at_x_array: Any, at_y_array: Any, mask_array: Any, scratch_array: Any,
) -> None:  # fmt: skip
    """Σ_q w and Σ_q w y(q) of some groups of train images at every position of one query.

    Args:
        x: (x', −x'), flat ``(2, C, height, width + 1)``.
        y: the groups' images, flat ``(groups, C, height, stride)``, and two vectors after them.
        rows: Σ_patch y² of the positions that lie inside along x, flat ``(groups, height, stride)``.
        edges: Σ_patch y² of all positions, flat ``(groups, height, stride)``.
        shape: see :meth:`LaneShape.numbers`.
        beta: β.
        cut: candidates whose logit lies further below the best one known are left out.
        first_group: the first group to compare.
        groups: their number.
        peak: float64 ``(positions,)``, the largest logit known, rounded down; raised where a larger one turns up.
        sums: float32 ``(groups × lanes, 1 + C, positions)``, zero; gets the sums relative to peak.
        references: float64 ``(positions,)`` a group: work space, as are all that follow.
    """
    (channels, height, map_width, grid_height, grid_width, pad, _, taps, inside_y, inside_x, lanes, x_stride,
     stride, row_stride, edge_stride) = shape  # fmt: skip
    positions = grid_height * grid_width
    x, y, rows, edges = pointer(x_array), pointer(y_array), pointer(rows_array), pointer(edges_array)
    peak, sums, references = pointer(peak_array), pointer(sums_array), pointer(references_array)
    c, d, w, s = pointer(c_array), pointer(d_array), pointer(w_array), pointer(s_array)
    at_x, at_y, mask, scratch = pointer(at_x_array), pointer(at_y_array), pointer(mask_array), pointer(scratch_array)
    v = width(y)
    length = inside_x * lanes
    head = min((lanes + v - 1) // v * v, length)
    slots = max(inside_y, 1)
    afresh = taps <= FRESH_TAPS
    slot_size = (map_width + 1) // 2 * 2 * stride
    gap = stride + lanes  # from a tap's column sum to the next one's: both columns move
    plane = height * stride
    per_position = (1 + channels) * v
    beta_v, mask_v = splat(beta, load(mask, 0)), load(mask, 0)
    zero = splat(0.0, mask_v)
    for g in range(first_group, first_group + groups):
        for py in range(grid_height):
            for j in range(0, grid_width * per_position, v):
                store(s, j, zero)
            inside = pad <= py < pad + inside_y
            for qy in range(pad if inside else py, pad + inside_y if inside else py + 1):
                at_c = 0 if afresh else (qy - py) % slots * slot_size
                first_of_track = py == 0 if qy == py else py - 1 < pad or qy - 1 < pad
                pair_rows = entering_and_leaving(
                    at_x, at_y, py - pad, qy - pad, afresh or first_of_track, taps, 1, channels, height, x_stride,
                    stride, g * channels * plane,
                )  # fmt: skip
                update_column_sums(
                    c, at_c, stride, x, y, at_x, at_y, pair_rows, afresh or first_of_track, map_width, 0, 1, map_width,
                    max(inside_x - 1, 0), lanes, v,
                )  # fmt: skip
                at_pixel = g * channels * plane + qy * stride
                at_e = (g * grid_height + qy) * row_stride
                for i in range(inside_x):
                    at_d = (inside_x - 1 - i) * lanes
                    tap = at_c + i * stride
                    if i == 0:
                        fresh_products(d, at_d, c, tap, gap, taps, length, v)
                    else:
                        slide(d, at_d, c, tap + (taps - 1) * gap, tap - gap, head, length, v)
                        fresh_products(d, at_d, c, tap, gap, taps, head, v)
                    top = best_logits(d, at_d, rows, at_e, beta_v, length, v)
                    _add_row(
                        top, py * grid_width + pad + i, (pad + i) * per_position, d, at_d, rows, at_e, y,
                        at_pixel + pad * lanes, plane, channels, length, beta_v, cut, peak, w, s, v,
                    )  # fmt: skip
                # Columns of positions that hang over an edge match only themselves.
                for px in range(grid_width):
                    if pad <= px < pad + inside_x:
                        continue
                    product = zero
                    for u in range(max(0, px - pad), min(map_width, px - pad + taps)):
                        product = add(product, load(c, at_c + u * gap))
                    at_edge = (g * grid_height + qy) * edge_stride + px * lanes
                    store(d, 0, add(product, mask_v))
                    top = fms(beta_v, load(edges, at_edge), load(d, 0))
                    _add_row(
                        top, py * grid_width + px, px * per_position, d, 0, edges, at_edge, y, at_pixel + px * lanes, plane,
                        channels, v, beta_v, cut, peak, w, s, v,
                    )  # fmt: skip
            for px in range(grid_width):
                p = py * grid_width + px
                references[(g - first_group) * positions + p] = peak[p]
                for k in range(1 + channels):
                    store(scratch, 0, fold(load(s, px * per_position + k * v), 0, scratch, lanes, v))
                    for lane in range(lanes):
                        image = (g - first_group) * lanes + lane
                        sums[(image * (1 + channels) + k) * positions + p] = scratch[lane]
    for g in range(groups):
        for p in range(positions):
            if references[g * positions + p] != peak[p]:
                factor = power_of_2(references[g * positions + p] - peak[p])
                for j in range(lanes * (1 + channels)):
                    sums[(g * lanes * (1 + channels) + j) * positions + p] *= factor
