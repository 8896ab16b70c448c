"""Operations that move entries and do not compute: views, slices, cat, where, copies, and tensors born on the way."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from gradderiv.numbers.number import Number, System
from gradderiv.numbers.operands import (
    ARITHMETIC,
    Handler,
    arithmetic,
    aten,
    cast,
    lift,
    no_meaning,
    numbers_in,
)

VIEWS = {
    aten.alias.default, aten.detach.default, aten.diagonal.default, aten.expand.default,
    aten.permute.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor,
    aten.split_with_sizes.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.t.default, aten.transpose.int, aten.unbind.int, aten.unfold.default,
    aten.unsqueeze.default, aten.view.default, aten._reshape_alias.default, aten._unsafe_view.default,
    aten.lift_fresh.default,
}  # fmt: skip


def _rows(x: Number, dim: int = 0) -> list[tuple[Any, ...]]:
    return [(aten.select.int, dim, i) for i in range(x.shape[dim])]


def _pieces(x: Number, size: int, dim: int = 0) -> list[tuple[Any, ...]]:
    return [(aten.slice.Tensor, dim, i, i + size) for i in range(0, max(x.shape[dim], 1), max(size, 1))]


def _pieces_of(x: Number, sizes: list[int], dim: int = 0) -> list[tuple[Any, ...]]:
    ends = list(itertools.accumulate(sizes))
    return [(aten.slice.Tensor, dim, end - n, end) for n, end in zip(sizes, ends, strict=True)]


# views that come several at a time, as views that come one at a time: those may be written into under autograd too
SEVERAL: dict[Any, Callable[..., list[tuple[Any, ...]]]] = {
    aten.unbind.int: _rows,
    aten.split.Tensor: _pieces,
    aten.split_with_sizes.default: _pieces_of,
}

STRUCTURE = {
    aten.cat.default, aten.clone.default, aten.flip.default, aten.gather.default,
    aten.index.Tensor, aten.index_select.default, aten.repeat.default, aten.roll.default,
    aten.stack.default, aten.contiguous.default,
}  # fmt: skip
BY_INDEX = {aten.gather.default, aten.index.Tensor, aten.index_select.default}


def _apply(func: Any, args: Any, kwargs: dict[str, Any], pick: Callable[[Number], Any]) -> Any:
    """``func`` on one part of every Number among the arguments."""

    def swap(value: Any) -> Any:
        if isinstance(value, Number):
            return pick(value)
        if isinstance(value, (list, tuple)):
            return type(value)(swap(v) for v in value)
        return value

    return func(*(swap(a) for a in args), **kwargs)


def view(system: System, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, *rest = args

    def step(part: Any) -> Any:
        return func(part, *rest, **kwargs)

    if func in SEVERAL:
        pieces = SEVERAL[func](x, *rest, **kwargs)
        out: Any = [view(system, single, (x, *where_), {}) for single, *where_ in pieces]
        return return_and_correct_aliasing(func, args, kwargs, out)
    out = system.tensor(system, x.cell, x.dtype, x, step)
    out = system.viewed(func, x, rest, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def structure(system: System, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Number:
    if func in BY_INDEX and numbers_in(args[1:]):
        raise no_meaning(func, "takes numbers for indices")
    sources = numbers_in(args)
    lifted = [[lift(system, v, sources[0]) for v in a] if _is_list(a) else a for a in args]
    sources = numbers_in(lifted)
    names = dict.fromkeys(n for x in sources for n in x.names)
    parts = {n: _apply(func, lifted, kwargs, operator.methodcaller("full", n)) for n in names}
    out = system.wrap(parts, system.join([x.note for x in sources]), sources[0].dtype)
    return system.structured(func, sources, args, out)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(v, Number) for v in value)


def where(system: System, condition: Tensor, x: Number, y: Number) -> Number:
    """x where the ordinary boolean ``condition`` holds, y elsewhere."""
    names = dict.fromkeys((*x.names, *y.names))
    parts = {n: torch.where(condition, x.full(n), y.full(n)) for n in names}
    return system.wrap(parts, system.join([x.note, y.note]), x.dtype)


def number(x: Tensor) -> Number:
    """x, which an operation on Numbers returned and torch's annotations call a Tensor."""
    assert isinstance(x, Number)
    return x


def broadcast(x: Number, shape: Any) -> Number:
    """x expanded to ``shape``."""
    return x if x.shape == shape else number(x.expand(shape))


@arithmetic(aten.tril.default)
def _tril(system: System, x: Number, diagonal: int = 0) -> Number:
    keep = torch.ones(x.shape, dtype=torch.bool, device=x.device).tril(diagonal)
    return where(system, keep, x, lift(system, 0, x))


@arithmetic(aten.triu.default)
def _triu(system: System, x: Number, diagonal: int = 0) -> Number:
    keep = torch.ones(x.shape, dtype=torch.bool, device=x.device).triu(diagonal)
    return where(system, keep, x, lift(system, 0, x))


@arithmetic(aten._to_copy.default)
def _to_copy(
    system: System, x: Number, *, dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None, non_blocking: bool = False, memory_format: Any = None,
) -> Number:  # fmt: skip
    out = structure(system, aten.clone.default, (x,), {"memory_format": memory_format})
    return out if dtype is None else cast(out, dtype)


@arithmetic(aten.copy.default)
def _copy(system: System, x: Number, source: Any, non_blocking: bool = False) -> Number:
    return broadcast(lift(system, source, x), x.shape)


@arithmetic(aten.copy_.default)
def _copy_(system: System, x: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(x, Number):
        raise no_meaning(aten.copy_.default, "writes exact numbers into an ordinary tensor")
    x.write(broadcast(lift(system, source, x), x.shape))
    return x


@arithmetic(aten.zero_.default)
def _zero_(system: System, x: Number) -> Number:
    return _copy_(system, x, 0)


@arithmetic(aten.fill_.Scalar, aten.fill_.Tensor)
def _fill_(system: System, x: Number, value: Any) -> Number:
    return _copy_(system, x, value)


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
    aten.new_zeros.default: Tensor.new_zeros,
    aten.new_ones.default: Tensor.new_ones,
    aten.new_full.default: Tensor.new_full,
    aten._efficientzerotensor.default: torch.zeros_like,
}.items():
    ARITHMETIC[_overload] = _born(_factory)


@arithmetic(aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default)
def _empty(
    system: System, x: Number, size: Any = None, stride: Any = None, *, dtype: Any = None, **_: Any
) -> Any:
    shape = x.shape if size is None else torch.Size(size)
    if dtype is not None and not dtype.is_floating_point:
        return torch.empty(shape, dtype=dtype, device=x.device)
    out = system.uninitialised(shape, x)
    if stride is not None and not any(isinstance(p, Number) for p in out.cell.parts.values()):
        parts = {
            n: torch.empty_strided(shape, stride, dtype=p.dtype, device=p.device).copy_(p)
            for n, p in out.cell.parts.items()
        }
        out = system.wrap(parts, out.note, out.dtype)
    return out if dtype is None else cast(out, dtype)


@arithmetic(aten.diag_embed.default)
def _diag_embed(system: System, x: Number, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Number:
    zeros = torch.diag_embed(torch.zeros(x.shape, dtype=x.dtype, device=x.device), offset, dim1, dim2)
    out = system.born(zeros, x)
    number(torch.diagonal(out, offset, dim1, dim2)).write(x)
    return out


@arithmetic(aten.bernoulli_.float)
def _bernoulli_(system: System, x: Number, p: float = 0.5, *, generator: Any = None) -> Number:
    """Random zeros and ones, as ordinary floats draw them; a dropout mask is a constant."""
    drawn = torch.empty(x.shape, dtype=torch.float64, device=x.device).bernoulli_(p, generator=generator)
    return _copy_(system, x, drawn)


# ---------------------------------------------------------------- what autograd itself asks for


def _scattered(view_of: Any) -> Handler:
    """The backward of a view: zeros of the old size, into whose view the gradient is written."""

    def handler(system: System, g: Number, size: Any, *rest: Any) -> Number:
        zeros = torch.zeros([int(n) for n in size], dtype=g.dtype, device=g.device)
        out = system.born(zeros, g)
        view_of(out, *rest).write(g)
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
