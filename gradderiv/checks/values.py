"""Operations that have a meaning on numbers with a value (floats on a tape, duals, rounding), and none on others.

Comparisons read the value. Float to float casts do nothing, so that a function that computes in float32 inside is differentiated in float64; an ordinary
tensor that meets a tape of floats is widened to float64. ``max`` along an axis is ``amax`` and a position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gradderiv.checks.program import Program, answer
from gradderiv.numbers.dual import DualTensor
from gradderiv.numbers.number import Number
from gradderiv.numbers.rounding import RoundingTensor
from gradderiv.numbers.tape import TapeTensor

aten = torch.ops.aten

COMPARISONS = {
    getattr(getattr(aten, name), overload)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for overload in ("Scalar", "Tensor")
} | {aten.isnan.default, aten.isinf.default, aten.argmax.default, aten.argmin.default}


class Values(Program):
    """A :class:`~gradderiv.checks.program.Program` on numbers that have a value; see the module."""

    def on_numbers(self, func: Any, types: Any, args: Any, kwargs: Any, numbers: list[Number]) -> Any:
        if func in COMPARISONS and all(_has_value(x) for x in numbers):
            return func(*tree_map_only(Number, value_of, args), **kwargs)
        if func is aten.max.default:
            return self.amax(args[0], [], False)
        if func is aten.max.dim and isinstance(inner(args[0]), Number) and _has_value(args[0]):
            values = self.amax(args[0], [args[1]], *args[2:])
            return values, value_of(args[0]).argmax(args[1], *args[2:])
        if func is aten.amax.default:
            return self.amax(*args, **kwargs)
        if any(isinstance(x, TapeTensor) and not isinstance(inner(x), Number) for x in numbers):
            args, kwargs = _in_float64(func, args, kwargs)
        return answer(func, types, args, kwargs)

    def amax(self, x: Any, dim: Any = (), keepdim: bool = False) -> Any:
        """The maximum, with its derivative where that has a meaning, and as a constant shift where numbers have no order."""
        if isinstance(x, DualTensor) and _has_value(x):
            mask = value_of(x) == value_of(x).amax(dim, keepdim=True)
            count = mask.sum(dim or None, keepdim=True)
            tangent = (x.tangent * mask / count).sum(dim or None, keepdim=keepdim)
            return x.system.make(x.primal.amax(dim, keepdim=keepdim), tangent)  # type: ignore[attr-defined]
        if isinstance(x, TapeTensor) and not _has_value(x):
            return x.system.make(aten.amax.default(x.recorded.detach(), dim, keepdim))  # type: ignore[attr-defined]
        return answer(aten.amax.default, (), (x, dim, keepdim), {})


def inner(x: Number) -> Any:
    """What a tape records, or the Number itself."""
    return x.main if isinstance(x, TapeTensor) else x


def value_of(x: Any) -> Tensor:
    """The floats that a Number stands for."""
    while isinstance(x, Number):
        x = x.main
    return x.detach()


def _has_value(x: Any) -> bool:
    while isinstance(x, (TapeTensor, DualTensor, RoundingTensor)):
        x = x.main
    return not isinstance(x, Number)


def _in_float64(func: Any, args: Any, kwargs: Any) -> Any:
    def widen(x: Tensor) -> Tensor:
        narrow = x.dtype.is_floating_point and x.dtype != torch.float64 and not isinstance(x, Number)
        return x.double() if narrow else x

    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        kwargs = {**kwargs, "dtype": torch.float64}
    if func in (aten._softmax.default, aten._log_softmax.default):
        args = (*args[:2], False)
    return tree_map_only(Tensor, widen, args), tree_map_only(Tensor, widen, kwargs)
