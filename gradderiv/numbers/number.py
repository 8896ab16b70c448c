"""A tensor whose entries are numbers of another kind.

A :class:`Number` is a wrapper subclass of ``torch.Tensor``. Autograd works above it, so ``torch.autograd.grad``,
a hand-written ``autograd.Function`` and ``nn.MultiheadAttention`` run on it unchanged; what reaches
``__torch_dispatch__`` is a sequence of aten operations, which one table (:mod:`gradderiv.numbers.table`) answers.

What an entry is, is said by its :class:`System`: named *parts*, each an ordinary tensor of the same shape (the
residues in every lane; a primal and a tangent; indices of SymPy expressions), and a *note* on the whole tensor (its
degree record, its TeX). A part that is missing stands for the system's fill value everywhere, which keeps
the usual case small.

A view does not store parts: it is a function of its base, applied to each part when asked. So writing into a slice reaches
the base, and a part that comes into being later is there for all views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

Part = Any  # an ordinary tensor, or a Number of another system (dual numbers over the field)
Parts = dict[str, Part]
Step = Callable[[Part], Part]


def identity(part: Part) -> Part:
    return part


class Unanswered(NotImplementedError):
    """What a system raises for an operation that it does not have."""


class Cell:
    """What a base and all its views share."""

    __slots__ = ("note", "parts")

    def __init__(self, parts: Parts, note: Any) -> None:
        self.parts = parts
        self.note = note


def _one_layout(parts: Parts, shown: Part) -> Parts:
    """The parts with equal strides, none of them expanded, so that what is a view of one is a view of all."""
    strides = shown.stride()
    expanded = any(s == 0 and n > 1 for s, n in zip(strides, shown.shape, strict=True))
    if not expanded and all(p.stride() == strides for p in parts.values()):
        return parts
    if expanded or any(isinstance(p, Number) for p in parts.values()):
        return {name: p.contiguous() for name, p in parts.items()}
    return {name: p if p.stride() == strides else _laid_out(p, shown) for name, p in parts.items()}


def _laid_out(part: Part, like: Part) -> Part:
    out = torch.empty_strided(like.shape, like.stride(), dtype=part.dtype, device=part.device)
    return out.copy_(part)


def _is_dense(x: Tensor) -> bool:
    """Whether the entries lie side by side, each in a place of its own; those of ``unfold`` may share one."""
    expected = 1
    for stride, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n > 1 and stride != expected:
            return False
        expected *= n
    return True


class Number(torch.Tensor):
    """A tensor of another kind of number. Make one with a :class:`System`, not by calling this class."""

    system: System
    cell: Cell
    base: Number | None
    step: Step
    _seen: dict[str, tuple[Part, Part]]
    _noted: tuple[Any, Any]  # the note of the base, and that of this view

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls: type[Number],
        system: System,
        cell: Cell,
        dtype: torch.dtype,
        base: Number | None = None,
        step: Step = identity,
    ) -> Number:
        shown = cell.parts[system.main] if base is None else step(base.main)
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            shown.shape,
            strides=shown.stride(),
            storage_offset=shown.storage_offset(),
            dtype=dtype,
            device=shown.device,
        )
        self.system, self.cell, self.base, self.step = system, cell, base, step
        self._seen = {system.main: (cell.parts[system.main], shown)}
        self._noted = None, None
        return self

    def part(self, name: str) -> Part:
        """The part of that name, as this view of its base sees it; None stands for the fill."""
        stored = self.cell.parts.get(name)
        if stored is None or self.base is None:
            return stored
        known, part = self._seen.get(name, (None, None))
        if known is not stored:
            part = self.step(self.base.part(name))
            self._seen[name] = (stored, part)
        return part

    def full(self, name: str) -> Part:
        """The part of that name, spelled out where it is missing."""
        part = self.part(name)
        return self.system.filled(self.main, name) if part is None else part

    @property
    def main(self) -> Part:
        """The part that is always there."""
        part = self.part(self.system.main)
        assert part is not None
        return part

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.cell.parts)

    @property
    def note(self) -> Any:
        stored = self.cell.note
        if stored is None or self.base is None:
            return stored
        if self._noted[0] is not stored:
            self._noted = stored, self.system.seen(self)
        return self._noted[1]

    def write(self, new: Number) -> None:
        """Overwrite the entries of this view, and so those of its base, by those of ``new``."""
        for name in {**self.cell.parts, **new.cell.parts}:
            if name not in self.cell.parts:
                self.cell.parts[name] = self.system.filled(self.cell.parts[self.system.main], name)
            self.part(name).copy_(new.full(name))
        covers = self.numel() == self.cell.parts[self.system.main].numel() and _is_dense(self)
        written = self.system.written(self, new)
        self.cell.note = written if covers else self.system.join([self.cell.note, written])

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        grad = ", requires_grad=True" if self.requires_grad else ""
        with torch.no_grad():
            return f"{type(self).__name__}({self.system.show(self)}, dtype={self.dtype}{grad})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        from gradderiv.numbers.table import dispatch

        return dispatch(func, args, kwargs or {})


class System:
    """A kind of number: what its parts are, and the few operations from which the table builds all others.

    The operands of the arithmetic are Numbers of this system; shapes broadcast as torch's do.
    """

    tensor: ClassVar[type[Number]] = Number
    main: ClassVar[str]
    fill: dict[str, Any]
    gates: ClassVar[bool] = False  # whether a comparison returns a number that stands for 0 or 1
    rank: ClassVar[int] = 0  # where two systems meet, the higher one takes the lower as its constants

    def wrap(self, parts: Parts, note: Any = None, dtype: torch.dtype = torch.float64) -> Number:
        return self.tensor(self, Cell(_one_layout(parts, parts[self.main]), note), dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> System:
        """A system is where its numbers live: copies of them stay in it."""
        return self

    def filled(self, like: Part, name: str) -> Part:
        """What a missing part stands for, spelled out."""
        value = self.fill[name]
        return torch.full_like(like, value, dtype=torch.bool if isinstance(value, bool) else None)

    def accepts(self, other: System) -> bool:
        """Whether numbers of ``other`` are numbers of this system as they stand."""
        return self is other

    def join(self, notes: list[Any]) -> Any:
        """The note of a tensor put together from tensors with these notes."""
        return notes[0] if notes else None

    def seen(self, x: Number) -> Any:
        """The note of a view."""
        return x.cell.note

    def written(self, x: Number, new: Number) -> Any:
        """The note of ``new``, for what the view x writes it into."""
        return new.note

    def show(self, x: Number) -> str:
        return f"shape={tuple(x.shape)}"

    # ---- to be answered by every system

    def constant(self, value: Tensor, dtype: torch.dtype) -> Number:
        raise Unanswered

    def add(self, x: Number, y: Number) -> Number:
        raise Unanswered

    def entering(self, value: Tensor, dtype: torch.dtype, like: Number) -> Number:
        """An ordinary tensor that meets ``like`` in an operation."""
        return self.constant(value, dtype)

    def born(self, value: Tensor, like: Number) -> Number:
        """An ordinary tensor, made by a program on the way, as a Number beside ``like``."""
        return self.constant(value, value.dtype)

    def uninitialised(self, shape: torch.Size, like: Number) -> Number:
        """A tensor whose entries nobody may rely on: NaN, where the system has it."""
        return self.born(torch.full(shape, torch.nan, dtype=like.dtype, device=like.device), like)

    def neg(self, x: Number) -> Number:
        raise Unanswered

    def mul(self, x: Number, y: Number) -> Number:
        raise Unanswered

    def matmul(self, x: Number, y: Number) -> Number:
        raise Unanswered

    def sum(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        raise Unanswered

    def reciprocal(self, x: Number) -> Number:
        raise Unanswered

    def exp(self, x: Number) -> Number:
        raise Unanswered

    def log(self, x: Number) -> Number:
        raise Unanswered

    def amax(self, x: Number, dims: tuple[int, ...], keepdim: bool) -> Number:
        raise Unanswered

    def maximum(self, x: Number, y: Number) -> Number:
        raise Unanswered

    def smooth(self, function: Any, x: Number) -> Number:
        """A :class:`~gradderiv.numbers.smooth.Smooth` function of x."""
        return function.composed(self, x)

    def sqrt(self, x: Number) -> Number:
        raise Unanswered

    def rsqrt(self, x: Number) -> Number:
        raise Unanswered

    def exp2(self, x: Number) -> Number:
        raise Unanswered

    def log2(self, x: Number) -> Number:
        raise Unanswered

    def sin(self, x: Number) -> Number:
        raise Unanswered

    def cos(self, x: Number) -> Number:
        raise Unanswered

    def erf(self, x: Number) -> Number:
        raise Unanswered

    def positive(self, x: Number) -> Number:
        """A gate for every entry: 1 where it is greater than zero, else 0, or what stands for that."""
        raise Unanswered

    def truth(self, c: Number) -> Tensor | None:
        """Where the gate c is open, as an ordinary boolean tensor, if that is known."""
        return None

    def zero(self, x: Number) -> Number:
        """A gate for every entry: 1 where it is zero, for differences with a maximum."""
        raise Unanswered

    def remember(self, y: Number, c: Number) -> None:
        """y is a relu with the gate c: its derivative will be asked for given y."""

    def remembered(self, y: Number) -> Number:
        """The gate of the relu that made y, which is that of y itself."""
        return self.positive(y)

    def order(self, x: Number) -> Tensor:
        """Ordinary numbers by which to choose the largest entry of a row."""
        raise Unanswered

    def place(self, x: Number, dim: int | None, keepdim: bool) -> Tensor:
        """Where the largest entry stands; where numbers have no order, a number of integer type that may only be carried along."""
        return self.order(x).argmax(dim, keepdim)

    def is_shift(self, x: Number) -> bool:
        """Whether x is the maximum of something, so that comparing it has a meaning."""
        return False

    # ---- with a meaning that follows, unless the system knows better

    def sub(self, x: Number, y: Number) -> Number:
        return self.add(x, self.neg(y))

    def div(self, x: Number, y: Number) -> Number:
        return self.mul(x, self.reciprocal(y))

    def viewed(self, func: Any, x: Number, args: Any, out: Any) -> Any:
        """The result of a view, for a system that wants to take note of it."""
        return out

    def structured(self, func: Any, sources: list[Number], args: Any, out: Number) -> Number:
        """The result of another structural operation, likewise."""
        return out

    def split_shift(self, x: Number, dims: tuple[int, ...]) -> tuple[Number | None, Number]:
        """(m, x − m) with an m that keeps exp(x − m) in range; exact numbers need none."""
        return None, x

    def softmax(self, x: Number, dim: int) -> Number:
        _, shifted = self.split_shift(x, (dim,))
        E = self.exp(shifted)
        return self.mul(E, self.reciprocal(self.sum(E, (dim,), True)))

    def is_minus_infinity(self, x: Number) -> Tensor:
        """Where an entry is −∞ by structure, as an ordinary boolean tensor."""
        return torch.zeros(x.shape, dtype=torch.bool, device=x.device)

    def has_log(self, x: Number) -> bool:
        """Whether entries are a + log r, of which no product is known but with whole numbers."""
        return False

    def is_zero(self, x: Number) -> Tensor:
        """Where an entry is zero whatever the inputs, likewise."""
        raise Unanswered

    def scattered(self, note: Any) -> Any:
        """The note of a tensor whose entries have been put elsewhere by index."""
        return note
