"""Equal, exactly: the comparison of two named matrices at the random points at which they have values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gradderiv.book.named import TARGET, Named
from gradderiv.errors import GradderivError, message
from gradderiv.numbers.spelling import spell


class ChainError(GradderivError, AssertionError):
    """A line of a derivation that does not hold, or does not follow.

    Args:
        asked, came, cause, do: the parts of its message; a part that takes a search is given as a function, and is
            found when the message is read.
    """

    def __init__(
        self, asked: str, came: str | Callable[[], str], cause: str | Callable[[], str], do: str
    ) -> None:
        super().__init__(asked, came, cause, do)
        self.asked, self._came, self._cause, self.do = asked, came, cause, do

    @functools.cached_property
    def came(self) -> str:
        return self._came if isinstance(self._came, str) else self._came()

    @functools.cached_property
    def cause(self) -> str:
        return self._cause if isinstance(self._cause, str) else self._cause()

    def __reduce__(self) -> tuple[type[ChainError], tuple[str, ...]]:
        return ChainError, (self.asked, self.came, self.cause, self.do)

    def __str__(self) -> str:
        return message(self.asked, self.came, self.cause, self.do)


class Compared(NamedTuple):
    """What was compared: how many entries, in how many lanes, under how many shifts; log₂ of the failure probability."""

    entries: int
    lanes: int
    shifts: int
    log2_failure: float


def require_equal(before: Named, now: Named, asked: str, around: Sequence[Named] = ()) -> Compared:
    """Compare every entry, in every lane, under each shift.

    Args:
        around: expressions whose matrices may be what is missing in ``now``, for the guess at the slip.

    Raises:
        ChainError: the shapes or some entries differ, or the failure probability is above 2⁻⁴⁰.
    """
    if any(a.system is not b.system for a, b in zip(before.points, now.points, strict=True)):
        cause = "two points draw the same numbers: what is of two points may be equal by accident"
        raise ChainError(
            asked, "matrices of two points", cause, "make all matrices of a derivation at one Point"
        )
    shapes = tuple(before.shape), tuple(now.shape)
    if shapes[0] != shapes[1]:
        cause = "a transpose is missing, or stands where none belongs"
        raise ChainError(asked, f"shapes {shapes[0]} and {shapes[1]}", cause, "count dimensions")
    failure = -math.inf
    for a, b in zip(before.points, now.points, strict=True):
        wrong = a.system.differs(a, b)
        if bool(wrong.any()):
            do = "compare the two sides factor by factor"
            raise ChainError(asked, lambda: _differing(before, now), lambda: _cause(before, now, around), do)
        failure = max(failure, a.system.failure(a, b))
    if failure > TARGET:
        cause = "the point has too few lanes for matrices of this size"
        asked = f"an equality must be wrong with probability below 2^{TARGET:.0f}"
        raise ChainError(asked, f"2^{failure:.1f}", cause, "smaller sizes, or more lanes")
    return Compared(now.numel(), now.points[0].system.lanes, len(now.points), failure)


def equal(x: Named, y: Named) -> bool:
    """Whether two named matrices have one value."""
    pairs = zip(x.points, y.points, strict=True)
    return x.shape == y.shape and not any(bool(a.system.differs(a, b).any()) for a, b in pairs)


def is_zero(x: Named) -> bool:
    """Whether every entry is 0, in every lane and under each shift."""
    return not any(nonzero(value) for value in x.points)


def nonzero(value: Any) -> bool:
    return bool(value.system.differs(value, torch.zeros_like(value)).any())


def _differing(before: Named, now: Named) -> str:
    from gradderiv.book.reasoning.where import where

    sides = f"{spell(before.node)}\n         and  {spell(now.node)}"
    return f"{sides}\n         differ {where(before, now)}"


def _cause(before: Named, now: Named, around: Sequence[Named]) -> str:
    """The likely cause, for two values that differ."""
    from gradderiv.book.reasoning.slips import slip

    a, b = before.points[0], now.points[0]
    if not nonzero(b):
        return "the new side is zero: what moves, or what multiplies it, was lost"
    factor = a.system.common_factor(b, a)
    found = [f"the new side is {factor} × the one before"] if factor else []
    guess = slip(before, now, around)
    found += [guess] if guess else []
    return "; ".join(found) or "a transpose, a factor or a term is not where it should be"
