"""Which real number a floating-point constant stands for.

0.35355339059327373 in a program means 1/√8 and 0.1 means one tenth. A constant is read as, in this order: an integer; a
rational with a small denominator; the shortest decimal that rounds to it; a rational times the root of a
small square-free integer, or the fourth root (√τ = 8^(-1/4), by which ``scaled_dot_product_attention`` multiplies both Q and K); the same, of small numbers, times a power of 1/√π or of log 2 (0.7978… = √2/√π in GELU, 1.4426… = 1/log 2 before exp2); and
otherwise as exactly the dyadic number that it is. A reading must be within two units in the
last place of a double, and in a narrower type round to the constant itself; denominators are so small that an arbitrary double is a
small rational by accident once in 10⁸, and a decimal of at most 13 digits once in a thousand (then less than a unit in the last place away).
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from sympy import factorint

DIGITS = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}
LARGEST_ROOT = 1 << 20
POWERS = [(1, 0), (-1, 0), (2, 0), (-2, 0), (0, 1), (0, -1)]


class Reading(NamedTuple):
    """The constant ``ratio`` · √``root`` · ∜``fourth`` · (1/√π)^``pi`` · (log 2)^``ln2``."""

    ratio: Fraction
    root: int = 1
    pi: int = 0
    ln2: int = 0
    fourth: int = 1

    @property
    def is_integer(self) -> bool:
        return self.ratio.denominator == 1 and self[1:] == (1, 0, 0, 1)

    def __float__(self) -> float:
        return (
            float(self.ratio)
            * self.root**0.5
            * self.fourth**0.25
            * math.pi ** (-self.pi / 2)
            * math.log(2) ** self.ln2
        )

    def __str__(self) -> str:
        powers = "".join(
            f"·({name})^{power}" for name, power in (("1/√π", self.pi), ("log 2", self.ln2)) if power
        )
        return self._algebraic() + powers

    def _algebraic(self) -> str:
        roots = f"√{self.root}" * (self.root != 1) + f"∜{self.fourth}" * (self.fourth != 1)
        if not roots:
            return str(self.ratio)
        n = self.ratio.numerator
        top = ("" if n == 1 else "-" if n == -1 else str(n)) + roots
        return top if self.ratio.denominator == 1 else f"{top}/{self.ratio.denominator}"


@functools.lru_cache(maxsize=1 << 17)
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
    if dtype == torch.float64 and (fourth := _fourth_root(value)) is not None:
        return fourth
    transcendental = _with_pi_or_ln2(value) if dtype == torch.float64 else None
    return transcendental or Reading(Fraction(value))


def _fourth_root(value: float) -> Reading | None:
    """A rational times √s ∜t, with small s and t that are square-free."""
    power = Fraction(value**4).limit_denominator(1 << 12)
    if not power or abs(math.sqrt(math.sqrt(power)) - abs(value)) > 2.0**-51 * abs(value):
        return None
    outer = root = fourth = 1
    for prime, k in factorint(power.numerator * power.denominator**3).items():
        outer *= prime ** (k // 4)
        root *= prime ** (k % 4 // 2)
        fourth *= prime ** (k % 2)
    if root * fourth >= LARGEST_ROOT:
        return None
    return Reading(Fraction(outer if value > 0 else -outer, power.denominator), root, fourth=fourth)


def _with_pi_or_ln2(value: float) -> Reading | None:
    """A small number times a power of 1/√π or log 2."""
    for pi, ln2 in POWERS:
        factor = math.pi ** (-pi / 2) * math.log(2) ** ln2
        square = Fraction((value / factor) ** 2).limit_denominator(64)
        if square and abs(math.sqrt(square) * factor - abs(value)) <= 2.0**-51 * abs(value):
            outer, root = _square_free(square.numerator * square.denominator)
            if root <= 16:
                return Reading(Fraction(outer if value > 0 else -outer, square.denominator), root, pi, ln2)
    return None


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
