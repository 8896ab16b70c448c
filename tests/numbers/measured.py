"""The degrees of a rational function from its values along a line, by Cauchy's interpolation. On Python's integers; no line is shared with gradderiv."""

from __future__ import annotations

import numpy as np

P = 2**31 - 1


# ---------------------------------------------------------------- polynomials mod P, lowest coefficient first


def trim(a):
    while a and a[-1] == 0:
        a.pop()
    return a


def product(a, b):
    out = [0] * (len(a) + len(b) - 1) if a and b else []
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] = (out[i + j] + x * y) % P
    return trim(out)


def difference(a, b):
    n = max(len(a), len(b))
    pad = [x + [0] * (n - len(x)) for x in (a, b)]
    return trim([(x - y) % P for x, y in zip(*pad, strict=True)])


def division(a, b):
    a, quotient = list(a), [0] * max(len(a) - len(b) + 1, 0)
    inverse = pow(b[-1], -1, P)
    for i in reversed(range(len(quotient))):
        quotient[i] = c = a[i + len(b) - 1] * inverse % P
        for j, y in enumerate(b):
            a[i + j] = (a[i + j] - c * y) % P
    return trim(quotient), trim(a)


def interpolant(points, values):
    """By Newton's divided differences; also ∏ (t − t_i)."""
    table, polynomial, nodes = list(values), [], [1]
    for k, point in enumerate(points):
        scaled = [c * table[k] % P for c in nodes]
        polynomial = difference(polynomial, [-c % P for c in scaled])
        nodes = product(nodes, [-point % P, 1])
        for i in range(len(points) - 1, k, -1):
            table[i] = (table[i] - table[i - 1]) * pow(points[i] - points[i - k - 1], -1, P) % P
    return polynomial, nodes


def degrees(points, values):
    """Of numerator and denominator, in lowest terms, of the rational function with these values; −1 for zero."""
    remainder, previous = interpolant(points, values)
    t, t_previous, best = [1], [], None
    while True:
        candidate = (len(remainder) - 1, len(t) - 1)
        best = candidate if best is None or sum(candidate) < sum(best) else best
        if not remainder:
            break
        quotient, rest = division(previous, remainder)
        previous, remainder = remainder, rest
        t_previous, t = t, difference(t_previous, product(quotient, t))
    assert sum(best) <= len(points) - 4, "too few points"
    return best


# ---------------------------------------------------------------- values along a line


def line(rng, shape, points):
    """x₀ + t x₁ for every t: (points, *shape) of Python's integers."""
    start, slope = (
        np.array([rng.randrange(1, P) for _ in range(int(np.prod(shape)))], dtype=object).reshape(shape)
        for _ in range(2)
    )
    return np.stack([(start + t * slope) % P for t in points])


def inverses(x):
    if np.any(x == 0):
        raise ZeroDivisionError
    return np.frompyfunc(lambda v: pow(v, -1, P), 1, 1)(x)
