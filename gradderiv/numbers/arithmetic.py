"""Operations that compute, each by the few that every number system answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import arithmetic, aten, cast, is_bool, lift, no_meaning, pair
from gradderiv.numbers.smooth import half_power
from gradderiv.numbers.structure import broadcast, number, where

WHOLE = {k for k in range(-8, 9) if k}  # factors that are written out as sums


def _dims(x: Number, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(x.dim()))
    dims = dim if isinstance(dim, (list, tuple)) else (dim,)
    return tuple(d % max(x.dim(), 1) for d in dims)


@arithmetic(aten.add.Tensor, aten.add.Scalar)
def _add(system: System, x: Any, y: Any, alpha: Any = 1) -> Number:
    x, y = pair(system, x, y)
    if alpha != 1:
        y = system.mul(y, lift(system, alpha, y))
    return system.add(x, y)


@arithmetic(aten.sub.Tensor, aten.sub.Scalar)
def _sub(system: System, x: Any, y: Any, alpha: Any = 1) -> Number:
    x, y = pair(system, x, y)
    if alpha != 1:
        y = system.mul(y, lift(system, alpha, y))
    return system.sub(x, y)


@arithmetic(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(system: System, x: Any, y: Any, alpha: Any = 1) -> Number:
    return _sub(system, y, x if alpha == 1 else _mul(system, x, alpha))


@arithmetic(aten.neg.default)
def _neg(system: System, x: Number) -> Number:
    return system.neg(x)


@arithmetic(aten.mul.Tensor, aten.mul.Scalar)
def _mul(system: System, x: Any, y: Any) -> Number:
    if is_bool(x):
        x, y = y, x
    if is_bool(y):  # a mask: keep or clear
        if bool(system.is_minus_infinity(x).any()):
            raise no_meaning(aten.mul.Tensor, "multiplies −∞ by a mask, and 0·(−∞) is NaN,")
        x = broadcast(x, torch.broadcast_shapes(x.shape, y.shape))
        return where(system, y, x, lift(system, 0, x))
    for number_, count in ((x, y), (y, x)):
        if (
            isinstance(number_, Number)
            and isinstance(count, (int, float))
            and count in WHOLE
            and system.has_log(number_)
        ):
            return _times(system, number_, int(count))
    return system.mul(*pair(system, x, y))


def _times(system: System, x: Number, n: int) -> Number:
    """n x as a sum, which a number a + log r has too."""
    if n < 0:
        return _times(system, system.neg(x), -n)
    out = x
    for _ in range(n - 1):
        out = system.add(out, x)
    return out


@arithmetic(aten.div.Tensor, aten.div.Scalar)
def _div(system: System, x: Any, y: Any) -> Number:
    x, y = pair(system, x, y)
    return system.div(x, y)


@arithmetic(aten.reciprocal.default)
def _reciprocal(system: System, x: Number) -> Number:
    return system.reciprocal(x)


@arithmetic(aten.square.default)
def _square(system: System, x: Number) -> Number:
    return system.mul(x, x)


@arithmetic(aten.pow.Tensor_Scalar)
def _pow(system: System, x: Number, exponent: Any) -> Number:
    if exponent != int(exponent):
        if 2 * exponent != int(2 * exponent):
            raise no_meaning(aten.pow.Tensor_Scalar, f"with the exponent {exponent}")
        return system.smooth(half_power(int(2 * exponent)), x)
    if exponent == 0:
        return system.born(torch.ones(x.shape, dtype=x.dtype, device=x.device), x)
    base = x if exponent > 0 else system.reciprocal(x)
    out = base
    for _ in range(abs(int(exponent)) - 1):
        out = system.mul(out, base)
    return out


@arithmetic(aten.addcmul.default)
def _addcmul(system: System, c: Any, x: Any, y: Any, *, value: Any = 1) -> Any:
    return c + (x * y if value == 1 else x * y * value)


@arithmetic(aten.addcdiv.default)
def _addcdiv(system: System, c: Any, x: Any, y: Any, *, value: Any = 1) -> Any:
    return c + (x / y if value == 1 else x / y * value)


@arithmetic(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(system: System, x: Any, y: Any, weight: Any) -> Any:
    return x + (y - x) * weight


@arithmetic(aten.trace.default)
def _trace(system: System, x: Number) -> Tensor:
    return x.diagonal().sum()


@arithmetic(aten.mm.default, aten.bmm.default)
def _matmul(system: System, x: Any, y: Any) -> Number:
    return system.matmul(*pair(system, x, y))


@arithmetic(aten.mv.default)
def _mv(system: System, x: Any, y: Any) -> Tensor:
    x, y = pair(system, x, y)
    return system.matmul(x, y.unsqueeze(1)).squeeze(1)


@arithmetic(aten.dot.default)
def _dot(system: System, x: Any, y: Any) -> Number:
    return system.sum(system.mul(*pair(system, x, y)), (0,), False)


@arithmetic(aten.addmm.default, aten.baddbmm.default)
def _addmm(system: System, c: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Number:
    product = _matmul(system, x, y)
    if alpha != 1:
        product = _mul(system, product, alpha)
    return product if beta == 0 else _add(system, product, c if beta == 1 else _mul(system, c, beta))


@arithmetic(aten.sum.default, aten.sum.dim_IntList)
def _sum(system: System, x: Number, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Number:
    out = system.sum(x, _dims(x, dim), keepdim)
    return out if dtype is None else cast(out, dtype)


@arithmetic(aten.mean.default, aten.mean.dim)
def _mean(system: System, x: Number, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Number:
    dims = _dims(x, dim)
    count = 1
    for d in dims:
        count *= x.shape[d] if x.dim() else 1
    total = _sum(system, x, dims, keepdim, dtype=dtype)
    return system.div(total, lift(system, count, total))


@arithmetic(aten.exp.default)
def _exp(system: System, x: Number) -> Number:
    return system.exp(x)


@arithmetic(aten.log.default)
def _log(system: System, x: Number) -> Number:
    return system.log(x)


@arithmetic(aten._softmax.default)
def _softmax(system: System, x: Number, dim: int, half_to_float: bool) -> Number:
    out = system.softmax(x, _dims(x, dim)[0]) if x.dim() else _pow(system, x, 0)
    return cast(out, torch.float32) if half_to_float else out


@arithmetic(aten._safe_softmax.default)
def _safe_softmax(system: System, x: Number, dim: int, dtype: Any = None) -> Number:
    """With zeros in rows of −∞, as ``scaled_dot_product_attention`` asks for it."""
    empty = system.is_minus_infinity(x).all(dim, keepdim=True)
    zero = lift(system, 0, x)
    P = _softmax(system, where(system, empty, zero, x), dim, False)
    out = where(system, empty, zero, P)
    return out if dtype is None else cast(out, dtype)


@arithmetic(aten._log_softmax.default)
def _log_softmax(system: System, x: Number, dim: int, half_to_float: bool) -> Number:
    out = system.sub(x, _logsumexp(system, x, [dim], True))
    return cast(out, torch.float32) if half_to_float else out


@arithmetic(aten._softmax_backward_data.default)
def _softmax_backward(system: System, g: Any, out: Any, dim: int, input_dtype: torch.dtype) -> Number:
    g, out = pair(system, g, out)
    inner = system.sum(system.mul(out, g), _dims(out, dim), True)
    return cast(system.mul(out, system.sub(g, inner)), input_dtype)


@arithmetic(aten._log_softmax_backward_data.default)
def _log_softmax_backward(system: System, g: Any, out: Any, dim: int, input_dtype: torch.dtype) -> Number:
    g, out = pair(system, g, out)
    total = system.sum(g, _dims(out, dim), True)
    return cast(system.sub(g, system.mul(system.exp(out), total)), input_dtype)


@arithmetic(aten.logsumexp.default)
def _logsumexp(system: System, x: Number, dim: Any, keepdim: bool = False) -> Any:
    dims = _dims(x, dim)
    shift, shifted = system.split_shift(x, dims)
    total = system.log(system.sum(system.exp(shifted), dims, True))
    out = total if shift is None else system.add(total, shift)
    return out if keepdim else out.squeeze(dims)


@arithmetic(aten.logaddexp.default)
def _logaddexp(system: System, x: Any, y: Any) -> Number:
    x, y = pair(system, x, y)
    shape = torch.broadcast_shapes(x.shape, y.shape)
    return _logsumexp(system, number(torch.stack([broadcast(x, shape), broadcast(y, shape)])), [0])


@arithmetic(aten.amax.default)
def _amax(system: System, x: Number, dim: Any = (), keepdim: bool = False) -> Number:
    return system.amax(x, _dims(x, list(dim) or None), keepdim)
