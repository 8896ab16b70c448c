"""The expression that a named matrix stands for, as a small tree.

A tree is built by the constructors in lower case, which write it the way one writes by hand: scalars and signs go in front of a product, products and
sums are flat. Nothing is simplified beyond that: a formula shows what its code does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Node:
    """An expression."""

    def children(self) -> Iterator[Node]:
        for f in fields(self):
            value = getattr(self, f.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Node):
                    yield item

    def symbols(self) -> Iterator[Symbol]:
        """The symbols that stand in the expression."""
        if isinstance(self, Symbol):
            yield self
        else:
            for child in self.children():
                yield from child.symbols()

    def uses(self, symbol: Symbol) -> bool:
        """Whether the symbol occurs, in the expression or in the meaning of a symbol in it."""
        return self == symbol or any(child.uses(symbol) for child in self.children())


@dataclass(frozen=True)
class Symbol(Node):
    """A matrix, known by its code name (``W_Q_dot``); ``meaning`` is what it was defined by, if it was."""

    name: str
    meaning: tuple[Node, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Constant(Node):
    """A number, a shape, an option: printed as it stands."""

    text: str


@dataclass(frozen=True)
class Total(Node):
    """± a ± b …"""

    signs: tuple[int, ...]
    terms: tuple[Node, ...]


@dataclass(frozen=True)
class Product(Node):
    """τ A B C: scalars, then a product of matrices."""

    scalars: tuple[Node, ...]
    factors: tuple[Node, ...]


@dataclass(frozen=True)
class Hadamard(Node):
    """A ∘ B, entry by entry."""

    factors: tuple[Node, ...]


@dataclass(frozen=True)
class Quotient(Node):
    """A ⊘ B, entry by entry."""

    top: Node
    bottom: Node


@dataclass(frozen=True)
class Transpose(Node):
    of: Node


@dataclass(frozen=True)
class Call(Node):
    """A function called by its name; ``home`` is the module that defines it."""

    name: str
    args: tuple[Node, ...]
    home: str = ""


@dataclass(frozen=True)
class Item(Node):
    """One of several results of a call: a field of a NamedTuple. ``told`` if its name alone says what it is."""

    call: Node
    name: str
    told: bool = True


ONE = Constant("1")


def add(a: Node, b: Node) -> Node:
    signs, terms = _terms(a)
    more_signs, more_terms = _terms(b)
    return Total(signs + more_signs, terms + more_terms)


def sub(a: Node, b: Node) -> Node:
    signs, terms = _terms(a)
    sign, b = _sign(b)
    return Total((*signs, -sign), (*terms, b))


def neg(a: Node) -> Node:
    sign, a = _sign(a)
    return _signed(-sign, a)


def product(a: Node, b: Node) -> Node:
    """The product of matrices a b."""
    (s, a), (t, b) = _sign(a), _sign(b)
    (scalars, factors), (more_scalars, more_factors) = _factors(a), _factors(b)
    return _signed(s * t, Product(scalars + more_scalars, factors + more_factors))


def scaled(s: Node, a: Node, *, scalar: bool) -> Node:
    """The number s times a, which is itself a number if ``scalar``."""
    (i, s), (j, a) = _sign(s), _sign(a)
    if s == ONE:
        return _signed(i * j, a)
    before, _ = _factors(s, scalar=True)
    scalars, factors = _factors(a, scalar=scalar)
    return _signed(i * j, Product(before + scalars, factors))


def hadamard(a: Node, b: Node) -> Node:
    (s, a), (t, b) = _sign(a), _sign(b)
    if ONE in (a, b):
        return _signed(s * t, b if a == ONE else a)
    scalars: tuple[Node, ...] = ()
    factors: tuple[Node, ...] = ()
    for x in (a, b):
        if isinstance(x, Product) and x.scalars and x.factors:
            scalars += x.scalars
            x = x.factors[0] if len(x.factors) == 1 else Product((), x.factors)
        factors += x.factors if isinstance(x, Hadamard) else (x,)
    whole = Hadamard(factors)
    return _signed(s * t, Product(scalars, (whole,)) if scalars else whole)


def transpose(a: Node) -> Node:
    return a.of if isinstance(a, Transpose) else Transpose(a)


def _sign(a: Node) -> tuple[int, Node]:
    if isinstance(a, Total) and len(a.terms) == 1:
        return a.signs[0], a.terms[0]
    return 1, a


def _signed(sign: int, a: Node) -> Node:
    return a if sign > 0 else Total((-1,), (a,))


def _terms(a: Node) -> tuple[tuple[int, ...], tuple[Node, ...]]:
    return (a.signs, a.terms) if isinstance(a, Total) else ((1,), (a,))


def _factors(a: Node, *, scalar: bool = False) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    if isinstance(a, Product):
        return a.scalars, a.factors
    return ((a,), ()) if scalar else ((), (a,))
