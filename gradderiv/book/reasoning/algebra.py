"""What needs no reason: two expressions that differ only in the order in which one writes them have one normal form.

Products and sums are flat, sums and entrywise products in any order, a number stands anywhere in a product, the transpose is taken
factor by factor, and A ⊘ B is A ∘ B⁻¹ entry by entry. Nothing is multiplied out (:func:`expanded` does that) and nothing cancels.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from gradderiv.numbers.nodes import (
    ONE,
    Call,
    Constant,
    Hadamard,
    Item,
    Node,
    Product,
    Quotient,
    Symbol,
    Total,
    Transpose,
)

ONCE = Fraction(1)
LINEAR = {"inner", "rowsum", "sum", "tr"}  # in each of their arguments
NUMBERS = {"inner", "sum", "tr"}  # their values are numbers


class Term(NamedTuple):
    """coefficient · scalars · body; no body if the whole is a product of numbers."""

    coefficient: Fraction
    scalars: tuple[Node, ...]
    body: Node | None


def split(node: Node) -> Term:
    """The coefficient, the scalars and the rest of a node in normal form."""
    if isinstance(node, Total) and len(node.terms) == 1:
        term = split(node.terms[0])
        return term._replace(coefficient=node.signs[0] * term.coefficient)
    scalars, body = (node.scalars, node.factors) if isinstance(node, Product) else ((), (node,))
    coefficient = ONCE
    rest: list[Node] = []
    for s in scalars:
        value = _value(s)
        coefficient, rest = (coefficient, [*rest, s]) if value is None else (coefficient * value, rest)
    number = next(filter(_is_number, rest), None)
    if not body and number is not None:
        rest.remove(number)
        body = (number,)
    if not body:
        return Term(coefficient, tuple(rest), None)
    return Term(coefficient, tuple(rest), body[0] if len(body) == 1 else Product((), body))


def _value(node: Node) -> Fraction | None:
    """The value of a constant that is a number."""
    if not isinstance(node, Constant):
        return None
    try:
        return Fraction(node.text.replace("−", "-"))
    except ValueError:
        return None


def _is_number(node: Node) -> bool:
    return isinstance(node, Call) and node.name in NUMBERS


def build(coefficient: Fraction, scalars: Iterable[Node], body: Node | None) -> Node:
    """The inverse of :func:`split`; a sum that is scaled by −1 alone changes the signs of its terms."""
    scalars = sorted(scalars, key=key)
    if body is None or _is_number(body):  # a number: one of its inner products and sums is the body
        scalars = sorted([*scalars, *(() if body is None else (body,))], key=key)
        body = next(filter(_is_number, scalars), None)
        if body is not None:
            scalars.remove(body)
    size = abs(coefficient)
    numbers = (*(() if size == 1 else (Constant(str(size)),)), *scalars)
    sign = -1 if coefficient < 0 else 1
    if not numbers and isinstance(body, Total):
        return total((sign * s, t) for s, t in zip(body.signs, body.terms, strict=True))
    if not numbers:
        whole = ONE if body is None else body
    elif body is None:
        whole = numbers[0] if len(numbers) == 1 else Product(numbers, ())
    else:
        whole = Product(numbers, body.factors if isinstance(body, Product) else (body,))
    return whole if sign > 0 else Total((-1,), (whole,))


def scaled(coefficient: Fraction, scalars: Iterable[Node], node: Node | None) -> Node:
    """coefficient · scalars · node, all in normal form; no node if it is a number."""
    given = [_as_number(s) for s in scalars]
    term = Term(ONCE, (), None) if node is None else split(node)
    for t in given:
        coefficient *= t.coefficient
    numbers = [*(s for t in given for s in t.scalars), *term.scalars]
    for s in [s for s in numbers if isinstance(s, Call) and s.name == "inverse"]:
        if s.args[0] in numbers:  # τ τ⁻¹
            numbers.remove(s)
            numbers.remove(s.args[0])
    return build(coefficient * term.coefficient, numbers, term.body)


def _as_number(node: Node) -> Term:
    """A number in normal form as factors."""
    term = split(node)
    value = _value(node)
    if value is not None:
        return Term(value, (), None)
    return Term(term.coefficient, (*term.scalars, *(() if term.body is None else (term.body,))), None)


def total(terms: Iterable[tuple[int, Node]]) -> Node:
    """± a ± b …, flat and in order."""
    flat = []
    for sign, node in terms:
        inside = zip(node.signs, node.terms, strict=True) if isinstance(node, Total) else ((1, node),)
        flat += [(sign * s, t) for s, t in inside]
    flat.sort(key=lambda item: (key(item[1]), -item[0]))
    if len(flat) == 1 and flat[0][0] > 0:
        return flat[0][1]
    return Total(tuple(s for s, _ in flat), tuple(t for _, t in flat))


def product(factors: Iterable[Node]) -> Node:
    """A B C …, flat, its numbers in front."""
    coefficient, scalars, bodies = _gathered(factors)
    flat = tuple(f for b in bodies for f in (b.factors if isinstance(b, Product) else (b,)))
    return build(coefficient, scalars, flat[0] if len(flat) == 1 else Product((), flat) if flat else None)


def hadamard(factors: Iterable[Node]) -> Node:
    """A ∘ B ∘ C …, flat and in order, its numbers in front."""
    coefficient, scalars, bodies = _gathered(factors)
    flat = tuple(f for b in bodies for f in (b.factors if isinstance(b, Hadamard) else (b,)))
    flat = tuple(sorted((f for f in flat if f != ONE), key=key)) or flat[:1]
    return build(coefficient, scalars, flat[0] if len(flat) == 1 else Hadamard(flat) if flat else None)


def _gathered(factors: Iterable[Node]) -> tuple[Fraction, list[Node], list[Node]]:
    coefficient = ONCE
    scalars: list[Node] = []
    bodies: list[Node] = []
    for factor in factors:
        term = split(factor)
        coefficient *= term.coefficient
        scalars += term.scalars
        bodies += [] if term.body is None else [term.body]
    return coefficient, scalars, bodies


def call(node: Call, args: tuple[Node, ...]) -> Node:
    """A call with other arguments; numbers come out of what is linear."""
    if node.name == "inverse":
        return inverse(*args)
    if node.name not in LINEAR:
        return Call(node.name, args, node.home)
    terms = [split(a) for a in args]
    coefficient = functools.reduce(lambda c, t: c * t.coefficient, terms, ONCE)
    scalars = [s for t in terms for s in t.scalars]
    return build(coefficient, scalars, Call(node.name, tuple(t.body or ONE for t in terms), node.home))


def inverse(node: Node) -> Node:
    """1 ⊘ A, factor by factor."""
    if isinstance(node, Hadamard):
        return hadamard(map(inverse, node.factors))
    if isinstance(node, Call) and node.name == "inverse":
        return node.args[0]
    return Call("inverse", (node,))


def transposed(node: Node) -> Node:
    """The transpose of a node in normal form, factor by factor."""
    match node:
        case Transpose(of):
            return of
        case Constant() | Call("inner" | "sum" | "tr"):
            return node
        case Total(signs, terms):
            return total(zip(signs, map(transposed, terms), strict=True))
        case Product(scalars, factors):
            return Product(scalars, tuple(transposed(f) for f in reversed(factors)))
        case Hadamard(factors):
            return hadamard(map(transposed, factors))
        case Call("inverse", (of,)):
            return inverse(transposed(of))
    return Transpose(node)


@functools.lru_cache(maxsize=2**16)
def normal(node: Node) -> Node:
    """The normal form."""
    match node:
        case Symbol("1"):  # a column of ones under its name
            return ONE
        case Item(_, name, True) | Symbol(name):
            return Symbol(name)
        case Quotient(top, bottom):
            return hadamard((normal(top), inverse(normal(bottom))))
    return rebuilt(node, normal)


def rebuilt(node: Node, of: Callable[[Node], Node]) -> Node:
    """The node in normal form, ``of`` applied to each of its parts."""
    match node:
        case Transpose(inside):
            return transposed(of(inside))
        case Total(signs, terms):
            return total(zip(signs, map(of, terms), strict=True))
        case Product(scalars, factors):
            body = product(map(of, factors)) if factors else None
            return scaled(ONCE, map(of, scalars), body)
        case Hadamard(factors):
            return hadamard(map(of, factors))
        case Call(_, args):
            return call(node, tuple(map(of, args)))
    return node


def parts(node: Node) -> Iterator[tuple[Node, Callable[[Node], Node]]]:
    """Each part of the node in normal form, with what puts another in its place."""
    match node:
        case Total(signs, terms):
            for i, (sign, term) in enumerate(zip(signs, terms, strict=True)):
                others = [p for j, p in enumerate(zip(signs, terms, strict=True)) if j != i]
                yield term, lambda new, s=sign, o=others: total([*o, (s, new)])  # type: ignore[misc]
        case Product(scalars, factors):
            for before, factor, after in _one_of(factors):
                yield factor, lambda new, b=before, a=after: scaled(ONCE, scalars, product([*b, new, *a]))  # type: ignore[misc]
            for before, scalar, after in _one_of(scalars):
                body = product(factors) if factors else None
                yield scalar, lambda new, b=before, a=after, body=body: scaled(ONCE, [*b, new, *a], body)  # type: ignore[misc]
        case Hadamard(factors):
            for before, factor, after in _one_of(factors):
                yield factor, lambda new, b=before, a=after: hadamard([*b, new, *a])  # type: ignore[misc]
        case Transpose(of):
            yield of, transposed
        case Call(_, args):
            for before, arg, after in _one_of(args):
                yield arg, lambda new, b=before, a=after: call(node, (*b, new, *a))  # type: ignore[misc]


def _one_of(items: tuple[Node, ...]) -> Iterator[tuple[tuple[Node, ...], Node, tuple[Node, ...]]]:
    """Each item between those before it and those after it."""
    for i, item in enumerate(items):
        yield items[:i], item, items[i + 1 :]


def substituted(node: Node, by: Mapping[Node, Node]) -> Node:
    """The node in normal form with parts of it replaced, ``by`` what is said there."""
    return by[node] if node in by else rebuilt(node, lambda part: substituted(part, by))


@functools.lru_cache(maxsize=2**16)
def expanded(node: Node) -> Node:
    """The normal form, multiplied out; equal terms are added up."""
    counts: dict[Node, Fraction] = {}
    for term in _terms(node):
        counts[_body(term)] = counts.get(_body(term), Fraction(0)) + term.coefficient
    sums = (split(scaled(c, (), None if b == ONE else b)) for b, c in counts.items() if c)
    signed = [(-1 if t.coefficient < 0 else 1, build(abs(t.coefficient), t.scalars, t.body)) for t in sums]
    return total(signed) if signed else Constant("0")


def width(node: Node) -> int:
    """How many terms a node has, multiplied out, before any are added up."""
    if isinstance(node, Total):
        return sum(map(width, node.terms))
    return math.prod(map(width, node.children()))


def _body(term: Term) -> Node:
    return build(ONCE, term.scalars, term.body)


def _terms(node: Node) -> list[Term]:
    """The terms of a node in normal form, multiplied out."""
    match node:
        case Total(signs, terms):
            inside = ((s, t) for s, of in zip(signs, terms, strict=True) for t in _terms(of))
            return [t._replace(coefficient=s * t.coefficient) for s, t in inside]
        case Product(scalars, factors):
            bodies = [product(map(_node, c)) for c in _choices(factors)] if factors else [None]
            return [split(scaled(ONCE, scalars, b)) for b in bodies]
        case Hadamard(factors):
            return [split(hadamard(map(_node, c))) for c in _choices(factors)]
        case Call(name, args) if name in LINEAR:
            return [split(call(node, tuple(map(_node, c)))) for c in _choices(args)]
        case Call(_, args):
            return [split(call(node, tuple(map(expanded, args))))]
    return [split(node)]


def _choices(factors: tuple[Node, ...]) -> Iterable[tuple[Term, ...]]:
    return itertools.product(*map(_terms, factors))


def _node(term: Term) -> Node:
    return build(*term)


@functools.lru_cache(maxsize=2**16)
def key(node: Node) -> str:
    """What nodes are put in order by."""
    return repr(node)
