"""Every aten operation that has an exact meaning, written down once for all kinds of number.

Structural operations (view, transpose, slice, cat, where …) act on any part. Arithmetic asks the
:class:`~gradderiv.numbers.number.System` for its few operations. What is not here raises
:class:`~gradderiv.errors.NoExactMeaning` with the operation and the line of code that called it. Overloads and keyword
arguments are a white list: ``div(rounding_mode="floor")`` is another overload and does not pass as division.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing

from gradderiv.numbers import arithmetic, indexing, norms, order, smooth  # noqa: F401  they enter their handlers
from gradderiv.numbers.number import Number, System, Unanswered
from gradderiv.numbers.operands import ARITHMETIC, aten, highest, no_meaning, numbers_in
from gradderiv.numbers.structure import STRUCTURE, VIEWS, broadcast, structure, view

CARRIES = VIEWS | {aten.scatter.src, aten.clone.default}  # what may be done to the place of a maximum
OTHERWISE_NAMED = {aten.pow_.Scalar: aten.pow.Tensor_Scalar}  # in place, where the overload has another name


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer one aten operation that reached a Number."""
    numbers = numbers_in((*args, *kwargs.values()))
    system = highest(numbers)
    if func in VIEWS:
        return view(system, func, args, kwargs)
    if torch.int64 in [x.dtype for x in numbers] and func not in CARRIES:
        raise no_meaning(func, "asks where a maximum stands, on which nothing may depend,")
    handler = ARITHMETIC.get(func)
    if handler is not None:
        try:
            out = handler(system, *args, **kwargs)
            return out if func._schema.is_mutable else _own(out, numbers)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise no_meaning(func, f"called with arguments that have no exact meaning ({error})") from error
        except Unanswered as error:
            raise no_meaning(func, f"of a {system.tensor.__name__} has no meaning") from error
    functional = _functional(func)
    if functional is not None:
        return _in_place(system, func, functional, args, kwargs)
    if func in STRUCTURE:
        return structure(system, func, args, kwargs)
    out = func.decompose(*args, **kwargs)  # where torch itself says what it is made of
    if out is not NotImplemented:
        return out
    raise no_meaning(func)


def _own(out: Any, operands: list[Number]) -> Any:
    """A result that shares no memory with an operand, so that writing into one leaves the other alone."""
    if not isinstance(out, Number):
        return out
    taken = {pointer for x in operands for pointer in _memory(x)}
    if taken.isdisjoint(_memory(out)):
        return out
    parts = {name: torch.clone(out.part(name)) for name in out.names}
    return out.system.wrap(parts, out.note, out.dtype)


def _memory(x: Number) -> Iterator[int]:
    """Where the parts of x lie, those of the numbers inside included."""
    for part in x.cell.parts.values():
        if isinstance(part, Number):
            yield from _memory(part)
        elif pointer := part.untyped_storage().data_ptr():
            yield pointer


def _functional(func: Any) -> Any:
    """The operation that the in-place ``func`` performs, if it is one that the table knows."""
    if func in OTHERWISE_NAMED:
        return OTHERWISE_NAMED[func]
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
