"""Parts of the kernel that compare: column sums of a pair of rows, and products of patches, both by running sums.

See :mod:`attribench.methods.nda.engine._kernels` for the notation.
"""

from __future__ import annotations

from typing import Any

from attribench.methods.nda.engine._simd import add, fma, fms, inlined, load, maximum, splat, spread, store, sub

#: Up to so many rows a patch, column sums are computed afresh: cheaper than to keep those of all rows in the cache.
FRESH_TAPS = 4


@inlined
def entering_and_leaving(
    at_x: Any, at_y: Any, row_x: int, row_y: int, fresh: bool, taps: int, step: int, channels: int, height: int,
    x_stride: int, stride: int, first_y: int,
) -> int:  # fmt: skip
    """List the rows (of each channel) of query and train image whose products a pair's column sums gain.

    Rows that leave are taken from the second half of x, which is −x. Returns their number.
    """
    count = 0
    begin, end = (0, taps) if fresh else (-1, taps)
    for tap in range(begin, end):
        if not fresh and 0 <= tap < taps - 1:
            continue
        row = row_x + step * tap
        if 0 <= row < height:
            sign = channels if tap < 0 else 0
            for channel in range(channels):
                at_x[count] = ((sign + channel) * height + row) * x_stride
                at_y[count] = first_y + (channel * height + row_y + step * tap) * stride
                count += 1
    return count


@inlined
def update_column_sums(
    c: Any, at: int, stride: int, x: Any, y: Any, at_x: Any, at_y: Any, rows: int, fresh: bool, columns: int,
    first: int, step: int, map_width: int, reach: int, lanes: int, v: int,
) -> None:  # fmt: skip
    """C[u, v] += Σ over `rows` of x(u) y(v), for u = first, first + step, … and |u − v| ≤ reach.

    Two u and four vectors of v at a time: eight sums stay in registers.
    """
    zero = splat(0.0, load(y, 0))
    for i in range(0, columns, 2):
        u = first + i * step
        begin = max(0, u - reach) * lanes // v * v
        tiles = (min(map_width, u + step + reach + 1) * lanes - begin + 4 * v - 1) // (4 * v)
        begin = min(begin, stride - tiles * 4 * v)
        upper = at + i * stride + begin
        for _ in range(tiles):
            lower = upper + stride
            if fresh:
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
            else:
                a0, a1, a2, a3 = load(c, upper), load(c, upper + v), load(c, upper + 2 * v), load(c, upper + 3 * v)
                b0, b1, b2, b3 = load(c, lower), load(c, lower + v), load(c, lower + 2 * v), load(c, lower + 3 * v)
            for row in range(rows):
                a, b = spread(x, at_x[row] + u), spread(x, at_x[row] + u + step)
                j = at_y[row] + begin
                y0, y1, y2, y3 = load(y, j), load(y, j + v), load(y, j + 2 * v), load(y, j + 3 * v)
                a0, a1, a2, a3 = fma(a, y0, a0), fma(a, y1, a1), fma(a, y2, a2), fma(a, y3, a3)
                b0, b1, b2, b3 = fma(b, y0, b0), fma(b, y1, b1), fma(b, y2, b2), fma(b, y3, b3)
            store(c, upper, a0)
            store(c, upper + v, a1)
            store(c, upper + 2 * v, a2)
            store(c, upper + 3 * v, a3)
            store(c, lower, b0)
            store(c, lower + v, b1)
            store(c, lower + 2 * v, b2)
            store(c, lower + 3 * v, b3)
            upper += 4 * v
            begin += 4 * v


@inlined
def fresh_products(d: Any, at: int, c: Any, at_c: int, gap: int, taps: int, length: int, v: int) -> None:
    """Products of the candidates 0, 1, …: each adds `taps` column sums, `gap` apart."""
    for j in range(0, length, v):
        i = at_c + j
        total = load(c, i)
        for _ in range(1, taps):
            i += gap
            total = add(total, load(c, i))
        store(d, at + j, total)


@inlined
def slide(d: Any, at: int, c: Any, entering: int, leaving: int, begin: int, length: int, v: int) -> None:
    """Products of the next position. In place, since d is indexed by displacement, which stays."""
    for j in range(begin, length - v, 2 * v):
        a = sub(load(c, entering + j), load(c, leaving + j))
        b = sub(load(c, entering + j + v), load(c, leaving + j + v))
        store(d, at + j, add(load(d, at + j), a))
        store(d, at + j + v, add(load(d, at + j + v), b))
    if begin < length and (length - begin + v - 1) // v % 2 == 1:
        j = (length - 1) // v * v
        store(d, at + j, add(load(d, at + j), sub(load(c, entering + j), load(c, leaving + j))))


@inlined
def best_logits(d: Any, at: int, energy: Any, at_e: int, beta: Any, length: int, v: int) -> Any:
    """Lane by lane, the largest logit of a row of candidates."""
    last = (length - 1) // v * v
    a = b = fms(beta, load(energy, at_e + last), load(d, at + last))
    for j in range(0, last, 2 * v):
        a = maximum(a, fms(beta, load(energy, at_e + j), load(d, at + j)))
        b = maximum(b, fms(beta, load(energy, at_e + j + v), load(d, at + j + v)))
    return maximum(a, b)
