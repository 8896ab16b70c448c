"""What other people's code does and a formula does not, on numbers that have a value.

It compares entries, takes the maximum of a row with its position, changes precision, and writes results into tensors that it made itself.
:class:`Values` gives that a meaning while a function runs on a tape, on duals or on numbers with rounding errors.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gradderiv.errors import NoExactMeaning, message
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
IN_PLACE_VIEWS = {
    aten.squeeze_.dim: aten.squeeze.dim,  # torch itself writes p @ V for a vector p as a product of matrices and this
    aten.squeeze_.default: aten.squeeze.default,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
}


class BornHere(Exception):
    """Numbers are written into an ordinary tensor; it was born at this line."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


class Values(TorchDispatchMode):
    """Operations that have a meaning on numbers with a value (floats on a tape, duals, rounding), and none on others.

    Comparisons read the value. Float to float casts do nothing, so that a function that computes in float32 inside is differentiated in float64; an ordinary
    tensor that meets a tape of floats is widened to float64. ``max`` along an axis is ``amax`` and a position.
    """

    def __init__(self, born: Callable[[Tensor], Tensor] | None = None, lines: set[str] | None = None) -> None:
        super().__init__()
        self.born, self.lines = born, lines or set()
        self.casts: set[torch.dtype] = set()
        self.origin: dict[int, str] = {}
        self.alive: list[Tensor] = []  # storages must not be given away while their origins are remembered

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Number)]
        if not numbers:
            return self._ordinary(func, args, kwargs)
        if func in IN_PLACE_VIEWS:
            return view_in_place(func, args)
        self._writes(func, args, kwargs)
        dtype = kwargs.get("dtype")
        if func is aten._to_copy.default and isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            self.casts.add(dtype)
        if func in COMPARISONS and all(_has_value(x) for x in numbers):
            return func(*tree_map_only(Number, value_of, args), **kwargs)
        if func is aten.max.default:
            return self.amax(args[0], [], False)
        if func is aten.max.dim and isinstance(inner(args[0]), Number):
            values = self.amax(args[0], [args[1]], *args[2:])
            return values, value_of(args[0]).argmax(args[1], *args[2:])
        if func is aten.amax.default:
            return self.amax(*args, **kwargs)
        if any(isinstance(x, TapeTensor) and not isinstance(inner(x), Number) for x in numbers):
            args, kwargs = _in_float64(func, args, kwargs)
        if func is aten._safe_softmax.default and isinstance(inner(args[0]), Number):
            return self.safe_softmax(*args[:2])
        return answer(func, types, args, kwargs)

    def safe_softmax(self, x: Any, dim: int) -> Any:
        """softmax with rows of −∞ giving zeros, as ``scaled_dot_product_attention`` asks for it."""
        hidden = value_of(x) == -torch.inf if _has_value(x) else inner(x).detach() == -torch.inf
        empty = hidden.all(dim, keepdim=True)
        filled = answer(aten.masked_fill.Scalar, (), (x, empty, 0.0), {})
        P = answer(aten._softmax.default, (), (filled, dim, False), {})
        return answer(aten.masked_fill.Scalar, (), (P, empty, 0.0), {})

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

    def _ordinary(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if self.born is None or not isinstance(out, Tensor) or not out.dtype.is_floating_point:
            return out
        sources = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if _storage(out) in sources:  # a view, or written in place
            return out
        line = calling_line()
        if line in self.lines:
            self.casts.add(out.dtype)  # what is written into it is rounded to its type
            return self.born(out)
        self.origin[_storage(out)] = line
        self.alive.append(out)
        return out

    def _writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """Stop where a Number is written into an ordinary tensor."""
        if not func._schema.is_mutable:
            return
        for i, parameter in enumerate(func._schema.arguments):
            if parameter.alias_info is None or not parameter.alias_info.is_write:
                continue
            target = args[i] if i < len(args) else kwargs.get(parameter.name)
            if isinstance(target, Tensor) and not isinstance(target, Number):
                line = self.origin.get(_storage(target))
                raise BornHere(line) if line is not None else written_elsewhere()


def answer(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """The operation as the Numbers themselves answer it.

    A tape puts torch's dispatch state back to what it was when the operation arrived, and then there was a mode in place; so there must be one.
    """
    try:
        if any(isinstance(x, TapeTensor) for x in tree_leaves((args, kwargs))):
            with Through():
                return TapeTensor.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)
    except NoExactMeaning as error:  # the line of the person's code, not the one above
        raise NoExactMeaning(re.sub(r"called at .*", f"called at {calling_line()}", str(error))) from error


def view_in_place(func: Any, args: Any) -> Number:
    """Make a Number a view of what it was."""
    x = args[0]
    was = x.system.tensor(x.system, x.cell, x.dtype, x.base, x.step)
    view = answer(IN_PLACE_VIEWS[func], (), (was, *args[1:]), {})
    x.base, x.step, x._seen = view.base, view.step, view._seen
    with no_dispatch():
        func(*args)  # the shape that torch sees
    return x


class Through(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


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


def _storage(x: Tensor) -> int:
    return id(x) if isinstance(x, Number) else x.untyped_storage()._cdata


_OURS = (
    str(Path(torch.__file__).parent),
    *(
        str(Path(__file__).with_name(f"{name}.py"))
        for name in ("values", "scatter", "forward", "witnesses", "check")
    ),
)


def calling_line() -> str:
    """The innermost line of code that is neither torch's nor this module's."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def written_elsewhere() -> NoExactMeaning:
    return NoExactMeaning(
        message(
            "an oracle follows what the function computes",
            "a result is written into a tensor that was not made during the call",
            "a buffer of a module, a global, or an input without gradient",
            "make that tensor inside the function",
        )
    )
