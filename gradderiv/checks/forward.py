"""A person's function as the oracles of :func:`gradderiv.check` see it: its forward code, run on other numbers.

Hand-written backwards play no part here: on a tape of numbers (:mod:`gradderiv.numbers.tape`) and on dual numbers only the forward
runs. Other people's code does things that a formula does not, which :class:`Values` makes possible on numbers that have a value: it
compares them, takes the maximum of a row with its position, changes precision, and writes results into tensors that it made itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers.dual import DualTensor
from gradderiv.numbers.number import Number
from gradderiv.numbers.rounding import RoundingTensor
from gradderiv.numbers.tape import Tape, TapeTensor

aten = torch.ops.aten

COMPARISONS = {
    getattr(getattr(aten, name), overload)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for overload in ("Scalar", "Tensor")
} | {aten.isnan.default, aten.isinf.default, aten.argmax.default, aten.argmin.default}
ENOUGH = 32  # lines of the function at which tensors are born that it later writes numbers into


@dataclass(frozen=True)
class Call:
    """The function with its inputs: which of them are differentiated, and how it is called.

    Attributes:
        values: every input under its name, in the order of the call.
        moving: the names of those that are differentiated.
        by_name: the inputs are keyword arguments.
        floating: positions of the outputs that are floating tensors; None until a first call has told.
    """

    function: Callable[..., Any]
    name: str
    values: Mapping[str, Any]
    moving: tuple[str, ...]
    by_name: bool = False
    floating: tuple[int, ...] | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The floating outputs, for these inputs in place of the function's own."""
        outputs = self.all(inputs)
        if self.floating is None:
            return [y for y in outputs if isinstance(y, Tensor) and y.dtype.is_floating_point]
        return [outputs[k] for k in self.floating]

    def all(self, inputs: Mapping[str, Any]) -> list[Any]:
        values = {**self.values, **inputs}
        out = self.function(**values) if self.by_name else self.function(*values.values())
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def constants(self) -> dict[str, Tensor]:
        """The floating inputs that are not differentiated."""
        given = {n: x for n, x in self.values.items() if isinstance(x, Tensor) and n not in self.moving}
        return {name: x for name, x in given.items() if x.dtype.is_floating_point}


# ---------------------------------------------------------------- running it on other numbers


@dataclass(frozen=True)
class Recorded:
    """Outputs with the history that reverse mode needs, the leaves to differentiate by, and the types that results were cast to."""

    outputs: list[Tensor]
    leaves: dict[str, Tensor]
    casts: set[torch.dtype]
    values: Callable[[], Values]

    def gradients(self, cotangents: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
        """Of Σ ⟨dY, Y⟩ by every leaf; None for a leaf that no output depends on."""
        given = zip(self.outputs, cotangents, strict=True)
        pairs = [(y, g) for y, g in given if g is not None and y.requires_grad]
        if not pairs:
            return dict.fromkeys(self.leaves)
        outputs, grads = zip(*pairs, strict=True)
        leaves = list(self.leaves.values())
        with self.values(), plain_kernels():
            found = torch.autograd.grad(outputs, leaves, grads, retain_graph=True, allow_unused=True)
        return dict(zip(self.leaves, found, strict=True))


def record(
    call: Call,
    make: Callable[[Tensor], Tensor],
    constant: Callable[[Tensor], Tensor] | None = None,
    values: Callable[..., Values] | None = None,
) -> Recorded:
    """Run the function on a tape: of the numbers that ``make`` makes of what is differentiated, and ``constant`` of what is not."""
    tape, fixed = Tape(), constant or make
    leaves = {name: make(call.values[name].detach()).requires_grad_() for name in call.moving}
    inputs = {name: tape.make(fixed(x)) for name, x in call.constants().items()}
    inputs |= {name: tape.make(x) for name, x in leaves.items()}
    outputs, casts = run(call, inputs, lambda x: tape.make(fixed(x)), values)
    recorded = [y.recorded if isinstance(y, TapeTensor) else y for y in outputs]
    return Recorded(recorded, leaves, casts, values or Values)


def run(
    call: Call,
    inputs: Mapping[str, Tensor],
    born: Callable[[Tensor], Tensor],
    values: Callable[..., Values] | None = None,
) -> tuple[list[Tensor], set[torch.dtype]]:
    """The function's floating outputs on Numbers, and the types that it cast Numbers to.

    ``born`` makes a Number of a tensor that the function creates and later writes Numbers into. Which ones those are shows only when it
    writes: then the call starts again with the tensors born at that line made Numbers.
    """
    lines: set[str] = set()
    while True:
        try:
            with (values or Values)(born, lines) as mode, plain_kernels(), torch.no_grad():
                return call(inputs), mode.casts
        except BornHere as found:
            if found.line in lines or len(lines) >= ENOUGH:
                raise _written_elsewhere() from found
            lines.add(found.line)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention as torch spells it out: its fused kernels know floats only."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class BornHere(Exception):
    """Numbers are written into an ordinary tensor; it was born at this line."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


# ---------------------------------------------------------------- what other people's code does


class Values(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations that have a meaning on numbers with a value (floats on a tape, duals, rounding), and none on others.

    Comparisons read the value. Float to float casts do nothing, so that a function that computes in float32 inside is differentiated in float64; an ordinary
    tensor that meets a tape of floats is widened to float64. ``max`` along an axis is ``amax`` and a position.
    """

    def __init__(self, born: Callable[[Tensor], Tensor] | None = None, lines: set[str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.born, self.lines = born, lines or set()
        self.casts: set[torch.dtype] = set()
        self.origin: dict[int, str] = {}
        self.alive: list[Tensor] = []  # storages must not be given away while their origins are remembered

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Number)]
        if not numbers:
            return self._ordinary(func, args, kwargs)
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
                raise BornHere(line) if line is not None else _written_elsewhere()


def answer(func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """The operation as the Numbers themselves answer it.

    A tape puts torch's dispatch state back to what it was when the operation arrived, and then there was a mode in place; so there must be one.
    """
    if any(isinstance(x, TapeTensor) for x in tree_leaves((args, kwargs))):
        with Through():  # type: ignore[no-untyped-call]
            return TapeTensor.__torch_dispatch__(func, types, args, kwargs)
    return func(*args, **kwargs)


class Through(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def inner(x: Number) -> Any:
    """What a tape records, or the Number itself."""
    return x.main if isinstance(x, TapeTensor) else x


def value_of(x: Any) -> Tensor:
    """The floats that a Number stands for."""
    while isinstance(x, Number):
        x = x.main
    return x.detach()  # type: ignore[no-any-return]


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


_OURS = (str(Path(torch.__file__).parent), str(Path(__file__)))


def calling_line() -> str:
    """The innermost line of code that is neither torch's nor this module's."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _written_elsewhere() -> NoExactMeaning:
    return NoExactMeaning(
        message(
            "an oracle follows what the function computes",
            "a result is written into a tensor that was not made during the call",
            "a buffer of a module, a global, or an input without gradient",
            "make that tensor inside the function",
        )
    )
