"""The product, quotient and chain rules on a formula: the tangent of an expression, as an expression."""

from __future__ import annotations

from gradderiv.book.reasoning.algebra import LINEAR, hadamard, inverse, parts, total
from gradderiv.numbers.nodes import Call, Node, Symbol, Total


def derivative(node: Node, moving: frozenset[str]) -> Node | None:
    """The tangent of a node in normal form along those of its symbols that move, each x along x_dot; None if none does.

    Raises:
        KeyError: a function of what moves has no rule here; its name.
    """
    if isinstance(node, Symbol):
        return Symbol(f"{node.name}_dot") if node.name in moving else None
    if isinstance(node, Total):
        dots = ((sign, derivative(term, moving)) for sign, term in zip(node.signs, node.terms, strict=True))
        terms = [(sign, dot) for sign, dot in dots if dot is not None]
    elif isinstance(node, Call) and node.name not in LINEAR:
        terms = _of_function(node, moving)
    else:  # linear in each of its parts: one at a time moves
        moved = ((put, derivative(part, moving)) for part, put in parts(node))
        terms = [(1, put(dot)) for put, dot in moved if dot is not None]
    return total(terms) if terms else None


def _of_function(node: Call, moving: frozenset[str]) -> list[tuple[int, Node]]:
    dots = [derivative(a, moving) for a in node.args]
    if all(dot is None for dot in dots):
        return []
    if len(dots) != 1 or node.name not in ("exp", "log", "inverse"):
        raise KeyError(node.name)
    (a,), (dot,) = node.args, dots
    assert dot is not None
    if node.name == "exp":
        return [(1, hadamard((node, dot)))]
    if node.name == "log":
        return [(1, hadamard((dot, inverse(a))))]
    return [(-1, hadamard((node, node, dot)))]
