"""Whether a rational function of symbols and opaque exponentials is zero, exactly.

Every symbol, every :class:`~gradderiv.numbers.symbols.Exp` and every square root becomes a generator of a polynomial ring over the rationals. An expression
becomes a numerator over a product of powers of denominators; sums go over the least common multiple of these powers, without
any factoring. It is zero if the numerator is, modulo generator² = q for each root of q: a proof, since an identity in free generators
holds for exponentials too. (And only if, where no root of a polynomial is a polynomial in the others. SymPy's ``together`` and ``expand`` do the same some ten times slower, ``simplify`` a hundred times.)
"""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.polys.rings import PolyElement, PolyRing

from gradderiv.numbers.symbols import Exp

Fraction = tuple[Any, dict[Any, int]]  # a numerator, and the power of each denominator


class Rational:
    """Decides zero for expressions in the atoms of ``expressions``."""

    def __init__(self, *expressions: sp.Expr) -> None:
        atoms = set().union(*(_atoms(e) for e in expressions))
        # Roots of what holds roots stand before these: in the order of the ring every square is the leading term of its relation.
        ordered = sorted(atoms, key=lambda a: (not a.is_Pow, -sp.count_ops(a), sp.default_sort_key(a)))
        self.ring = PolyRing([f"g{i}" for i in range(max(len(ordered), 1))], sp.QQ)
        self.generators = dict(zip(ordered, self.ring.gens, strict=False))
        self.known: dict[sp.Expr, Fraction] = {}
        self.roots: list[Any] = []
        self.roots = [self._relation(a, g) for a, g in self.generators.items() if a.is_Pow]

    def _relation(self, root: sp.Expr, generator: Any) -> Any:
        """generator² − q, of the root of q."""
        q, denominators = self.fraction(root.base)
        if denominators:
            raise ValueError(f"{root} is the root of a quotient")
        return generator**2 - q

    def is_zero(self, difference: sp.Expr) -> bool:
        """Whether the expression vanishes identically."""
        numerator, _ = self.fraction(difference)
        return bool(self._reduced(numerator) == 0)

    def _reduced(self, polynomial: Any) -> Any:
        return polynomial.rem(self.roots) if self.roots else polynomial

    def fraction(self, e: sp.Expr) -> Fraction:
        """The expression as a numerator over powers of denominators."""
        if e not in self.known:
            self.known[e] = self._fraction(e)
        return self.known[e]

    def _fraction(self, e: sp.Expr) -> Fraction:
        if e in self.generators:
            return self.generators[e], {}
        if e.is_Rational:
            return self.ring(sp.QQ(e.p, e.q)), {}
        if e.is_Add:
            return self._sum([self.fraction(a) for a in e.args])
        if e.is_Mul:
            numerator = self.ring.one
            denominators: dict[Any, int] = {}
            for n, d in map(self.fraction, e.args):
                numerator *= n
                denominators = {k: denominators.get(k, 0) + d.get(k, 0) for k in {**denominators, **d}}
            return numerator, denominators
        if e.is_Pow and e.exp.is_Integer:
            n, d = self.fraction(e.base)
            power = abs(int(e.exp))
            if e.exp > 0:
                return n**power, {k: m * power for k, m in d.items()}
            top = self.ring.one
            for k, m in d.items():
                top *= k ** (m * power)
            if self._reduced(n) == 0:
                raise ZeroDivisionError(f"{e.base} is identically zero, and divided by")
            return top, {n: power}
        if _is_root(e):  # n^(j/2) = n^((j−1)/2) √n, √n the product of the roots of n's primes
            top = self.ring(sp.QQ(1))
            for prime, power in sp.factorint(e.base).items():
                top *= prime ** (power // 2) * (self.generators[sp.sqrt(prime)] if power % 2 else 1)
            n, d = self.fraction(sp.Integer(e.base) ** (e.exp - sp.Rational(1, 2)))
            return n * top, d
        if e.is_Pow and (2 * e.exp).is_Integer:  # likewise, √n a generator of its own
            n, d = self.fraction(e.base ** (e.exp - sp.Rational(1, 2)))
            return n * self.generators[sp.sqrt(e.base)], d
        raise ValueError(f"{e} is no rational function of symbols, exponentials and square roots")

    def _sum(self, terms: list[Fraction]) -> Fraction:
        common: dict[PolyElement, int] = {}
        for _, d in terms:
            for k, m in d.items():
                common[k] = max(common.get(k, 0), m)
        numerator = self.ring.zero
        for n, d in terms:
            for k, m in common.items():
                n = n * k ** (m - d.get(k, 0))
            numerator += n
        return numerator, common


def _is_root(e: sp.Expr) -> bool:
    """Whether e is an odd power of the root of a positive integer."""
    return bool(e.is_Pow and e.base.is_Integer and e.base > 0 and (2 * e.exp).is_Integer)


def _atoms(e: sp.Expr) -> set[sp.Expr]:
    """Symbols, exponentials (not what stands inside them), and the roots of the primes under roots of integers."""
    if e.is_Symbol or isinstance(e, Exp):
        return {e}
    if e.is_Pow and not e.exp.is_Integer and _is_root(e):
        return {sp.sqrt(prime) for prime, power in sp.factorint(e.base).items() if power % 2}
    if e.is_Pow and not e.exp.is_Integer and (2 * e.exp).is_Integer:
        return {sp.sqrt(e.base), *_atoms(e.base)}
    return set().union(*(_atoms(a) for a in e.args))
