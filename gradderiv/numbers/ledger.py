"""How large the polynomials have become: degree records, and the probability that the exact test is wrong.

Over F_p every tensor is a table of values, at one random point, of rational functions N/Q of the inputs, the cotangents and the values of
the opaque functions. A :class:`Degree` bounds them without ever forming them:

- ``e``: the excess degree, numerator minus denominator;
- ``size``: log₂ of the L1 norm (the sum of the absolute coefficients) of the numerator, likewise in excess;
- ``poles``: how often the inverses of each *group* occur. A group is one call of an inversion: R elements, each with a
  denominator of degree ≤ δ. Brought to a common denominator, the numerator has degree N = e + Σ m_g R_g δ_g.

The test draws k lanes: k primes from [2³¹ − 2²⁸, 2³¹), k points, and lets exp in every lane be a keyed function of
the argument in all lanes. For a difference Δ = N/Q that is not zero, with deg N ≤ D, M values given to opaque functions (and 0 beside
them), and arguments whose differences have numerator degree ≤ d_a (Schwartz 1980, Zippel 1979; the union over pairs covers
coincidences of arguments that would make free exponentials equal),

    P(accept) ≤ [ C(M+1, 2)·(d_a/(p−1))ᵏ + (D/(p−1))ᵏ ] / (1 − δ),     δ = k Σ_g R_g δ_g/(p−1),

where 1 − δ pays for points that were drawn again because a denominator was 0 mod p. Where elements that are zero in all lanes were
taken for structural zeros, every element that was looked at adds (its degree/(p−1))ᵏ. Assumed: the keyed mixing function behaves as a random function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

SMALLEST = 2**31 - 2**28  # primes are drawn from [SMALLEST, 2³¹)
PRIMES = 12_500_000  # how many there are, from below: a sieve counts 12,530,588


class Degree(NamedTuple):
    """A bound on the degree and the coefficients of every entry of a tensor; see the module."""

    e: int
    size: float = 0.0
    poles: tuple[tuple[int, int], ...] = ()

    def __mul__(self, other: Degree) -> Degree:  # type: ignore[override]
        poles = dict(self.poles)
        for group, m in other.poles:
            poles[group] = poles.get(group, 0) + m
        return Degree(self.e + other.e, self.size + other.size, tuple(poles.items()))

    def power(self, n: int) -> Degree:
        return Degree(self.e * n, self.size * n, tuple((g, m * n) for g, m in self.poles))

    def sum_of(self, terms: int) -> Degree:
        return self._replace(size=self.size + math.log2(max(terms, 1)))


CONSTANT = Degree(0)
VARIABLE = Degree(1)


def join(records: Iterable[Degree]) -> Degree:
    """The record of a tensor whose entries come from tensors with these records."""
    records = list(records)
    poles: dict[int, int] = {}
    for record in records:
        for group, m in record.poles:
            poles[group] = max(poles.get(group, 0), m)
    return Degree(max(r.e for r in records), max(r.size for r in records), tuple(poles.items()))


class Ledger:
    """What one run has spent: inversion groups, values given to opaque functions, zeros believed."""

    def __init__(self) -> None:
        self.groups: list[tuple[int, int, float]] = []  # R, δ, log₂ of the L1 norm of a denominator
        self.opaque_values = 0
        self.argument = CONSTANT
        self.zeros: list[tuple[int, Degree]] = []

    def group(self, count: int, degree: int, size: float) -> int:
        self.groups.append((count, degree, size))
        return len(self.groups) - 1

    def invert(self, record: Degree, count: int) -> Degree:
        """The record of 1/v for a tensor v of ``count`` elements with that record."""
        group = self.group(count, max(self.numerator(record), 0), self.log_norm(record))
        return Degree(-record.e, -record.size, ((group, 1),))

    def numerator(self, record: Degree) -> int:
        return record.e + sum(m * self.groups[g][0] * self.groups[g][1] for g, m in record.poles)

    def log_norm(self, record: Degree) -> float:
        return record.size + sum(m * self.groups[g][0] * self.groups[g][2] for g, m in record.poles)

    def opaque(self, count: int, argument: Degree) -> None:
        """``count`` values with this record go into an opaque function."""
        self.opaque_values += count
        self.argument = join([self.argument, argument])

    def coincidence(self, lanes: int) -> float:
        """log₂ of the bound on two opaque arguments that differ and coincide in every lane."""
        pairs = math.comb(self.opaque_values + 1, 2)
        degree = max(self.numerator(self.argument), 1)
        return math.log2(pairs) + lanes * math.log2(degree / (SMALLEST - 1)) if pairs else -math.inf

    def failure(self, record: Degree, lanes: int, *, pool: float | None = None) -> float:
        """log₂ of the probability that a difference with this record is not zero and was found to be.

        With ``pool``, the number of primes drawn from, the figure over the rationals: also an error that is a multiple of a drawn prime
        counts, D/(p−1) + λ/(30.8·pool) stands for D/(p−1).
        """

        def lane(r: Degree) -> float:
            chance = max(self.numerator(r), 1) / (SMALLEST - 1)
            if pool is not None:
                chance += max(self.log_norm(r), 0.0) / (30.8 * pool)
            return math.log2(chance)

        pairs = math.comb(self.opaque_values + 1, 2)
        terms = [lanes * lane(record)]
        if pairs:
            terms.append(math.log2(pairs) + lanes * lane(self.argument))
        terms += [math.log2(count) + lanes * lane(r) for count, r in self.zeros if count]
        redrawn = lanes * sum(count * degree for count, degree, _ in self.groups) / (SMALLEST - 1)
        if redrawn >= 1:
            return 0.0
        top = max(terms)
        return min(0.0, top + math.log2(sum(2 ** (t - top) for t in terms)) - math.log2(1 - redrawn))
