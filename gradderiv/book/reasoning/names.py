"""One name, one matrix: in a derivation no name stands for two of one shape; a family such as Π_1 has one of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from gradderiv.book.named import Named, differential
from gradderiv.errors import InputError, message
from gradderiv.numbers.nodes import Item, Node, Symbol
from gradderiv.numbers.spelling import spell


def require_one_matrix(parts: Iterable[Named], meant: Mapping[str, Node]) -> None:
    """No name in the expressions has two values, and none that was given to one formula was made of another.

    Args:
        meant: the formulas that names are said to have been given to.

    Raises:
        InputError: a name stands for two matrices.
    """
    found: dict[tuple[object, ...], Named] = {}
    for x in parts:
        for leaf in leaves(x):
            name = _name(leaf.node)
            other = found.setdefault((name, *leaf.shape), leaf)
            if _differ(leaf, other) or (
                name == "1" and any(_unequal(p, torch.ones_like(p)) for p in leaf.points)
            ):
                _refuse(name, "two matrices have this name, with different values")
            if name in meant and _meaning(leaf.node) != (meant[name],):
                _refuse(name, f"one of them was given to {spell(meant[name])}")


def leaves(x: Named) -> Iterator[Named]:
    """The named matrices that an expression is made of, as often as they stand there."""
    alias = isinstance(x.node, Symbol) and x.made_by not in (None, differential)  # as b, unsqueezed
    if not x.is_formula and not alias:
        yield x
        return
    for operand in x.operands:
        for part in operand if isinstance(operand, (tuple, list)) else (operand,):
            if isinstance(part, Named):
                yield from leaves(part)


def _name(node: Node) -> str:
    return node.name if isinstance(node, Symbol) or (isinstance(node, Item) and node.told) else spell(node)


def _meaning(node: Node) -> tuple[Node, ...]:
    return node.meaning if isinstance(node, Symbol) else (node,)


def _differ(a: Named, b: Named) -> bool:
    pairs = [(x, y) for x, y in zip(a.points, b.points, strict=True) if x is not y]
    if not pairs:
        return False
    return any(
        getattr(x, "system", None) is not getattr(y, "system", None) or _unequal(x, y) for x, y in pairs
    )


def _unequal(x: Any, y: Any) -> bool:
    system = getattr(x, "system", None)  # a mask has none
    return bool((x != y if system is None else system.differs(x, y)).any())


def _refuse(name: str, cause: str) -> None:
    asked = "a name stands for one matrix"
    raise InputError(
        message(asked, f"{spell(Symbol(name))}, for two", cause, "choose another name for one of them")
    )
