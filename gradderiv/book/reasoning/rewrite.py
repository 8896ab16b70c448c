"""Whether an expression follows from another by the laws that are named: rewriting, up to what needs no reason.

A pattern is a node in normal form (:mod:`gradderiv.book.reasoning.algebra`) some of whose symbols stand for any expression. It is matched
wherever it fits: to neighbours in a product, to some factors of an entrywise product, to some terms of a sum.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gradderiv.book.reasoning.algebra import (
    hadamard,
    inverse,
    parts,
    product,
    rebuilt,
    scaled,
    split,
    total,
    transposed,
)
from gradderiv.numbers.nodes import Call, Hadamard, Node, Product, Symbol, Total, Transpose

LIMIT = 150  # expressions looked at before the search gives up
DEPTH = 4  # uses of laws in one step

Bindings = dict[str, Node]


class Equation(NamedTuple):
    """``left`` may be written for ``right`` and the reverse, and so may their transposes and what is left of them after division by
    a number; the symbols named ``free`` stand for anything."""

    left: Node
    right: Node
    free: frozenset[str] = frozenset()

    def at(self, node: Node) -> Iterator[Node]:
        """The results of using it on the whole of ``node``, which is in normal form."""
        present = names(node)
        for left, right, needed in _ways(self):
            if needed <= present:
                yield from _replaced(node, left, right, self.free)


@functools.lru_cache(maxsize=2**12)
def _ways(equation: Equation) -> list[tuple[Node, Node, frozenset[str]]]:
    """What may be replaced by what, and the names without which it cannot be there."""
    left, right, free = equation
    sides = [(left, right), (right, left)]
    if any(isinstance(split(side).body, (Product, Hadamard, Total)) for side in (left, right)):
        left, right = transposed(left), transposed(right)
        sides += [(left, right), (right, left)]
    return [
        (old, new, names(split(old).body or old) - free)
        for old, new in dict.fromkeys(sides)
        if old != new and names(new) & free <= names(old)
    ]


@functools.lru_cache(maxsize=2**16)
def names(node: Node) -> frozenset[str]:
    """The names of symbols and of functions in an expression."""
    own = {node.name} if isinstance(node, (Symbol, Call)) else set()
    return frozenset(own).union(*map(names, node.children()))


def _replaced(node: Node, left: Node, right: Node, free: frozenset[str]) -> Iterator[Node]:
    term, pattern = split(node), split(left)
    if term.body is None or pattern.body is None:
        return
    ratio = term.coefficient / pattern.coefficient
    numbers = list(_scalars(pattern.scalars, term.scalars, {}, free))
    if not numbers and not any(names(p) & free for p in pattern.scalars):
        numbers = [({}, (*term.scalars, *map(inverse, pattern.scalars)))]
    for bound, scalars in numbers:
        for bindings, around in _somewhere(pattern.body, term.body, bound, free):
            yield scaled(ratio, scalars, around(instance(right, bindings, free)))


def _scalars(
    pattern: tuple[Node, ...], given: tuple[Node, ...], bound: Bindings, free: frozenset[str]
) -> Iterator[tuple[Bindings, tuple[Node, ...]]]:
    """Each way to find the pattern's numbers among those given, with the ones that are left."""
    if not pattern:
        yield bound, given
        return
    for i, number in enumerate(given):
        for bindings in matches(pattern[0], number, bound, free):
            yield from _scalars(pattern[1:], given[:i] + given[i + 1 :], bindings, free)


def _somewhere(
    pattern: Node, node: Node, bound: Bindings, free: frozenset[str]
) -> Iterator[tuple[Bindings, Callable[[Node], Node]]]:
    """Matches of the pattern to the node or to a part of it of the same kind, with what puts a result in the part's place."""
    for bindings in matches(pattern, node, bound, free):
        yield bindings, lambda new: new
    match pattern, node:
        case Product(), Product(_, factors):
            for i, j in itertools.combinations(range(len(factors) + 1), 2):
                if 2 <= j - i < len(factors):
                    before, after = factors[:i], factors[j:]
                    for bindings in matches(pattern, Product((), factors[i:j]), bound, free):
                        yield bindings, lambda new, b=before, a=after: product([*b, new, *a])  # type: ignore[misc]
        case Hadamard(), Hadamard(factors):
            for chosen, rest in _divisions(factors):
                for bindings in matches(pattern, Hadamard(chosen), bound, free):
                    yield bindings, lambda new, r=rest: hadamard([*r, new])  # type: ignore[misc]
        case Total(), Total(signs, terms):
            for chosen, rest in _divisions(tuple(zip(signs, terms, strict=True))):
                for bindings in matches(pattern, total(chosen), bound, free):
                    yield bindings, lambda new, r=rest: total([*r, (1, new)])  # type: ignore[misc]


def _divisions(items: tuple) -> Iterator[tuple[tuple, tuple]]:  # type: ignore[type-arg]
    """A part of two or more of the items, and the others, of which there is at least one."""
    for size in range(2, len(items)):
        for chosen in itertools.combinations(range(len(items)), size):
            yield (
                tuple(items[i] for i in chosen),
                tuple(x for i, x in enumerate(items) if i not in chosen),
            )


def matches(pattern: Node, node: Node, bound: Bindings, free: frozenset[str]) -> Iterator[Bindings]:
    """Every way to choose the free symbols so that the pattern becomes the node; both are in normal form."""
    match pattern:
        case Symbol(name) if name in free:
            if bound.get(name, node) == node:
                yield {**bound, name: node}
        case Transpose(Symbol(name)) if name in free:
            yield from matches(pattern.of, transposed(node), bound, free)
        case Product():
            form, term = split(pattern), split(node)
            if form.body is None or term.body is None or form.coefficient != term.coefficient:
                return
            for bindings, left in _scalars(form.scalars, term.scalars, bound, free):
                if not left:
                    yield from _in_order(_factors(form.body), _factors(term.body), bindings, free)
        case Hadamard(factors) if isinstance(node, Hadamard):
            yield from _in_any_order(factors, node.factors, bound, free, hadamard)
        case Total(signs, terms) if isinstance(node, Total):
            signed = [(s, t) for s, t in zip(node.signs, node.terms, strict=True)]
            yield from _in_a_sum(list(zip(signs, terms, strict=True)), signed, bound, free)
        case Call(name, args) if isinstance(node, Call) and (name, len(args)) == (node.name, len(node.args)):
            yield from _each(args, node.args, bound, free)
        case _ if pattern == node and not names(pattern) & free:
            yield bound


def _factors(body: Node) -> tuple[Node, ...]:
    return body.factors if isinstance(body, Product) else (body,)


def _each(
    patterns: tuple[Node, ...], nodes: tuple[Node, ...], bound: Bindings, free: frozenset[str]
) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for bindings in matches(patterns[0], nodes[0], bound, free):
        yield from _each(patterns[1:], nodes[1:], bindings, free)


def _in_order(
    patterns: tuple[Node, ...], factors: tuple[Node, ...], bound: Bindings, free: frozenset[str]
) -> Iterator[Bindings]:
    """Each pattern to one or more neighbours of a product."""
    if not patterns or not factors:
        if not patterns and not factors:
            yield bound
        return
    for size in range(1, len(factors) - len(patterns) + 2):
        for bindings in matches(patterns[0], product(factors[:size]), bound, free):
            yield from _in_order(patterns[1:], factors[size:], bindings, free)


def _in_any_order(
    patterns: tuple[Node, ...],
    factors: tuple[Node, ...],
    bound: Bindings,
    free: frozenset[str],
    join: Callable[[tuple[Node, ...]], Node],
) -> Iterator[Bindings]:
    """Each pattern to one or more factors of an entrywise product."""
    if not patterns or not factors:
        if not patterns and not factors:
            yield bound
        return
    indices = range(len(factors))
    sizes = range(1, len(factors) - len(patterns) + 2) if len(patterns) > 1 else (len(factors),)
    for size in sizes:
        for chosen in itertools.combinations(indices, size):
            part = join(tuple(factors[i] for i in chosen))
            rest = tuple(factors[i] for i in indices if i not in chosen)
            for bindings in matches(patterns[0], part, bound, free):
                yield from _in_any_order(patterns[1:], rest, bindings, free, join)


def _in_a_sum(
    patterns: list[tuple[int, Node]], terms: list[tuple[int, Node]], bound: Bindings, free: frozenset[str]
) -> Iterator[Bindings]:
    """Each pattern to one or more terms of a sum, with their signs."""
    if not patterns or not terms:
        if not patterns and not terms:
            yield bound
        return
    sign, pattern = patterns[0]
    indices = range(len(terms))
    sizes = range(1, len(terms) - len(patterns) + 2) if len(patterns) > 1 else (len(terms),)
    for size in sizes:
        for chosen in itertools.combinations(indices, size):
            part = total((sign * terms[i][0], terms[i][1]) for i in chosen)
            rest = [t for i, t in enumerate(terms) if i not in chosen]
            for bindings in matches(pattern, part, bound, free):
                yield from _in_a_sum(patterns[1:], rest, bindings, free)


def instance(pattern: Node, bindings: Bindings, free: frozenset[str]) -> Node:
    """The pattern with what its free symbols stand for."""

    def of(node: Node) -> Node:
        if isinstance(node, Symbol):
            return bindings[node.name] if node.name in free else node
        return rebuilt(node, of)

    return of(pattern)


def everywhere(node: Node, equation: Equation) -> Iterator[Node]:
    """The results of one use of the equation, on the node or on any part of it."""
    yield from equation.at(node)
    for part, put in parts(node):
        yield from map(put, everywhere(part, equation))


@functools.lru_cache(maxsize=2**13)
def _all_results(node: Node, equation: Equation) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(everywhere(node, equation)))


def unchanged(node: Node) -> Node:
    return node


@functools.lru_cache(maxsize=2**14)
def follows(
    before: Node,
    after: Node,
    laws: tuple[tuple[Equation, ...], ...],
    form: Callable[[Node], Node] = unchanged,
    limit: int = LIMIT,
) -> bool:
    """Whether ``after`` is reached from ``before`` by using each of the laws at least once, and nothing else.

    Args:
        before, after: in normal form.
        laws: each a tuple of equations of which any will do.
        form: brings expressions into the form in which they are compared.
        limit: how many expressions are looked at.
    """
    start, goal, everything = form(before), form(after), frozenset(range(len(laws)))
    seen = {(start, frozenset[int]())}
    queue = deque([(start, frozenset[int](), 0)])
    while queue and len(seen) < limit:
        node, used, depth = queue.popleft()
        if depth == DEPTH:
            continue
        for i, law in enumerate(laws):
            now = used | {i}
            for equation in law:
                for new in _all_results(node, equation):
                    state = form(new), now
                    if state == (goal, everything):
                        return True
                    if len(seen) > 20 * limit:
                        return False
                    if state not in seen:
                        seen.add(state)
                        queue.append((*state, depth + 1))
    return False
