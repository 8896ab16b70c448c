"""How large the polynomials have become: degree records, and the probability that the exact test is wrong.

Over F_p every tensor is a table of values, at one random point, of rational functions N/Q of the inputs, the cotangents and the values of
the opaque functions. A :class:`Degree` bounds them without ever forming them:

- ``e``: the excess degree, numerator minus denominator;
- ``size``: log₂ of the L1 norm (the sum of the absolute coefficients) of the numerator, likewise in excess;
- ``poles``: how often the inverses of each *group* occur. A group is one call of an inversion: R elements, each with a
  denominator of degree ≤ δ. Brought to a common denominator, the numerator has degree N = e + Σ m_g R_g δ_g;
- ``rows``: for a group whose elements still lie in the rows of the tensor, which of its axes (:mod:`gradderiv.numbers.alignment`): an entry
  has only the elements of its own row, and R_g counts those.

The test draws k lanes: k primes from [2³¹ − 2²⁸, 2³¹), k points, and lets exp in every lane be a keyed function of
the argument in all lanes. For a difference Δ = N/Q that is not zero, with deg N ≤ D, M values given to opaque functions (and 0 beside
them), and arguments whose differences have numerator degree ≤ d_a (Schwartz 1980, Zippel 1979; the union over pairs covers
coincidences of arguments that would make free exponentials equal),

    P(accept) ≤ [ C(M+1, 2)·(d_a/(p−1))ᵏ + (D/(p−1))ᵏ ] / (1 − δ),     δ = k Σ_g R_g δ_g/(p−1),

with 2·C(M+1, 2) where functions are odd, since there a must not meet −b either.

A program that is run again puts the same arguments into the same functions: these count once, and one more accident for each value is allowed for that they only look
the same. And 1 − δ pays for points that were drawn again because a denominator was 0 mod p. Where elements that are zero in all lanes were
taken for structural zeros, every element that was looked at adds (its degree/(p−1))ᵏ. Assumed: the keyed mixing function behaves as a random function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gradderiv.numbers.alignment import Moves, Rows, local, moved, rows_of

SMALLEST = 2**31 - 2**28  # primes are drawn from [SMALLEST, 2³¹)
PRIMES = 12_500_000  # how many there are, from below: a sieve counts 12,530,588


class Degree(NamedTuple):
    """A bound on the degree and the coefficients of every entry of a tensor; see the module."""

    e: int
    size: float = 0.0
    poles: tuple[tuple[int, int], ...] = ()
    rows: tuple[tuple[int, Rows], ...] = ()

    def __mul__(self, other: Degree) -> Degree:  # type: ignore[override]
        poles = dict(self.poles)
        for group, m in other.poles:
            poles[group] = poles.get(group, 0) + m
        return Degree(self.e + other.e, self.size + other.size, tuple(poles.items()), _shared([self, other]))

    def power(self, n: int) -> Degree:
        return self._replace(e=self.e * n, size=self.size * n, poles=tuple((g, m * n) for g, m in self.poles))

    def sum_of(self, terms: int) -> Degree:
        return self._replace(size=self.size + math.log2(max(terms, 1)))

    def moved(self, moves: Moves) -> Degree:
        """The record after the axes of the tensor have moved; an axis that is not named is one whose entries are mixed."""
        return (
            self._replace(rows=_kept((group, moved(rows, moves)) for group, rows in self.rows))
            if self.rows
            else self
        )


CONSTANT = Degree(0)
VARIABLE = Degree(1)


def _shared(records: list[Degree]) -> tuple[tuple[int, Rows], ...]:
    """The rows that all records with a group agree on."""
    if not any(r.rows for r in records):
        return ()
    found: dict[int, Rows] = {}
    for record in records:
        rows = dict(record.rows)
        for group, _ in record.poles:
            mine = rows.get(group, frozenset())
            found[group] = found[group] & mine if group in found else mine
    return _kept(found.items())


def _kept(rows: Iterable[tuple[int, Rows]]) -> tuple[tuple[int, Rows], ...]:
    return tuple((group, pairs) for group, pairs in rows if pairs)


def join(records: Iterable[Degree]) -> Degree:
    """The record of a tensor whose entries come from tensors with these records."""
    records = list(records)
    if len(records) == 1:
        return records[0]
    poles: dict[int, int] = {}
    for record in records:
        for group, m in record.poles:
            poles[group] = max(poles.get(group, 0), m)
    return Degree(
        max(r.e for r in records), max(r.size for r in records), tuple(poles.items()), _shared(records)
    )


@dataclass(frozen=True)
class Group:
    """One inversion: how many elements, of what degree and log₂ of the L1 norm, and the shape in which they lie where that is known."""

    count: int
    degree: int
    size: float
    shape: tuple[int, ...] = ()


class Ledger:
    """What one run has spent: inversion groups, values given to opaque functions, zeros believed."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.opaque_values = 0
        self.repeated_values = 0
        self.odd = False
        self.argument = CONSTANT
        self.zeros: list[tuple[int, Degree]] = []
        self.gate = -1  # a group without a denominator, by which every record tells whether a gate went in

    def group(self, count: int, degree: int, size: float, shape: tuple[int, ...] = ()) -> int:
        self.groups.append(Group(count, degree, size, shape))
        return len(self.groups) - 1

    def invert(self, record: Degree, count: int, shape: tuple[int, ...] = ()) -> Degree:
        """The record of 1/v for a tensor v of ``count`` elements, in ``shape``, with that record."""
        group = self.group(count, max(self.numerator(record), 0), self.log_norm(record), shape)
        poles = ((group, 1), *self.gates_of(record))
        return Degree(-record.e, -record.size, poles, _kept([(group, rows_of(shape))]))

    def gated(self) -> Degree:
        """The record of a gate."""
        if self.gate < 0:
            self.gate = self.group(1, 0, 0.0)
        return VARIABLE._replace(poles=((self.gate, 1),))

    def gates_of(self, record: Degree) -> tuple[tuple[int, int], ...]:
        """The mark of a gate, where the record has it."""
        return tuple((g, 1) for g, _ in record.poles if g == self.gate)

    def numerator(self, record: Degree) -> int:
        return record.e + sum(m * n * self.groups[g].degree for g, m, n in self._poles(record))

    def log_norm(self, record: Degree) -> float:
        return record.size + sum(m * n * self.groups[g].size for g, m, n in self._poles(record))

    def _poles(self, record: Degree) -> list[tuple[int, int, int]]:
        """The groups of a record, how often each, and how many of its elements one entry has."""
        rows = dict(record.rows)
        counted = []
        for g, m in record.poles:
            one = g in rows and bool(self.groups[g].shape)
            counted.append((g, m, local(self.groups[g].shape, rows[g]) if one else self.groups[g].count))
        return counted

    def opaque(self, count: int, argument: Degree, *, odd: bool = False) -> None:
        """``count`` values with this record go into an opaque function, which may be odd."""
        self.opaque_values += count
        self.odd |= odd
        self.argument = join([self.argument, argument])

    def repeated(self, count: int, argument: Degree) -> None:
        """``count`` values go into an opaque function that have gone into it before, each by itself: the same, or an accident for each."""
        self.repeated_values += count
        self.argument = join([self.argument, argument])

    def apart(self, record: Degree) -> Degree:
        """The record of the difference of two entries, which may stand in different rows: twice the rows, but not more than all."""
        poles = [(g, m, min(2 * n, self.groups[g].count)) for g, m, n in self._poles(record)]
        e = record.e + sum(m * n * self.groups[g].degree for g, m, n in poles)
        return Degree(e, record.size + 1 + sum(m * n * self.groups[g].size for g, m, n in poles))

    @property
    def pairs(self) -> int:
        """How many pairs of opaque arguments, 0 among them, must not coincide: a = b, and a = −b where functions are odd."""
        return (math.comb(self.opaque_values + 1, 2) + self.repeated_values) * (2 if self.odd else 1)

    def coincidence(self, lanes: int) -> float:
        """log₂ of the bound on two opaque arguments that differ and coincide in every lane."""
        pairs = self.pairs
        degree = max(self.apart(self.argument).e, 1)
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

        pairs = self.pairs
        terms = [lanes * lane(record)]
        if pairs:
            terms.append(math.log2(pairs) + lanes * lane(self.apart(self.argument)))
        terms += [math.log2(count) + lanes * lane(r) for count, r in self.zeros if count]
        redrawn = lanes * sum(g.count * g.degree for g in self.groups) / (SMALLEST - 1)
        if redrawn >= 1:
            return 0.0
        top = max(terms)
        return min(0.0, top + math.log2(sum(2 ** (t - top) for t in terms)) - math.log2(1 - redrawn))
