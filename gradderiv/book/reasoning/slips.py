"""A guess at the slip in a false line: the one small change to its expression that makes it true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradderiv.book.named import Named
from gradderiv.errors import GradderivError
from gradderiv.numbers.lanes import DrawAgain
from gradderiv.numbers.spelling import spell

Change = Callable[[], Tensor]  # the value at one point
MATMUL = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
MUL = {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__}
ADD, SUB = (
    {torch.add, torch.Tensor.add, torch.Tensor.__add__},
    {torch.sub, torch.Tensor.sub, torch.Tensor.__sub__},
)


def slip(before: Named, now: Named, around: Sequence[Named] = ()) -> str:
    """In words, what was probably done wrong in ``now``, which should equal ``before``; nothing if no small change mends it.

    Args:
        around: expressions whose matrices may be missing.
    """
    leaves: dict[str, Named] = {}
    for x in (before, now, *around):
        leaves |= leaves_of(x)
    for words, changed in _changes(now, list(leaves.values())):
        try:
            mended = changed()
        except (RuntimeError, ValueError, TypeError, AttributeError, GradderivError, DrawAgain):
            continue  # the change does not fit the shapes
        fits = (
            isinstance(mended, Tensor) and mended.shape == before.shape
        )  # what is left of 2 X may be a number
        if fits and _equal(before, mended):
            return words
    return ""


def _equal(a: Named, value: Tensor) -> bool:
    x = a.points[0]
    return not bool(x.system.differs(x, value).any())


def leaves_of(x: Named) -> dict[str, Named]:
    """The named matrices that an expression is made of."""
    if not x.is_formula:
        return {spell(x.node): x}
    return {k: v for o in x.operands if isinstance(o, Named) for k, v in leaves_of(o).items()}


def _changes(x: Named, leaves: list[Named]) -> Iterator[tuple[str, Change]]:
    """Every small change to the expression or to one part of it, in words, and how to make it."""
    name, value = spell(x.node), x.points[0]
    if x.dim() == 2:
        yield f"is {name} to be transposed?", lambda: value.mT
    yield f"has {name} the wrong sign?", lambda: -value
    for leaf in leaves:
        yield from _missing(x, leaf)
    if x.dim() == 2:
        yield f"is the row sum of {name} missing?", lambda: value.sum(-1, keepdim=True)
    if not x.is_formula:
        return
    yield from _own(x)
    for i, part in enumerate(x.operands):
        if isinstance(part, Named):
            for words, changed in _changes(part, leaves):
                yield words, partial(_with, x, i, changed)


def _missing(x: Named, leaf: Named) -> Iterator[tuple[str, Change]]:
    """The leaf as a factor of x, or as one too many."""
    name, factor = spell(x.node), spell(leaf.node)
    value, other = x.points[0], leaf.points[0]
    if leaf.dim() == 0:
        yield f"is the factor {factor} missing?", lambda: other * value
        yield f"is the factor {factor} one too many?", lambda: value / other
    elif leaf.dim() == 2 == x.dim() and leaf.shape[0] == leaf.shape[1]:
        words = "is the row sum of {} missing?" if factor == "𝓘" else "is {} to be multiplied by {}?"
        yield words.format(name, factor), lambda: value @ other
    elif leaf.shape == x.shape and leaf is not x:
        yield f"is {name} to be multiplied by {factor}, entry by entry?", lambda: value * other


def _own(x: Named) -> Iterator[tuple[str, Change]]:
    """The changes that the operation itself invites."""
    ops = [_point(o) for o in x.operands]
    a, b = (*map(_words, x.operands), "", "")[:2]
    if x.made_by in MATMUL:
        yield f"are {a} and {b} in the wrong order?", lambda: ops[1] @ ops[0]
        yield f"are {a} and {b} in the wrong order, and to be transposed?", lambda: ops[1].mT @ ops[0].mT
    elif x.made_by in ADD | SUB:
        opposite = torch.sub if x.made_by in ADD else torch.add
        yield f"is {a} one too many?", lambda: ops[1]
        yield f"is {b} one too many?", lambda: ops[0]
        yield f"has {b} the wrong sign?", lambda: opposite(ops[0], ops[1])
    elif x.made_by in MUL:
        yield f"is the factor {a} one too many?", lambda: ops[1]
        yield f"is the factor {b} one too many?", lambda: ops[0]


def _words(operand: Any) -> str:
    return spell(operand.node) if isinstance(operand, Named) else str(operand)


def _with(x: Named, i: int, changed: Change) -> Any:
    """The value of the expression with a changed operand."""
    operands = [changed() if k == i else _point(o) for k, o in enumerate(x.operands)]
    return x.made_by(*operands, **x.options)


def _point(operand: Any) -> Any:
    return operand.points[0] if isinstance(operand, Named) else operand
