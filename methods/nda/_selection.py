"""Parts of the kernel that weigh candidates and sum up each image's k largest weights; lanes are images.

Logits are in units of ln 2, so that a weight is 2^logit.
"""

from __future__ import annotations

from typing import Any

from attribench.methods.nda._simd import (
    add,
    choose,
    div,
    fma,
    highest,
    inlined,
    load,
    maximum,
    minimum,
    mul,
    rounder,
    shift_exponent,
    splat,
    store,
    sub,
)

#: A search that has not converged after so many rounds bisects in every other one.
PATIENCE = 6


@inlined
def exp2(v: Any) -> Any:
    """2^v with a relative error of 1e-7, for v within the exponents of normal numbers; elsewhere any value."""
    magic = rounder(v)
    power = add(v, magic)
    r = sub(v, sub(power, magic))
    # 2^r on [-½, ½]: interpolation at the Chebyshev nodes, relative error 1.02e-7.
    p = splat(0.001339086336353527, v)
    p = fma(p, r, splat(0.009676031918255982, v))
    p = fma(p, r, splat(0.05550357114222094, v))
    p = fma(p, r, splat(0.2402210748530968, v))
    p = fma(p, r, splat(0.6931471880262273, v))
    p = fma(p, r, splat(1.0000000754548972, v))
    return shift_exponent(p, power)


@inlined
def fold(value: Any, how: int, scratch: Any, lanes: int, v: int) -> Any:
    """Combine an image's lanes, where it has several, and leave the result in each. how: 0 sum, 1 least, 2 largest."""
    if lanes < v:
        store(scratch, 0, value)
        for f in range(lanes, v):
            if how == 0:
                scratch[f % lanes] += scratch[f]
            elif how == 1:
                scratch[f % lanes] = min(scratch[f % lanes], scratch[f])
            else:
                scratch[f % lanes] = max(scratch[f % lanes], scratch[f])
        for f in range(lanes, v):
            scratch[f] = scratch[f - lanes]
        value = load(scratch, 0)
    return value


@inlined
def _count_above(w: Any, begin: int, end: int, t: Any, v: int) -> Any:
    zero, one = splat(0.0, t), splat(1.0, t)
    a = b = c = d = zero
    for j in range(begin, end, 4 * v):
        a = choose(load(w, j), t, add(a, one), a)
        b = choose(load(w, j + v), t, add(b, one), b)
        c = choose(load(w, j + 2 * v), t, add(c, one), c)
        d = choose(load(w, j + 3 * v), t, add(d, one), d)
    return add(add(a, b), add(c, d))


@inlined
def _narrow(n: Any, k: Any, low: Any, high: Any, t: Any, t_before: Any, n_before: Any, slope: Any, halve: bool) -> Any:
    """A round of the search for the t that k weights exceed, given that n exceed 2^t. Secant steps within a bracket."""
    zero, half, one, margin = splat(0.0, n), splat(0.5, n), splat(1.0, n), splat(1.5, n)
    # One too many or too few will do: sum_of_largest() knows the weight next to t on either side.
    off = choose(n, add(k, margin), one, choose(sub(k, margin), n, one, zero))
    # Weights that agree to 1e-6 count as equal: their order does not matter.
    searching = choose(sub(high, low), splat(2.0e-6, n), off, zero)
    settled = choose(off, searching, high, t)
    below = choose(n, k, t, low)
    above = choose(n, k, high, t)
    fall, rise = sub(t_before, t), sub(n, n_before)
    slope = choose(mul(fall, rise), splat(1.0e-6, n), div(rise, fall), slope)
    middle = mul(half, add(below, above))
    step = middle if halve else add(t, div(sub(n, k), slope))
    step = choose(step, below, step, middle)
    step = choose(above, step, step, middle)
    low, high = choose(searching, half, below, low), choose(searching, half, above, high)
    return low, high, choose(searching, half, step, settled), t, n, slope, highest(searching) > 0.0


@inlined
def sum_of_largest(
    w: Any, begin: int, end: int, top_k: int, floor: float, peak: Any, total: Any, count: Any, guess: Any, at: int,
    scratch: Any, lanes: int, v: int,
) -> Any:  # fmt: skip
    """Per image, the sum of its ``top_k`` largest of the weights ``w[begin:end]``.

    ``w`` goes on with zeros for three vectors. ``peak``: each image's largest logit; ``total``, ``count``: sum and
    number of its weights above 2^floor. ``guess[at:]``: where the threshold was, relative to the peak, and the number
    of weights per unit of logit there, at a position nearby; updated.
    """
    zero, one, half = splat(0.0, total), splat(1.0, total), splat(0.5, total)
    k, low = splat(top_k, total), splat(floor, total)
    high = choose(count, k, peak, low)  # few survivors: nothing to search, so an empty bracket
    middle = mul(half, add(low, high))
    t = add(peak, load(guess, at))
    t = choose(t, low, t, middle)
    t = choose(high, t, t, middle)
    t = choose(count, k, t, low)
    slope = load(guess, at + v)
    t_before, n_before = t, count
    for rounds in range(64):
        n = fold(_count_above(w, begin, end, exp2(t), v), 0, scratch, lanes, v)
        halve = rounds >= PATIENCE and rounds % 2 == 0
        low, high, t, t_before, n_before, slope, searching = _narrow(
            n, k, low, high, t, t_before, n_before, slope, halve
        )
        if not searching:
            break
    store(guess, at, choose(count, k, sub(t, peak), load(guess, at)))
    store(guess, at + v, choose(count, k, slope, load(guess, at + v)))
    t = exp2(t)
    number_a = number_b = sum_a = sum_b = next_below_a = next_below_b = zero
    least_a = least_b = splat(2.0, t)
    for j in range(begin, end, 2 * v):
        a, b = load(w, j), load(w, j + v)
        number_a = choose(a, t, add(number_a, one), number_a)
        number_b = choose(b, t, add(number_b, one), number_b)
        sum_a = choose(a, t, add(sum_a, a), sum_a)
        sum_b = choose(b, t, add(sum_b, b), sum_b)
        least_a = choose(a, t, minimum(least_a, a), least_a)
        least_b = choose(b, t, minimum(least_b, b), least_b)
        next_below_a = choose(a, t, next_below_a, maximum(next_below_a, a))
        next_below_b = choose(b, t, next_below_b, maximum(next_below_b, b))
    n = fold(add(number_a, number_b), 0, scratch, lanes, v)
    above = fold(add(sum_a, sum_b), 0, scratch, lanes, v)
    least = fold(minimum(least_a, least_b), 1, scratch, lanes, v)
    next_below = fold(maximum(next_below_a, next_below_b), 2, scratch, lanes, v)
    largest = fma(sub(k, n), choose(n, k, least, next_below), above)
    return choose(count, k, largest, total)
