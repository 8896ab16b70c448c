"""Comparisons, on numbers that have no order.

With −∞, and with a structural zero, a comparison has an answer. Any other is a *gate*: a number c, drawn from what is compared, that stands for the 0 or 1 that a
float would answer; x > y, and all others are made of it: x ≥ y is ~(y > x). ``where(c, x, y)`` is y + c (x − y), ``~c`` is 1 − c; an identity that holds for all c holds for 0 and 1. So relu, abs and clamp are exact. A program
that asks for the truth of a gate is refused.

The place of the maximum of a row may be anything, since nothing may depend on it: it is a number of integer type that can be carried along, and used where autograd puts
the derivative of the maximum, which is zero. Any other use is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import arithmetic, aten, cast, lift, no_meaning, pair
from gradderiv.numbers.structure import where

HIDDEN = -1e4  # a constant as low as this stands for −∞, as where a running maximum begins


@arithmetic(aten.eq.Scalar)
def _eq(system: System, x: Number, value: Any) -> Tensor:
    if value == -torch.inf:
        return system.is_minus_infinity(x)
    if value == 0:
        return system.is_zero(x)
    if value == torch.inf:  # which no number is
        return _isnan(system, x)
    raise no_meaning(aten.eq.Scalar, f"compares values with {value}")


@arithmetic(aten.ne.Scalar)
def _ne(system: System, x: Number, value: Any) -> Tensor:
    return ~_eq(system, x, value)


@arithmetic(aten.isneginf.default, aten.isinf.default)
def _isinf(system: System, x: Number) -> Tensor:
    return system.is_minus_infinity(x)


@arithmetic(aten.isnan.default, aten.isposinf.default)
def _isnan(system: System, x: Number) -> Tensor:
    return torch.zeros(x.shape, dtype=torch.bool, device=x.device)


@arithmetic(aten.isfinite.default)
def _isfinite(system: System, x: Number) -> Tensor:
    return ~system.is_minus_infinity(x)


@arithmetic(aten.nan_to_num.default)
def _nan_to_num(system: System, x: Number, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Tensor:
    if bool(system.is_minus_infinity(x).any()):
        raise no_meaning(aten.nan_to_num.default, "makes a finite number of −∞")
    return x.clone()


# ---------------------------------------------------------------- gates


def _difference(system: System, x: Any, y: Any) -> Number:
    like = x if isinstance(x, Number) else y
    return system.sub(lift(system, x, like), lift(system, y, like))


@arithmetic(aten.gt.Tensor, aten.gt.Scalar)
def _greater(system: System, x: Any, y: Any) -> Number:
    return system.positive(_difference(system, x, y))


@arithmetic(aten.lt.Tensor, aten.lt.Scalar)
def _less(system: System, x: Any, y: Any) -> Number:
    return _greater(system, y, x)


@arithmetic(aten.ge.Tensor, aten.ge.Scalar)
def _at_least(system: System, x: Any, y: Any) -> Number:
    return _not(system, _less(system, x, y))


@arithmetic(aten.le.Tensor, aten.le.Scalar)
def _at_most(system: System, x: Any, y: Any) -> Number:
    return _not(system, _greater(system, x, y))


@arithmetic(aten.eq.Tensor)
def _equal(system: System, x: Any, y: Any) -> Any:
    return system.zero(_difference(system, x, y)) if _shifted(system, x, y) else _same(system, x, y)


@arithmetic(aten.ne.Tensor)
def _unequal(system: System, x: Any, y: Any) -> Any:
    return _not(system, _equal(system, x, y)) if _shifted(system, x, y) else ~_same(system, x, y)


def _shifted(system: System, *numbers: Any) -> bool:
    """Whether a maximum is among them, to which any entry may be equal."""
    return any(isinstance(x, Number) and system.is_shift(x) for x in numbers)


def _same(system: System, x: Any, y: Any) -> Tensor:
    return system.is_zero(_difference(system, x, y))


@arithmetic(aten.bitwise_not.default, aten.logical_not.default)
def _not(system: System, c: Number) -> Number:
    return _as_gate(system, system.sub(lift(system, 1, c), c))


@arithmetic(aten.bitwise_and.Tensor, aten.logical_and.default)
def _and(system: System, c: Any, d: Any) -> Number:
    return _as_gate(system, system.mul(*pair(system, c, d)))


@arithmetic(aten.bitwise_or.Tensor, aten.logical_or.default)
def _or(system: System, c: Any, d: Any) -> Number:
    c, d = pair(system, c, d)
    return _as_gate(system, system.sub(system.add(c, d), system.mul(c, d)))


def _as_gate(system: System, c: Number) -> Number:
    if not system.gates:
        raise no_meaning(aten.logical_not.default)
    return system.tensor(system, c.cell, torch.bool, c)


def chosen(system: System, c: Number, x: Number, y: Number) -> Number:
    """x where the gate is open, else y."""
    known = system.truth(c)
    if known is not None:
        return where(system, known, x, y)
    return system.add(y, system.mul(c, system.sub(x, y)))


@arithmetic(aten.where.self)
def _where(system: System, condition: Any, x: Any, y: Any) -> Number:
    if isinstance(condition, Number):
        if not system.gates or condition.dtype != torch.bool:
            raise no_meaning(aten.where.self, "asks for the truth of a number")
        return chosen(system, lift(system, condition), *pair(system, x, y))
    return where(system, condition, *pair(system, x, y))


@arithmetic(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(system: System, x: Any, mask: Any, value: Any) -> Number:
    x, fill = pair(system, x, value)
    if isinstance(mask, Number) and system.gates:
        return chosen(system, lift(system, mask), fill, x)
    return where(system, mask, fill, x)


@arithmetic(aten.sgn.default, aten.sign.default)
def _sign(system: System, x: Number) -> Number:
    c = system.positive(x)
    return cast(system.sub(system.add(c, c), lift(system, 1, c)), x.dtype)


@arithmetic(aten.abs.default)
def _abs(system: System, x: Number) -> Number:
    return system.mul(x, _sign(system, x))


@arithmetic(aten.relu.default)
def _relu(system: System, x: Number) -> Number:
    c = system.positive(x)
    out = system.mul(x, c)
    system.remember(out, c)
    return out


@arithmetic(aten.threshold_backward.default)
def _threshold_backward(system: System, g: Any, y: Any, threshold: Any) -> Number:
    if threshold != 0 or not isinstance(y, Number):
        raise no_meaning(aten.threshold_backward.default, f"with the threshold {threshold}")
    return system.mul(lift(system, g, y), system.remembered(y))


@arithmetic(aten.clamp_min.default, aten.clamp_min.Tensor)
def _clamp_min(system: System, x: Any, low: Any) -> Number:
    x, low = pair(system, x, low)
    return chosen(system, system.positive(system.sub(x, low)), x, low)


@arithmetic(aten.clamp_max.default, aten.clamp_max.Tensor)
def _clamp_max(system: System, x: Any, high: Any) -> Number:
    x, high = pair(system, x, high)
    return chosen(system, system.positive(system.sub(x, high)), high, x)


@arithmetic(aten.clamp.default, aten.clamp.Tensor)
def _clamp(system: System, x: Any, low: Any = None, high: Any = None) -> Number:
    out = x if low is None else _clamp_min(system, x, low)
    if high is None:
        return out
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low <= high:
        top = lift(system, high, x)
        return chosen(system, system.positive(system.sub(x, top)), top, out)
    return _clamp_max(system, out, high)


# ---------------------------------------------------------------- the maximum of a row


@arithmetic(aten.max.dim)
def _max(system: System, x: Number, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axis = dim % max(x.dim(), 1)
    return system.amax(x, (axis,) if x.dim() else (), keepdim), system.place(x, dim, keepdim)


@arithmetic(aten.max.default)
def _max_of_all(system: System, x: Number) -> Number:
    return system.amax(x, tuple(range(x.dim())), False)


@arithmetic(aten.argmax.default)
def _argmax(system: System, x: Number, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return system.place(x, dim, keepdim)


@arithmetic(aten.maximum.default)
def _maximum(system: System, x: Any, y: Any) -> Number:
    """Of two numbers a shift, as in an online softmax; of a number and an ordinary finite tensor a clamp."""
    for number, floor in ((x, y), (y, x)):
        if (
            system.gates
            and isinstance(floor, Tensor)
            and not isinstance(floor, Number)
            and bool((floor > HIDDEN).all())
        ):
            return _clamp_min(system, number, floor)
    return system.maximum(*pair(system, x, y))
