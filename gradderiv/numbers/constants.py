"""Which real number a floating-point constant stands for.

0.35355339059327373 in a program means 1/√8 and 0.1 means one tenth. A constant is read as, in this order: an integer; a
rational with a small denominator; the shortest decimal that rounds to it; a rational times the root of a
small square-free integer; and otherwise as exactly the dyadic number that it is. A reading must be within two units in the
last place of a double, and in a narrower type round to the constant itself; denominators are so small that an arbitrary double is a
small rational by accident once in 10⁸, and a decimal of at most 13 digits once in a thousand (then less than a unit in the last place away).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from sympy import factorint

DIGITS = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}
LARGEST_ROOT = 1 << 20


class Reading(NamedTuple):
    """The constant ``ratio`` · √``root``."""

    ratio: Fraction
    root: int = 1

    def __str__(self) -> str:
        if self.root == 1:
            return str(self.ratio)
        top = f"{self.ratio.numerator}√{self.root}".replace("-1√", "-√").removeprefix(
            "1" if self.ratio.numerator == 1 else ""
        )
        return top if self.ratio.denominator == 1 else f"{top}/{self.ratio.denominator}"


def read(value: float, dtype: torch.dtype = torch.float64) -> Reading:
    """The reading of a finite constant that was written in ``dtype``."""
    if value == int(value):
        return Reading(Fraction(int(value)))
    small = max(2, 2 ** (DIGITS.get(dtype, 53) // 4))
    for candidate in (Fraction(value).limit_denominator(small), _shortest_decimal(value, dtype)):
        if candidate and _is_written(float(candidate), value, dtype):
            return Reading(candidate)
    # a table of cosines has thousands of entries: in a narrow type only the smallest roots are no accident
    square = Fraction(value * value).limit_denominator(small if dtype == torch.float64 else 8)
    if square and _is_written(math.copysign(math.sqrt(square), value), value, dtype):
        outer, root = _square_free(square.numerator * square.denominator)
        if root < LARGEST_ROOT:
            return Reading(Fraction(outer if value > 0 else -outer, square.denominator), root)
    return Reading(Fraction(value))


def _is_written(meant: float, value: float, dtype: torch.dtype) -> bool:
    """Whether ``meant`` is written as ``value``: computed in float64, off by two units at most, then rounded once."""
    if dtype == torch.float64:
        return abs(meant - value) <= 2.0**-51 * abs(value)
    return float(torch.tensor(meant, dtype=torch.float64).to(dtype)) == value


def _shortest_decimal(value: float, dtype: torch.dtype) -> Fraction:
    text = str(np.float32(value)) if dtype == torch.float32 else repr(value)
    short = len(text.split("e")[0].strip("-0.").replace(".", "")) <= DIGITS.get(dtype, 53) // 4
    return Fraction(text) if short else Fraction(0)


def _square_free(n: int) -> tuple[int, int]:
    """n = outer² · root with a square-free root."""
    outer = root = 1
    for prime, power in factorint(n).items():
        outer *= prime ** (power // 2)
        root *= prime ** (power % 2)
    return outer, root
