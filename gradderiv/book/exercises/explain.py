"""What is wrong with a result: a listed mistake, if it is exactly that; else what one simple slip explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradderiv.book.exercises.problems import Sizes, Values
from gradderiv.checks.diagnose import Layout, place
from gradderiv.numbers.field import Field

HEADS = ("n_heads", "h")


class Compared(NamedTuple):
    """A result beside the true one.

    Attributes:
        values: every true value of the problem.
        fault: why there is no result to compare; then ``value`` is the true one, and nothing else counts.
    """

    name: str
    value: Tensor
    right: Tensor
    field: Field
    values: Values
    fault: str = ""
    equal: bool = False


def explain(c: Compared, others: Mapping[str, Tensor], sizes: Sizes) -> str:
    """What is wrong, in words; ``others`` is what the listed mistakes return, by their words."""
    if c.fault:
        return c.fault
    for words, other in others.items():
        if not _differ(c.field, c.value, other) and _differ(c.field, other, c.right):
            return words
    wrong = c.field.differs(c.value, c.right)
    heads = next((sizes[name] for name in HEADS if name in sizes), None)
    where = place(wrong, Layout(n_heads=heads))
    at = ", ".join(f"{name} = {size}" for name, size in sizes.items())
    count = f"{int(wrong.sum())} of {wrong.numel()} entries are wrong{where} (at {at})"
    return f"{count}.\n{_slip(c, c.field, c.value, c.right)}".rstrip()


def _slip(c: Compared, field: Field, value: Tensor, right: Tensor) -> str:
    """One slip that explains every entry, or "" if none is found."""
    if not _differ(field, value, torch.zeros_like(value)):
        return "Every entry is 0."
    if factor := field.common_factor(value, right):
        return f"Every entry is {factor} × the right one{': a sign?' if factor == '-1' else '.'}"
    for name, number in c.values.items():
        if isinstance(number, Tensor) and number.dim() == 0 and number.dtype.is_floating_point:
            if not _differ(field, value, number * right):
                return f"Every entry is {name} × the right one: {name} is there twice, or should not be?"
            if not _differ(field, number * value, right):
                return f"Every entry is the right one without the factor {name}."
    if value.dim() == 2 and value.shape[0] == value.shape[1] and not _differ(field, value.mT, right):
        return "It is the transpose of the right one."
    for name, other in c.values.items():
        if name != c.name and isinstance(other, Tensor) and other.shape == right.shape and _is_number(other):
            if not _differ(field, value, other):
                return f"It is {name}, not {c.name}."
            if not _differ(field, value, right - other) or not _differ(field, value, right + other):
                return f"It differs from the right one by {name}."
    return ""


def _is_number(x: Any) -> bool:
    return bool(x.dtype.is_floating_point)


def _differ(field: Field, x: Tensor, y: Tensor) -> bool:
    return bool(field.differs(x, y).any())
