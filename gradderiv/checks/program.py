"""What other people's code does and a formula does not, on any kind of number.

It writes results into tensors that it made itself, changes precision, detaches. :class:`Program` sees every operation of a run: tensors that
numbers are written into are made numbers where they are born, casts and cuts are noted, and a refusal names the line of the person's code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradderiv.checks.kept import kept_from_earlier
from gradderiv.checks.lines import calling_line, in_function, with_text
from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers.number import Number
from gradderiv.numbers.operands import numbers_in
from gradderiv.numbers.tape import TapeTensor

aten = torch.ops.aten

IN_PLACE_VIEWS = {
    aten.squeeze_.dim: aten.squeeze.dim,  # torch itself writes p @ V for a vector p as a product of matrices and this
    aten.squeeze_.default: aten.squeeze.default,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
}
EMPTY = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
}
TELLING = {
    aten._safe_softmax.default: "scaled_dot_product_attention ran as the formula of its MATH backend; a fused kernel itself is not what was proved",
    aten.bernoulli_.float: "dropout: one mask, drawn from the seed, for all runs",
    aten.native_dropout.default: "dropout: one mask, drawn from the seed, for all runs",
}
NO_ARGUMENT = "a tensor that requires a gradient is used and is no argument"
DETACHING = {Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore[attr-defined]
ENOUGH = 32  # lines of the function at which tensors are born that it later writes numbers into
Born = Callable[[Tensor], Tensor]


class BornHere(Exception):
    """Numbers are written into an ordinary tensor; it was born at this line."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


class Program(TorchDispatchMode):
    """One run of a person's function on numbers.

    Args:
        born: makes a number of an ordinary tensor that the function creates at one of ``lines`` and writes numbers into.
        lines: where that happens; shared by all runs of a function, so that each line is found out once.
        blank: the same for memory that is not initialised; ``born`` unless given.
        only: the numbers of this run; others were kept from an earlier one.
        kept: storages of ordinary tensors that were computed from the inputs of an earlier call.

    Attributes:
        casts: the types that numbers were cast to.
        cuts: lines that compute without a graph, under no_grad; not inside a Function, where that is right.
        met: operations of :data:`TELLING` that occurred.
        raised: what this run raised, which a person's code may have caught to go another way.
    """

    def __init__(
        self,
        born: Born | None = None,
        lines: set[str] | None = None,
        blank: Born | None = None,
        only: type[Number] = Number,
        kept: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.only, self.kept = only, set(kept)
        self.raised: Exception | None = None
        self.born, self.blank, self.lines = born, blank or born, lines if lines is not None else set()
        self.casts: set[torch.dtype] = set()
        self.cuts: dict[str, None] = {}
        self.met: dict[str, None] = {}
        self.origin: dict[int, str] = {}
        self.alive: list[Tensor] = []  # storages must not be given away while their origins are remembered

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler at the first operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = numbers_in((*args, *kwargs.values()))
        if not numbers:
            return self._ordinary(func, args, kwargs)
        if func in IN_PLACE_VIEWS:
            return view_in_place(func, args)
        try:
            self._from_earlier(numbers, args, kwargs)
            self._writes(func, args, kwargs)
            self._note(func, numbers, args, kwargs)
            return self.on_numbers(func, types, args, kwargs, numbers)
        except (NoExactMeaning, BornHere) as error:
            self.raised = error
            raise

    def on_numbers(self, func: Any, types: Any, args: Any, kwargs: Any, numbers: list[Number]) -> Any:
        """The operation as this kind of number answers it."""
        return answer(func, types, args, kwargs)

    def _ordinary(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if self.born is None or not isinstance(out, Tensor) or not out.dtype.is_floating_point:
            return out
        sources = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if self.kept and not self.kept.isdisjoint(sources):
            self.kept.add(_storage(out))
            self.alive.append(out)
        if _storage(out) in sources:  # a view, or written in place
            return out
        if func in EMPTY:
            out.fill_(torch.nan)  # no number: what reads it before it is written is refused
        line = calling_line()
        if line in self.lines:
            self.casts.add(out.dtype)  # what is written into it is rounded to its type
            make = self.blank if func in EMPTY else self.born
            assert make is not None
            return make(out)
        self.origin[_storage(out)] = line
        self.alive.append(out)
        return out

    def _from_earlier(self, numbers: list[Number], args: Any, kwargs: Any) -> None:
        """Stop where something computed from the inputs of an earlier call comes in: this run takes it for a constant."""
        if not all(isinstance(x, self.only) for x in numbers):
            raise kept_from_earlier()
        if self.kept:
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor) and not isinstance(x, Number) and _storage(x) in self.kept:
                    raise kept_from_earlier()

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

    def _note(self, func: Any, numbers: list[Number], args: Any, kwargs: Any) -> None:
        dtype = kwargs.get("dtype")
        if func is aten._to_copy.default and isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            self.casts.add(dtype)
        if func in TELLING:
            self.met[TELLING[func]] = None
        told = any(remark.startswith(NO_ARGUMENT) for remark in self.met)
        if not told and any(_asks_for_gradient(x) for x in tree_leaves((args, kwargs))):
            self.met[f"{NO_ARGUMENT} ({calling_line()}): its gradient was not tested"] = None
        if not torch.is_grad_enabled() and any(x.requires_grad for x in numbers) and not in_function():
            self.cuts[calling_line()] = None


class Cuts(TorchFunctionMode):
    """Notes where a person's code detaches a number; autograd detaches too, below this level, and means no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DETACHING and isinstance(args[0], Number) and args[0].requires_grad and not in_function():
            self.lines[calling_line()] = None
        return func(*args, **(kwargs or {}))


def retried(lines: set[str], attempt: Callable[[], Any]) -> Any:
    """``attempt``, again with every tensor made a number that a number turned out to be written into."""
    while True:
        try:
            return attempt()
        except BornHere as found:
            if found.line in lines or len(lines) >= ENOUGH:
                raise written_elsewhere() from found
            lines.add(found.line)


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
        where = f"called at {with_text(calling_line())}"
        raise NoExactMeaning(re.sub(r"called at .*", lambda _: where, str(error))) from error


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
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _storage(x: Tensor) -> int:
    return id(x) if isinstance(x, Number) else x.untyped_storage()._cdata


def written_elsewhere() -> NoExactMeaning:
    return NoExactMeaning(
        message(
            "an oracle follows what the function computes",
            "a result is written into a tensor that was not made during the call",
            "a buffer of a module, a global, or an input without gradient",
            "make that tensor inside the function",
        )
    )


def caught(error: Exception) -> NoExactMeaning:
    """A refusal that the function caught, to go a way that it does not go on floats."""
    return NoExactMeaning(
        f"{error}\nThe function catches this error and goes another way, which is not the one it goes on floats"
    )


def _asks_for_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, Number) and x.requires_grad
