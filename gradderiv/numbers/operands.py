"""What all operations share: the table they are entered in, their operands, and the error for what has no meaning."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradderiv.errors import NoExactMeaning, message
from gradderiv.numbers.number import Number, System

aten = torch.ops.aten
Handler = Callable[..., Any]

ARITHMETIC: dict[Any, Handler] = {}


def arithmetic(*overloads: Any) -> Callable[[Handler], Handler]:
    """Enter a handler ``f(system, *args, **kwargs)`` for these overloads."""

    def enter(handler: Handler) -> Handler:
        for overload in overloads:
            ARITHMETIC[overload] = handler
        return handler

    return enter


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


def numbers_in(values: Any) -> list[Number]:
    found: list[Number] = []
    for value in values:
        if isinstance(value, Number):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(numbers_in(value))
    return found


def highest(numbers: list[Number]) -> System:
    """The system in which these numbers meet."""
    system = numbers[0].system
    for x in numbers[1:]:
        if x.system.rank > system.rank:
            system = x.system
    return system


def lift(system: System, value: Any, like: Number | None = None) -> Number:
    """``value`` as a Number of ``system``; numbers of other kinds and ordinary tensors become constants."""
    if isinstance(value, Number) and system.accepts(value.system):
        return value
    if isinstance(value, Number) and value.system.rank >= system.rank:
        raise NoExactMeaning(
            message(
                "numbers that meet in one operation must come from one system",
                f"a {type(value).__name__} of another system",
                "two fields, two tables of symbols, or two formats in one program",
                "make all inputs with one system",
            )
        )
    dtype = like.dtype if like is not None else torch.get_default_dtype()
    if isinstance(value, Tensor) and value.is_complex():
        raise NoExactMeaning(
            message(
                "exact arithmetic needs real constants",
                f"dtype {value.dtype}",
                "complex numbers have no residues here",
                "write real and imaginary parts as two tensors",
            )
        )
    if isinstance(value, complex):
        return lift(system, torch.tensor(value), like)
    if not isinstance(value, Tensor):
        device = like.main.device if like is not None else None
        value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None, device=device)
    elif value.dtype.is_floating_point and value.dim() > 0:
        dtype = value.dtype if like is None else torch.promote_types(dtype, value.dtype)
    return system.constant(value, dtype) if like is None else system.entering(value, dtype, like)


def pair(system: System, x: Any, y: Any) -> tuple[Number, Number]:
    like = x if isinstance(x, Number) else y if isinstance(y, Number) else None
    return lift(system, x, like), lift(system, y, like)


def is_bool(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Number) and value.dtype == torch.bool


def cast(x: Number, dtype: torch.dtype) -> Number:
    """The same entries under another nominal dtype: float to float is the identity."""
    if x.dtype == dtype:
        return x
    if not dtype.is_floating_point:
        raise no_meaning(aten._to_copy.default, f"casts to {dtype}")
    return x.system.tensor(x.system, x.cell, dtype, x)
