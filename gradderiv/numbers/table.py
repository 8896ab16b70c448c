"""Every aten operation that has an exact meaning, written down once for all kinds of number.

Structural operations (view, transpose, slice, cat, where …) act on any part. Arithmetic asks the
:class:`~gradderiv.numbers.number.System` for its few operations. What is not here raises
:class:`~gradderiv.errors.NoExactMeaning` with the operation and the line of code that called it. Overloads and keyword
arguments are a white list: ``div(rounding_mode="floor")`` is another overload and does not pass as division.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers.number import Number, System

aten = torch.ops.aten
Handler = Callable[..., Any]

ARITHMETIC: dict[Any, Handler] = {}


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer one aten operation that reached a Number."""
    system = _system(args, kwargs)
    if func in VIEWS:
        return _view(system, func, args, kwargs)
    if func in ARITHMETIC:
        try:
            return ARITHMETIC[func](system, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise no_meaning(func, f"called with arguments that have no exact meaning ({error})") from error
    functional = _functional(func)
    if functional is not None:
        return _in_place(system, func, functional, args, kwargs)
    if func in STRUCTURE:
        return _structure(system, func, args, kwargs)
    out = func.decompose(*args, **kwargs)  # where torch itself says what it is made of
    if out is not NotImplemented:
        return out
    raise no_meaning(func)


def no_meaning(func: Any, why: str = "has no exact meaning") -> NoExactMeaning:
    """The error for an operation outside the table."""
    return NoExactMeaning(
        message(
            "exact arithmetic needs operations that are defined on every number",
            f"{func} {why}, called at {calling_line()}",
            "it compares or rounds values, reads one out, or is simply not in the table",
            "write that line with arithmetic, masks and structural operations, or keep its result a constant",
        )
    )


def calling_line() -> str:
    """The last line of code outside torch and this subpackage that led here."""
    here, libtorch = str(Path(__file__).parent), str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((here, libtorch)):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "an unknown line"


# ---------------------------------------------------------------- operands


def _numbers(values: Any) -> list[Number]:
    found: list[Number] = []
    for value in values:
        if isinstance(value, Number):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_numbers(value))
    return found


def _system(args: tuple[Any, ...], kwargs: dict[str, Any]) -> System:
    return max((x.system for x in _numbers((*args, *kwargs.values()))), key=lambda s: s.rank)


def _lift(system: System, value: Any, like: Number | None = None) -> Number:
    """``value`` as a Number of ``system``; numbers of other kinds and ordinary tensors become constants."""
    if isinstance(value, Number) and system.accepts(value.system):
        return value
    dtype = like.dtype if like is not None else torch.get_default_dtype()
    if not isinstance(value, Tensor):
        device = like.main.device if like is not None else None
        value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None, device=device)
    elif value.dtype.is_floating_point and value.dim() > 0:
        dtype = value.dtype if like is None else torch.promote_types(dtype, value.dtype)
    return system.constant(value, dtype)


def _pair(system: System, x: Any, y: Any) -> tuple[Number, Number]:
    like = x if isinstance(x, Number) else y if isinstance(y, Number) else None
    return _lift(system, x, like), _lift(system, y, like)


def _is_bool(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Number) and value.dtype == torch.bool


def cast(x: Number, dtype: torch.dtype) -> Number:
    """The same entries under another nominal dtype: float to float is the identity."""
    if x.dtype == dtype:
        return x
    if not dtype.is_floating_point:
        raise no_meaning(aten._to_copy.default, f"casts to {dtype}")
    return x.system.tensor(x.system, x.cell, dtype, x.path)


# ---------------------------------------------------------------- structure

VIEWS = {
    aten.alias.default, aten.detach.default, aten.diagonal.default, aten.expand.default,
    aten.permute.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor,
    aten.split_with_sizes.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.t.default, aten.transpose.int, aten.unbind.int, aten.unfold.default,
    aten.unsqueeze.default, aten.view.default, aten._reshape_alias.default, aten._unsafe_view.default,
    aten.lift_fresh.default,
}  # fmt: skip

STRUCTURE = {
    aten.cat.default, aten.clone.default, aten.flip.default, aten.gather.default,
    aten.index.Tensor, aten.index_select.default, aten.repeat.default, aten.roll.default,
    aten.stack.default, aten.contiguous.default,
}  # fmt: skip


def _apply(func: Any, args: Any, kwargs: dict[str, Any], pick: Callable[[Number], Any]) -> Any:
    """``func`` on one part of every Number among the arguments."""

    def swap(value: Any) -> Any:
        if isinstance(value, Number):
            return pick(value)
        if isinstance(value, (list, tuple)):
            return type(value)(swap(v) for v in value)
        return value

    return func(*(swap(a) for a in args), **kwargs)


def _view(system: System, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *rest = args

    def view_of(index: int | None) -> Number:
        def step(part: Any) -> Any:
            out = func(part, *rest, **kwargs)
            return out if index is None else out[index]

        return system.tensor(system, x.cell, x.dtype, (*x.path, step))

    first = func(x.main, *rest, **kwargs)
    out: Any = view_of(None) if isinstance(first, Tensor) else [view_of(i) for i in range(len(first))]
    out = system.viewed(func, x, rest, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _structure(system: System, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Number:
    sources = _numbers(args)
    lifted = [[_lift(system, v, sources[0]) for v in a] if _is_list(a) else a for a in args]
    sources = _numbers(lifted)
    names = dict.fromkeys(n for x in sources for n in x.names)
    parts = {n: _apply(func, lifted, kwargs, lambda x, n=n: x.full(n)) for n in names}
    out = system.wrap(parts, system.join([x.note for x in sources]), sources[0].dtype)
    return system.structured(func, sources, args, out)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, Number) for v in value)


def where(system: System, condition: Tensor, x: Number, y: Number) -> Number:
    """x where the ordinary boolean ``condition`` holds, y elsewhere."""
    names = dict.fromkeys((*x.names, *y.names))
    parts = {n: torch.where(condition, x.full(n), y.full(n)) for n in names}
    return system.wrap(parts, system.join([x.note, y.note]), x.dtype)


def _functional(func: Any) -> Any:
    """The operation that the in-place ``func`` performs, if it is one that the table knows."""
    name = func._schema.name.split("::")[1]
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(aten, name[:-1], None)
    plain = getattr(packet, func._overloadname, None) if packet is not None else None
    return plain if plain in ARITHMETIC or plain in STRUCTURE else None


def _in_place(
    system: System, func: Any, functional: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    target = args[0]
    if not isinstance(target, Number) or not system.accepts(target.system):
        raise no_meaning(func, "writes exact numbers into an ordinary tensor")
    target.write(broadcast(dispatch(functional, args, kwargs), target.shape))
    return return_and_correct_aliasing(func, args, kwargs, target)


def broadcast(x: Number, shape: Any) -> Number:
    """x expanded to ``shape``."""
    return x if x.shape == shape else dispatch(aten.expand.default, (x, list(shape)), {})


# ---------------------------------------------------------------- arithmetic


def arithmetic(*overloads: Any) -> Callable[[Handler], Handler]:
    """Enter a handler ``f(system, *args, **kwargs)`` for these overloads."""

    def enter(handler: Handler) -> Handler:
        for overload in overloads:
            ARITHMETIC[overload] = handler
        return handler

    return enter


def _dims(x: Number, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(x.dim()))
    dims = dim if isinstance(dim, (list, tuple)) else (dim,)
    return tuple(d % max(x.dim(), 1) for d in dims)


@arithmetic(aten.add.Tensor, aten.add.Scalar)
def _add(system: System, x: Any, y: Any, alpha: Any = 1) -> Number:
    x, y = _pair(system, x, y)
    if alpha != 1:
        y = system.mul(y, _lift(system, alpha, y))
    return system.add(x, y)


@arithmetic(aten.sub.Tensor, aten.sub.Scalar)
def _sub(system: System, x: Any, y: Any, alpha: Any = 1) -> Number:
    x, y = _pair(system, x, y)
    if alpha != 1:
        y = system.mul(y, _lift(system, alpha, y))
    return system.sub(x, y)


@arithmetic(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(system: System, x: Any, y: Any, alpha: Any = 1) -> Number:
    return _sub(system, y, x if alpha == 1 else _mul(system, x, alpha))


@arithmetic(aten.neg.default)
def _neg(system: System, x: Number) -> Number:
    return system.neg(x)


@arithmetic(aten.mul.Tensor, aten.mul.Scalar)
def _mul(system: System, x: Any, y: Any) -> Number:
    if _is_bool(x):
        x, y = y, x
    if _is_bool(y):  # a mask: keep or clear
        x = broadcast(x, torch.broadcast_shapes(x.shape, y.shape))
        return where(system, y, x, _lift(system, 0, x))
    return system.mul(*_pair(system, x, y))


@arithmetic(aten.div.Tensor, aten.div.Scalar)
def _div(system: System, x: Any, y: Any) -> Number:
    x, y = _pair(system, x, y)
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
        raise no_meaning(aten.pow.Tensor_Scalar, f"with the exponent {exponent}")
    if exponent == 0:
        return _lift(system, torch.ones(x.shape, dtype=torch.int64), x)
    base = x if exponent > 0 else system.reciprocal(x)
    out = base
    for _ in range(abs(int(exponent)) - 1):
        out = system.mul(out, base)
    return out


@arithmetic(aten.mm.default, aten.bmm.default)
def _matmul(system: System, x: Any, y: Any) -> Number:
    return system.matmul(*_pair(system, x, y))


@arithmetic(aten.mv.default)
def _mv(system: System, x: Any, y: Any) -> Number:
    x, y = _pair(system, x, y)
    return dispatch(aten.squeeze.dim, (system.matmul(x, dispatch(aten.unsqueeze.default, (y, 1), {})), 1), {})


@arithmetic(aten.dot.default)
def _dot(system: System, x: Any, y: Any) -> Number:
    return system.sum(system.mul(*_pair(system, x, y)), (0,), False)


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
        count *= x.shape[d]
    total = _sum(system, x, dims, keepdim, dtype=dtype)
    return system.div(total, _lift(system, count, total))


@arithmetic(aten.exp.default)
def _exp(system: System, x: Number) -> Number:
    return system.exp(x)


@arithmetic(aten.log.default)
def _log(system: System, x: Number) -> Number:
    return system.log(x)


@arithmetic(aten._softmax.default)
def _softmax(system: System, x: Number, dim: int, half_to_float: bool) -> Number:
    out = system.softmax(x, dim % x.dim())
    return cast(out, torch.float32) if half_to_float else out


@arithmetic(aten._log_softmax.default)
def _log_softmax(system: System, x: Number, dim: int, half_to_float: bool) -> Number:
    out = system.sub(x, _logsumexp(system, x, [dim], True))
    return cast(out, torch.float32) if half_to_float else out


@arithmetic(aten._softmax_backward_data.default)
def _softmax_backward(system: System, g: Any, out: Any, dim: int, input_dtype: torch.dtype) -> Number:
    g, out = _pair(system, g, out)
    inner = system.sum(system.mul(out, g), (dim % out.dim(),), True)
    return cast(system.mul(out, system.sub(g, inner)), input_dtype)


@arithmetic(aten._log_softmax_backward_data.default)
def _log_softmax_backward(system: System, g: Any, out: Any, dim: int, input_dtype: torch.dtype) -> Number:
    g, out = _pair(system, g, out)
    total = system.sum(g, (dim % out.dim(),), True)
    return cast(system.sub(g, system.mul(system.exp(out), total)), input_dtype)


@arithmetic(aten.logsumexp.default)
def _logsumexp(system: System, x: Number, dim: Any, keepdim: bool = False) -> Number:
    dims = _dims(x, dim)
    shift, shifted = system.split_shift(x, dims)
    total = system.log(system.sum(system.exp(shifted), dims, True))
    out = total if shift is None else system.add(total, shift)
    return out if keepdim else dispatch(aten.squeeze.dims, (out, list(dims)), {})


@arithmetic(aten.logaddexp.default)
def _logaddexp(system: System, x: Any, y: Any) -> Number:
    x, y = _pair(system, x, y)
    return _logsumexp(system, dispatch(aten.stack.default, ([x, y],), {}), [0])


@arithmetic(aten.amax.default)
def _amax(system: System, x: Number, dim: Any = (), keepdim: bool = False) -> Number:
    return system.amax(x, _dims(x, list(dim) or None), keepdim)


@arithmetic(aten.maximum.default)
def _maximum(system: System, x: Any, y: Any) -> Number:
    return system.maximum(*_pair(system, x, y))


@arithmetic(aten.where.self)
def _where(system: System, condition: Tensor, x: Any, y: Any) -> Number:
    if isinstance(condition, Number):
        raise no_meaning(aten.where.self, "asks for the truth of a number")
    return where(system, condition, *_pair(system, x, y))


@arithmetic(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(system: System, x: Number, mask: Tensor, value: Any) -> Number:
    return where(system, mask, _lift(system, value, x), x)


@arithmetic(aten.tril.default)
def _tril(system: System, x: Number, diagonal: int = 0) -> Number:
    keep = torch.ones(x.shape, dtype=torch.bool, device=x.device).tril(diagonal)
    return where(system, keep, x, _lift(system, 0, x))


@arithmetic(aten.triu.default)
def _triu(system: System, x: Number, diagonal: int = 0) -> Number:
    keep = torch.ones(x.shape, dtype=torch.bool, device=x.device).triu(diagonal)
    return where(system, keep, x, _lift(system, 0, x))


@arithmetic(aten._to_copy.default)
def _to_copy(
    system: System, x: Number, *, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None, non_blocking: bool = False, memory_format: Any = None,
) -> Number:  # fmt: skip
    out = _structure(system, aten.clone.default, (x,), {"memory_format": memory_format})
    return out if dtype is None else cast(out, dtype)


@arithmetic(aten.copy.default)
def _copy(system: System, x: Number, source: Any, non_blocking: bool = False) -> Number:
    return broadcast(_lift(system, source, x), x.shape)


@arithmetic(aten.copy_.default)
def _copy_(system: System, x: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(x, Number):
        raise no_meaning(aten.copy_.default, "writes exact numbers into an ordinary tensor")
    x.write(broadcast(_lift(system, source, x), x.shape))
    return x


@arithmetic(aten.zero_.default)
def _zero_(system: System, x: Number) -> Number:
    return _copy_(system, x, 0)  # type: ignore[no-any-return]


@arithmetic(aten.fill_.Scalar, aten.fill_.Tensor)
def _fill_(system: System, x: Number, value: Any) -> Number:
    return _copy_(system, x, value)  # type: ignore[no-any-return]


# ---------------------------------------------------------------- born in the number system


def _born(factory: Any) -> Handler:
    def handler(system: System, x: Number, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        dtype = x.dtype if dtype is None else dtype
        for ignored in ("memory_format", "layout", "pin_memory", "device"):
            kwargs.pop(ignored, None)
        value = factory(torch.empty(x.shape, dtype=dtype, device=x.device), *args, **kwargs)
        return system.born(value, x) if dtype.is_floating_point else value

    return handler


for _overload, _factory in {
    aten.zeros_like.default: torch.zeros_like,
    aten.ones_like.default: torch.ones_like,
    aten.full_like.default: torch.full_like,
    aten.empty_like.default: torch.zeros_like,
    aten.new_zeros.default: Tensor.new_zeros,
    aten.new_ones.default: Tensor.new_ones,
    aten.new_full.default: Tensor.new_full,
    aten.new_empty.default: Tensor.new_zeros,
    aten.new_empty_strided.default: lambda t, size, stride: t.new_zeros(size),
    aten._efficientzerotensor.default: torch.zeros_like,
}.items():
    ARITHMETIC[_overload] = _born(_factory)


@arithmetic(aten.diag_embed.default)
def _diag_embed(system: System, x: Number, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Number:
    zeros = torch.diag_embed(torch.zeros(x.shape, dtype=x.dtype, device=x.device), offset, dim1, dim2)
    out = system.born(zeros, x)
    dispatch(aten.diagonal.default, (out, offset, dim1, dim2), {}).write(x)
    return out


# ---------------------------------------------------------------- what autograd itself asks for


def _scattered(view: Any) -> Handler:
    """The backward of a view: zeros of the old size, into whose view the gradient is written."""

    def handler(system: System, g: Number, size: Any, *rest: Any) -> Number:
        zeros = torch.zeros([int(n) for n in size], dtype=g.dtype, device=g.device)
        out = system.born(zeros, g)
        dispatch(view, (out, *rest), {}).write(g)
        return out

    return handler


ARITHMETIC[aten.slice_backward.default] = _scattered(aten.slice.Tensor)
ARITHMETIC[aten.select_backward.default] = _scattered(aten.select.int)
ARITHMETIC[aten.diagonal_backward.default] = _scattered(aten.diagonal.default)


@arithmetic(aten.is_same_size.default)
def _is_same_size(system: System, x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape


@arithmetic(aten._has_same_storage_numel.default)
def _has_same_storage_numel(system: System, x: Tensor, y: Tensor) -> bool:
    return x.numel() == y.numel()


@arithmetic(aten.eq.Scalar)
def _eq(system: System, x: Number, value: Any) -> Tensor:
    if value != -torch.inf:
        raise no_meaning(aten.eq.Scalar, f"compares values with {value}")
    return system.is_minus_infinity(x)
