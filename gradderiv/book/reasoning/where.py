"""Where two sides of a false line differ: the entry, or the entry of what multiplies the direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradderiv.book.named import Named
from gradderiv.book.reasoning.slips import leaves_of
from gradderiv.numbers.nodes import Item, Symbol
from gradderiv.numbers.spelling import spell


def where(before: Named, now: Named) -> str:
    """The first entry that differs. Two numbers that depend on one direction Ẋ are compared by what multiplies it."""
    direction = _direction(before, now) if before.dim() == 0 else None
    if direction is not None:
        of = f" of what multiplies {spell(direction.node)}"
        found = _first([_multiplying(x, direction) for x in (before, now)], of)
        if found:
            return found
    return _first([before.points, now.points], "")


def _first(sides: Sequence[Sequence[Any]], of: str) -> str:
    """The first entry that differs under one of the shifts, in words; nothing if none does."""
    for a, b in zip(*sides, strict=True):
        wrong = a.system.differs(a, b)
        if not bool(wrong.any()):
            continue
        index = tuple(int(i) for i in wrong.nonzero()[0])
        x, y = (int(a.system.lane(t, 0)[index]) for t in (a, b))
        values = f"{x} and {y} mod {a.system.primes[0]}"
        if not index:
            return f"as numbers: {values}"
        return f"in entry {list(index)}{of}, {int(wrong.sum())} of {wrong.numel()} entries: {values}"
    return ""


def _direction(before: Named, now: Named) -> Named | None:
    """The one tangent on which both sides depend, if there is one, and no other."""
    found = [{n: x for n, x in leaves_of(side).items() if _is_tangent(x)} for side in (before, now)]
    if len(found[0]) == 1 and found[0].keys() == found[1].keys():
        ((direction,), (other,)) = (side.values() for side in found)
        return direction if direction.dim() == 2 and direction.shape == other.shape else None
    return None


def _is_tangent(x: Named) -> bool:
    return isinstance(x.node, (Symbol, Item)) and x.node.name.endswith("_dot")


def _multiplying(x: Named, direction: Named) -> list[Any]:
    """The coefficients of a number that is linear in the direction: its derivatives, at each point."""
    out = []
    for face, point in enumerate(direction.points, 1):
        with torch.enable_grad():
            moving = point.clone().requires_grad_()
            (found,) = torch.autograd.grad(_value(x, direction, moving, face), moving)
        out.append(found)
    return out


def _value(x: Named, direction: Named, moving: Any, face: int) -> Any:
    """One face of the expression, with another value for the direction."""
    if not x.is_formula:
        return moving if x.node == direction.node else x.faces[face]
    operands = (_value(o, direction, moving, face) if isinstance(o, Named) else o for o in x.operands)
    return x.made_by(*operands, **x.options)
