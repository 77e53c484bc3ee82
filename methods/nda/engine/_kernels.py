"""The inner loops of the CPU engine: patch distances by running sums, pruning, and weights, for one query.

Notation: p and q are positions of query and train image, u and v columns of their maps (images, or 2×2-pooled images).
For a fixed pair of rows, the *column sums* C[u, v] are Σ over the patch's rows and channels of x(·, u) y(·, v), and a
patch's product is Σ over its columns of C along the diagonal. Moving both rows, or both columns, by one changes either
sum by what enters and what leaves, so that the cost does not depend on the patch size. Logits are in units of ln 2:

    logit(p, q) = Σ_patch x' y − β Σ_patch y²,   x' = x √ᾱ / ((1−ᾱ) ln 2),   β = ᾱ / (2 (1−ᾱ) ln 2),

−d(p, q) / 2(1−ᾱ) but for a constant of p. Rows of arrays hold `lanes` images side by side, pixel by pixel.
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
from attribench.methods.nda.engine._selection import exp2, fold, power_of_2, sum_of_largest, units
from attribench.methods.nda.engine._simd import (
    add,
    any_above,
    choose,
    compiled,
    fms,
    highest,
    inlined,
    load,
    maximum,
    minimum,
    mul,
    pointer,
    splat,
    store,
    sub,
    width,
)


@inlined
def _raise_peak(
    peak: Any, z: Any, p: int, top: float, w: Any, begin: int, end: int, found: Any, at: int, v: int
) -> None:
    """A larger logit turned up: from now on, weights are relative to the whole number below it."""
    reference = math.floor(top)
    factor = power_of_2(peak[p] - reference)
    peak[p] = reference
    z[p] *= factor
    factors = splat(factor, load(found, at))
    store(found, at, mul(factors, load(found, at)))
    for j in range(begin, end, v):
        store(w, j, mul(factors, load(w, j)))


@inlined
def _weigh(
    w: Any, at: int, d: Any, at_d: int, energy: Any, at_e: int, beta: Any, peak: Any, floor: Any, found: Any, at_f: int,
    length: int, v: int,
) -> int:  # fmt: skip
    """Turn a row of candidates into weights; add their sum and number to ``found[at_f:]``."""
    zero, one = splat(0.0, peak), splat(1.0, peak)
    total, count = load(found, at_f), load(found, at_f + v)
    for j in range(0, length, v):
        logit = fms(beta, load(energy, at_e + j), load(d, at_d + j))
        if any_above(logit, floor):
            weight = choose(logit, floor, exp2(logit, peak), zero)
            store(w, at, weight)
            total = add(total, weight)
            count = choose(logit, floor, add(count, one), count)
            at += v
    store(found, at_f, total)
    store(found, at_f + v, count)
    return at


@inlined
def _take_row(
    top: Any, p: int, px: int, w: Any, w_stride: int, d: Any, at_d: int, energy: Any, at_e: int, length: int, beta: Any,
    cuts: Any, peak: Any, z: Any, found: Any, kept: Any, v: int,
) -> None:  # fmt: skip
    """Weigh a row of candidates of position p, if its largest logits, ``top``, say that one of them matters."""
    threshold, shallow, depth = cuts
    best = highest(top)
    if best < peak[p] - threshold:
        return
    at, at_f = px * w_stride, px * 3 * v
    if best >= peak[p] + 1.0:
        _raise_peak(peak, z, p, best, w, at, at + kept[px], found, at_f, v)
    # What lies below the shallow threshold counts only for the sum of an image whose best one is not far above it.
    largest = maximum(top, load(found, at_f + 2 * v))
    floor = maximum(sub(largest, splat(depth + 2.0, beta)), splat(peak[p] - threshold, beta))
    floor = minimum(floor, splat(peak[p] - shallow, beta))
    if highest(sub(top, floor)) < 0.0:
        return
    end = _weigh(w, at + kept[px], d, at_d, energy, at_e, beta, splat(peak[p], beta), floor, found, at_f, length, v)
    store(found, at_f + 2 * v, largest)
    kept[px] = end - at


@inlined
def _finish_position(
    p: int, px: int, w: Any, w_stride: int, top_k: int, cuts: Any, peak: Any, z: Any, found: Any,
    kept: Any, guess: Any, scratch: Any, sums: Any, positions: int, first_image: int, lanes: int, v: int,
) -> None:  # fmt: skip
    """All candidates of p are weighed: add to its normaliser, and store each image's top-k sum."""
    threshold, _, depth = cuts
    at, at_f, end = px * w_stride, px * 3 * v, px * w_stride + kept[px]
    total = fold(load(found, at_f), 0, scratch, lanes, v)
    store(scratch, 0, total)
    for lane in range(lanes):
        z[p] += scratch[lane]
    if top_k == 0:
        return
    zero, reference = splat(0.0, total), splat(peak[p], total)
    store(w, end, zero)
    store(w, end + v, zero)
    store(w, end + 2 * v, zero)
    count = fold(load(found, at_f + v), 0, scratch, lanes, v)
    # An image without any candidate above the threshold gets zero, whatever its best one is taken for.
    best = maximum(fold(load(found, at_f + 2 * v), 2, scratch, lanes, v), splat(peak[p] - threshold, total))
    relative = sub(best, reference)
    total = sum_of_largest(
        w, at, end, top_k, -threshold, sub(relative, splat(depth + 2.0, total)), relative, units(best, reference, depth),
        count, guess, 2 * px * v, scratch, lanes, v,
    )  # fmt: skip
    store(scratch, 0, total)
    for lane in range(lanes):
        sums[(first_image + lane) * positions + p] = scratch[lane]


@compiled
def influence(
    x_array: Any, y_array: Any, rows_array: Any, edges_array: Any, shape: Any, beta: Any, top_k: int,
    cuts: Any, first_group: int, groups: int, peak_array: Any, z_array: Any, sums_array: Any,
    references_array: Any, c_array: Any, d_array: Any, w_array: Any, found_array: Any, kept_array: Any,
    at_x_array: Any, at_y_array: Any, mask_array: Any, guess_array: Any, scratch_array: Any,
) -> None:  # fmt: skip
    """Partial influence of some groups of train images on one query.

    Args:
        x: (x', −x'), flat ``(2, C, map height, map width + step)``.
        y: the groups' maps, flat ``(groups, C, map height, stride)``.
        rows: Σ_patch y² of the positions that lie inside along x, flat ``(groups, grid height, stride)``.
        edges: Σ_patch y² of all positions, flat ``(groups, grid height, stride)``.
        shape: see :meth:`LaneShape.numbers`.
        beta: β.
        top_k: k, or 0 for the normaliser alone.
        cuts: see :func:`~attribench.methods.nda.engine.compiled.cuts`.
        first_group: the first group to compare.
        groups: their number.
        peak: float64 ``(positions,)``, the largest logit known, rounded down; raised where a larger one turns up.
        z: float64 ``(positions,)``, Σ weights relative to peak; added to.
        sums: float32 ``(groups × lanes, positions)``, zero; gets the top-k sums relative to peak.
        references: float64 ``(positions,)`` a group: work space, as are all that follow; see :class:`WorkSpace`.
    """
    (channels, height, map_width, grid_height, grid_width, pad, step, taps, inside_y, inside_x, lanes, x_stride,
     stride, row_stride, edge_stride) = shape  # fmt: skip
    positions = grid_height * grid_width
    x, y, rows, edges = pointer(x_array), pointer(y_array), pointer(rows_array), pointer(edges_array)
    peak, z, sums, references = pointer(peak_array), pointer(z_array), pointer(sums_array), pointer(references_array)
    c, d, w, found, kept = (
        pointer(c_array),
        pointer(d_array),
        pointer(w_array),
        pointer(found_array),
        pointer(kept_array),
    )
    at_x, at_y, mask = pointer(at_x_array), pointer(at_y_array), pointer(mask_array)
    guess, scratch = pointer(guess_array), pointer(scratch_array)
    v = width(y)
    length = inside_x * lanes
    head = min((step * lanes + v - 1) // v * v, length)
    slots = max(inside_y, 1)
    afresh = taps <= FRESH_TAPS
    slot_size = ((map_width + step - 1) // step + 1) // 2 * 2 * stride
    gap = stride + step * lanes  # from a tap's column sum to the next one's: both columns move
    w_stride = slots * max(row_stride, v) + 4 * v
    beta_v, mask_v = splat(beta, load(mask, 0)), load(mask, 0)
    zero, lowest = splat(0.0, mask_v), splat(-3.0e38, mask_v)
    for g in range(first_group, first_group + groups):
        first_image = (g - first_group) * lanes
        # Positions step by step along both axes share sums; with step 2 there are four such classes.
        for corner in range(min(step, grid_height) * min(step, grid_width)):
            ay, ax = corner // min(step, grid_width), corner % min(step, grid_width)
            u_first = (ax - pad + step - 1) % step
            columns = (map_width - u_first + step - 1) // step
            for py in range(ay, grid_height, step):
                for px in range(ax, grid_width, step):
                    kept[px] = 0
                    store(found, 3 * px * v, zero)
                    store(found, 3 * px * v + v, zero)
                    store(found, 3 * px * v + 2 * v, lowest)
                inside = pad <= py < pad + inside_y
                for qy in range(pad if inside else py, pad + inside_y if inside else py + 1):
                    at_c = 0 if afresh else (qy - py) % slots * slot_size
                    first_of_track = py == ay if qy == py else py - step < pad or qy - step < pad
                    pair_rows = entering_and_leaving(
                        at_x, at_y, py - pad + step - 1, qy - pad + step - 1, afresh or first_of_track, taps, step,
                        channels, height, x_stride, stride, g * channels * height * stride,
                    )  # fmt: skip
                    update_column_sums(
                        c, at_c, stride, x, y, at_x, at_y, pair_rows, afresh or first_of_track, columns, u_first,
                        step, map_width, max(inside_x - 1, 0), lanes, v,
                    )  # fmt: skip
                    at_e = (g * grid_height + qy) * row_stride
                    for i in range((ax - pad) % step, inside_x, step):
                        at_d = (inside_x - 1 - i) * lanes
                        tap = at_c + (i + step - 1) // step * stride + (step - 1) * lanes
                        if i < step:
                            fresh_products(d, at_d, c, tap, gap, taps, length, v)
                        else:
                            slide(d, at_d, c, tap + (taps - 1) * gap, tap - gap, head, length, v)
                            fresh_products(d, at_d, c, tap, gap, taps, head, v)
                        top = best_logits(d, at_d, rows, at_e, beta_v, length, v)
                        px = pad + i
                        _take_row(
                            top, py * grid_width + px, px, w, w_stride, d, at_d, rows, at_e, length, beta_v, cuts,
                            peak, z, found, kept, v,
                        )  # fmt: skip
                    # Columns of positions that hang over an edge match only themselves.
                    running = False
                    product = zero
                    for px in range(ax, grid_width, step):
                        if pad <= px < pad + inside_x:
                            running = False
                            continue
                        u = px - pad + step - 1
                        if running:
                            entering, leaving = u + step * (taps - 1), u - step
                            if entering < map_width:
                                i = at_c + entering // step * stride + entering * lanes
                                product = add(product, load(c, i))
                            if leaving >= 0:
                                product = sub(product, load(c, at_c + leaving // step * stride + leaving * lanes))
                        else:
                            product = zero
                            for tap in range(max(0, -(u // step)), taps):
                                if u + step * tap < map_width:
                                    i = at_c + (u // step + tap) * stride + (u + step * tap) * lanes
                                    product = add(product, load(c, i))
                            running = True
                        at_e = (g * grid_height + qy) * edge_stride + px * lanes
                        store(d, 0, add(product, mask_v))
                        top = fms(beta_v, load(edges, at_e), load(d, 0))
                        _take_row(
                            top, py * grid_width + px, px, w, w_stride, d, 0, edges, at_e, v, beta_v, cuts, peak,
                            z, found, kept, v,
                        )  # fmt: skip
                for px in range(ax, grid_width, step):
                    p = py * grid_width + px
                    references[(g - first_group) * positions + p] = peak[p]
                    if kept[px] > 0:
                        _finish_position(
                            p, px, w, w_stride, top_k, cuts, peak, z, found, kept, guess, scratch, sums,
                            positions, first_image, lanes, v,
                        )  # fmt: skip
    if top_k > 0:
        for g in range(groups):
            for p in range(positions):
                reference = references[g * positions + p]
                if reference != peak[p]:
                    factor = power_of_2(reference - peak[p])
                    for lane in range(lanes):
                        sums[(g * lanes + lane) * positions + p] *= factor
