"""Parts of the kernel that weigh candidates and sum up each image's k largest weights; lanes are images.

Logits are in units of ln 2, so that a weight is 2^logit.

An image's sum is the same to the bit wherever the image stands and whatever came before it. All is relative to a reference
that rises while train images come in, but that is a whole number, so that another one changes nothing but exponents. And
the weights that are summed are whole multiples of 2^-depth of the image's largest (about): such numbers add up without any
rounding, so that their order does not matter, nor how the search for the k largest went.
"""

from __future__ import annotations

import math
from typing import Any

from attribench.methods.nda.engine._simd import (
    add,
    add_bits,
    choose,
    div,
    fma,
    highest,
    inlined,
    load,
    maximum,
    minimum,
    mul,
    mul_bits,
    number_of_bits,
    rounder,
    shift_exponent,
    splat,
    store,
    sub,
    sub_bits,
    width,
)

#: A search that has not converged after so many rounds bisects in every other one.
PATIENCE = 6


@inlined
def exp2(v: Any, reference: Any) -> Any:
    """2^(v − reference) with a relative error of 1e-7, if that is a normal number; elsewhere any value.

    ``reference``: whole numbers; they decide about the exponent alone.
    """
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
    return shift_exponent(p, sub(power, reference))


@inlined
def power_of_2(n: float) -> float:
    """2^n, exactly, for a whole number n ≤ 0; −∞ will do."""
    return math.ldexp(1.0, int(n)) if n > -1000.0 else 0.0


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
def _fold_bits(value: Any, scratch: Any, lanes: int, v: int) -> Any:
    """The sum of an image's lanes, where it has several, bits taken as whole numbers."""
    while lanes < v:  # add the upper half of an image's lanes to the lower half, all the way round
        v //= 2
        store(scratch, 0, value)
        store(scratch, width(scratch), value)
        value = add_bits(value, load(scratch, v))
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
def _narrow(
    n: Any, k: Any, low: Any, high: Any, enough: Any, t: Any, t_before: Any, n_before: Any, slope: Any, halve: bool
) -> Any:
    """A round of the search for the t that k weights exceed, given that n exceed 2^t. Secant steps within a bracket."""
    zero, half, one, margin = splat(0.0, n), splat(0.5, n), splat(1.0, n), splat(1.5, n)
    below = choose(n, k, t, low)
    above = choose(n, k, high, t)
    # One too many or too few will do: sum_of_largest() knows the weight next to t on either side.
    off = choose(n, add(k, margin), one, choose(sub(k, margin), n, one, zero))
    off = choose(enough, above, zero, off)
    searching = choose(sub(high, low), splat(2.0e-6, n), off, zero)  # in a narrower bracket, rounding of t would show
    settled = choose(off, searching, high, t)
    fall, rise = sub(t_before, t), sub(n, n_before)
    slope = choose(mul(fall, rise), splat(1.0e-6, n), div(rise, fall), slope)
    middle = mul(half, add(below, above))
    step = middle if halve else add(t, div(sub(n, k), slope))
    step = choose(step, below, step, middle)
    step = choose(above, step, step, middle)
    low, high = choose(searching, half, below, low), choose(searching, half, above, high)
    return low, high, choose(searching, half, step, settled), t, n, slope, highest(searching) > 0.0


@inlined
def _search(
    w: Any, begin: int, end: int, k: Any, floor: float, enough: Any, best: Any, count: Any, guess: Any, at: int,
    scratch: Any, lanes: int, v: int,
) -> Any:  # fmt: skip
    """Per image, the weight that k weights exceed, or nearly so many; and what k exceed for sure, and for sure not.

    Where k weights do not exceed 2^enough, it ends anywhere below that.
    """
    zero, half = splat(0.0, best), splat(0.5, best)
    low = splat(floor, best)
    # Few survivors: nothing to search, so an empty bracket. The margin is more than best and weights are rounded by.
    high = choose(count, k, add(best, splat(1.0e-4, best)), low)
    middle = mul(half, add(low, high))
    t = add(best, load(guess, at))
    t = choose(t, low, t, middle)
    t = choose(high, t, t, middle)
    t = choose(count, k, t, low)
    slope = load(guess, at + v)
    t_before, n_before = t, count
    for rounds in range(64):
        n = fold(_count_above(w, begin, end, exp2(t, zero), v), 0, scratch, lanes, v)
        halve = rounds >= PATIENCE and rounds % 2 == 0
        low, high, t, t_before, n_before, slope, searching = _narrow(
            n, k, low, high, enough, t, t_before, n_before, slope, halve
        )
        if not searching:
            break
    store(guess, at, choose(count, k, sub(t, best), load(guess, at)))
    store(guess, at + v, choose(count, k, slope, load(guess, at + v)))
    return exp2(t, zero), exp2(low, zero), exp2(high, zero)


@inlined
def units(best: Any, reference: Any, depth: float) -> Any:
    """2^-depth of about the weight of the logit ``best``, by which no weight is more than 2^depth: a power of 2."""
    power = sub(add(best, rounder(best)), reference)
    return shift_exponent(splat(1.0, best), add(power, splat(1.0 - depth, best)))


@inlined
def _sum_above(
    w: Any, begin: int, end: int, t: Any, per_weight: Any, scratch: Any, lanes: int, v: int
) -> Any:  # fmt: skip
    """Per image, of the weights above t the number, the least, and the sum in units; and the largest of the others."""
    zero, one, magic = splat(0.0, t), splat(1.0, t), rounder(t)
    number = low = total = zero
    least = splat(4.0, t)
    for j in range(begin, end, v):
        a = load(w, j)
        number = choose(a, t, add(number, one), number)
        least = choose(a, t, minimum(least, a), least)
        low = choose(a, t, low, maximum(low, a))
        total = add_bits(total, sub_bits(fma(choose(a, t, a, zero), per_weight, magic), magic))
    number, least = fold(number, 0, scratch, lanes, v), fold(least, 1, scratch, lanes, v)
    return number, least, fold(low, 2, scratch, lanes, v), _fold_bits(total, scratch, lanes, v)


@inlined
def sum_of_largest(
    w: Any, begin: int, end: int, top_k: int, floor: float, enough: Any, best: Any, unit: Any, count: Any, guess: Any,
    at: int, scratch: Any, lanes: int, v: int,
) -> Any:  # fmt: skip
    """Per image, the sum of its ``top_k`` largest of the weights ``w[begin:end]``, each rounded to a multiple of ``unit``.

    ``w`` goes on with zeros for three vectors. ``best``: each image's largest logit; ``enough``: a logit whose weight is
    rounded to zero; ``unit``: see :func:`units`; ``count``: the number of an image's weights above 2^floor.
    ``guess[at:]``: where the threshold was, relative to the best, and the number of weights per unit of logit there, at
    a position nearby; updated.
    """
    zero, half, one, margin = splat(0.0, best), splat(0.5, best), splat(1.0, best), splat(1.5, best)
    k, per_weight, magic = splat(top_k, best), div(one, unit), rounder(best)
    t = lower = upper = zero
    if highest(count) > top_k:
        t, lower, upper = _search(w, begin, end, k, floor, enough, best, count, guess, at, scratch, lanes, v)
    for _ in range(128):
        n, least, low, total = _sum_above(w, begin, end, t, per_weight, scratch, lanes, v)
        nearly = sub(k, half)  # is it above t, or not, that the k-th largest is?
        value = fma(choose(n, nearly, least, low), per_weight, magic)
        lower = choose(n, nearly, least, choose(n, sub(k, margin), low, lower))
        upper = choose(n, nearly, choose(n, add(k, half), upper, least), low)
        # Done if at most one weight is to be taken back, or if all that are missing are equal, or rounded to zero. Else
        # there are weights nearly equal, where the search has an end too early: halve what is left.
        off = choose(upper, lower, one, zero)
        off = choose(n, nearly, choose(n, add(k, half), zero, off), choose(value, magic, off, zero))
        off = choose(count, k, choose(n, add(k, margin), one, off), zero)
        if highest(off) == 0.0:
            break
        middle = add(lower, mul(half, sub(upper, lower)))
        t = choose(off, half, choose(upper, middle, middle, lower), t)
    missing = choose(count, k, sub(k, n), zero)
    missing, value = sub_bits(add(missing, magic), magic), sub_bits(value, magic)
    return mul(number_of_bits(add_bits(total, mul_bits(missing, value))), unit)
