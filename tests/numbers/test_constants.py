"""Which real number a floating-point constant is read as."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_reference import modest
from hypothesis import given
from hypothesis import strategies as st

from gradderiv.numbers.constants import Reading, read

HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


def rounded(x, dtype):
    return float(torch.tensor(x, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize(
    ("value", "ratio", "root"),
    [
        (0.0, 0, 1),
        (-0.0, 0, 1),
        (7.0, 7, 1),
        (1e22, 10**22, 1),
        (0.125, Fraction(1, 8), 1),
        (-0.75, Fraction(-3, 4), 1),
        (0.1, Fraction(1, 10), 1),
        (0.1 + 0.2, Fraction(3, 10), 1),
        (1e-5, Fraction(1, 10**5), 1),
        (1e-12, Fraction(1, 10**12), 1),
        (0.3333333333333333, Fraction(1, 3), 1),
        (1 - 1 / 3, Fraction(2, 3), 1),
        (0.044715, Fraction(44715, 10**6), 1),  # of the tanh approximation of GELU
        (1 / math.sqrt(8), Fraction(1, 4), 2),
        (8**-0.5, Fraction(1, 4), 2),
        (1 / math.sqrt(64), Fraction(1, 8), 1),
        (1 / math.sqrt(96), Fraction(1, 24), 6),
        (math.sqrt(3) / 2, Fraction(1, 2), 3),
        (-math.sqrt(0.5), Fraction(-1, 2), 2),
        (math.sqrt(2) * 100, 100, 2),
    ],
)
def test_double_precision_constants(value, ratio, root):
    assert read(value) == Reading(Fraction(ratio), root)


@pytest.mark.parametrize(
    "value",
    [
        math.e,
        math.cos(1.0),
        2**0.125,
        math.pi**3,
        math.sqrt(math.pi / 97),
        math.log(2) ** 2,
        math.log(3),
        5 * math.log(2) / 67,
    ],
)
def test_a_constant_of_no_known_kind_is_the_dyadic_number_that_it_is(value):
    reading = read(value)
    assert reading == Reading(Fraction(value))
    denominator = reading.ratio.denominator
    assert denominator & (denominator - 1) == 0


@pytest.mark.parametrize(
    ("value", "reading"),
    [
        (2**0.25, Reading(Fraction(1), fourth=2)),
        (8**-0.25, Reading(Fraction(1, 2), fourth=2)),
        (-(32**-0.25), Reading(Fraction(-1, 4), 2, fourth=2)),
        (5**-0.25, Reading(Fraction(1, 5), 5, fourth=5)),
        (math.pi, Reading(Fraction(1), pi=-2)),
        (-3 * math.pi / 4, Reading(Fraction(-3, 4), pi=-2)),
        (1 / math.pi, Reading(Fraction(1), pi=2)),
        (math.sqrt(math.pi), Reading(Fraction(1), pi=-1)),
        (2 / math.sqrt(math.pi), Reading(Fraction(2), pi=1)),
        (math.sqrt(2 / math.pi), Reading(Fraction(1), 2, pi=1)),  # of GELU by tanh
        (1 / math.sqrt(2 * math.pi), Reading(Fraction(1, 2), 2, pi=1)),  # of the normal density
        (0.7978845608028654, Reading(Fraction(1), 2, pi=1)),
        (math.log(2), Reading(Fraction(1), ln2=1)),
        (math.log(2) / 2, Reading(Fraction(1, 2), ln2=1)),
        (1 / math.log(2), Reading(Fraction(1), ln2=-1)),
        (1.4426950408889634, Reading(Fraction(1), ln2=-1)),
        (1.4426950408889634 / 8, Reading(Fraction(1, 8), ln2=-1)),
        (1.4426950408889634 / math.sqrt(8), Reading(Fraction(1, 4), 2, ln2=-1)),  # a scale, folded into exp2
    ],
)
def test_constants_with_pi_and_with_the_logarithm_of_two(value, reading):
    assert read(value) == reading
    assert float(reading) == pytest.approx(value, rel=2**-50)
    far = value
    for _ in range(12):
        far = math.nextafter(far, math.inf)
    assert read(far) == Reading(Fraction(far))  # a twin: a neighbour too far away
    single = rounded(value, SINGLE)
    assert read(single, SINGLE) == Reading(Fraction(single))  # too short to know


@pytest.mark.parametrize(
    ("value", "ratio", "root"),
    [
        (0.1, Fraction(1, 10), 1),
        (1e-5, Fraction(1, 10**5), 1),
        (1e-6, Fraction(1, 10**6), 1),
        (1 / 3, Fraction(1, 3), 1),
        (8**-0.5, Fraction(1, 4), 2),
        (0.125, Fraction(1, 8), 1),
    ],
)
def test_single_precision_constants(value, ratio, root):
    single = rounded(value, SINGLE)
    assert read(single, SINGLE) == Reading(Fraction(ratio), root)
    if Fraction(single) != ratio:  # a twin: the same bits said to be double are not that number
        assert read(single, DOUBLE) == Reading(Fraction(single))


def test_bfloat16_keeps_what_is_exact():
    for value in (0.5, 0.125, 3.0, -1.5):
        assert read(value, HALF) == Reading(Fraction(value))


@modest
@given(st.integers(-3000, 3000), st.integers(1, 1000))
def test_small_rationals_come_back(a, b):
    assert read(a / b) == Reading(Fraction(a, b))


@modest
@given(st.integers(-(10**9), 10**9), st.integers(0, 9))
def test_short_decimals_come_back(digits, places):
    text = f"{digits}e-{places}"
    assert read(float(text)) == Reading(Fraction(text))


@modest
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([2, 3, 5, 6, 7, 10, 15, 30]), st.booleans())
def test_rational_times_a_root_comes_back(a, b, q, negative):
    sign = -1 if negative else 1
    assert read(sign * a / b * math.sqrt(q)) == Reading(Fraction(sign * a, b), q)


@modest
@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_a_reading_is_within_four_units_of_the_constant(value):
    reading = read(value)
    square = reading.ratio**2 * reading.root
    assert abs(square - Fraction(value) ** 2) <= Fraction(1, 2**49) * Fraction(value) ** 2
    assert (reading.ratio > 0) == (value > 0)
    assert (reading.ratio < 0) == (value < 0)


@pytest.mark.parametrize("value", [1 / 3, 8**-0.5, 0.1])
def test_twin_a_neighbour_too_far_away_is_not_read_so(value):
    far = value
    for _ in range(12):
        far = math.nextafter(far, 1.0)
    assert read(far) == Reading(Fraction(far))


def test_an_arbitrary_double_is_read_as_itself():
    """But for those that happen to be a decimal of 13 digits: one in a thousand, and less than an ulp away."""
    draw = random.Random(0).random
    values = [draw() for _ in range(5000)]
    readings = [read(v) for v in values]
    assert sum(r != Reading(Fraction(v)) for r, v in zip(readings, values, strict=True)) <= 15
    assert all(r.root == 1 for r in readings)
    assert all(abs(r.ratio - Fraction(v)) <= math.ulp(v) for r, v in zip(readings, values, strict=True))


def test_a_number_of_bfloat16_is_not_taken_for_another_one():
    """0.7 is 179/256 there, 1/√2 is 181/256; 3.14 is 201/64, √39/2 = 3.1225 rounds to 200/64."""
    for value in (0.7, 3.14):
        stored = rounded(value, HALF)
        reading = read(stored, HALF)
        assert rounded(float(reading.ratio) * math.sqrt(reading.root), HALF) == stored


def test_a_rotary_table_in_single_precision_demands_no_roots():
    """No cosine of an integer number of radians is a rational times a root; every root demanded halves the pool of primes."""
    frequency = 10000.0 ** (-torch.arange(0, 64, 2).float() / 64)
    angle = torch.arange(1, 512).float()[:, None] * frequency
    values = torch.cat([angle.cos(), angle.sin()]).double().unique().tolist()
    roots = {read(v, SINGLE).root for v in values} - {1}
    assert len(roots) == 0, f"{len(roots)} roots demanded by {len(values)} entries: {sorted(roots)}"


def test_readings_in_words():
    words = {
        Reading(Fraction(3, 4)): "3/4",
        Reading(Fraction(5)): "5",
        Reading(Fraction(1, 4), 2): "√2/4",
        Reading(Fraction(3, 4), 2): "3√2/4",
        Reading(Fraction(7), 2): "7√2",
        Reading(Fraction(-1, 2), 2): "-√2/2",
        Reading(Fraction(1, 2), 2, pi=1): "√2/2·(1/√π)^1",
        Reading(Fraction(1), ln2=-1): "1·(log 2)^-1",
    }
    assert {r: str(r) for r in words} == words


def test_numpy_scalars_of_single_precision_are_read_as_python_floats():
    assert read(float(np.float32(0.1)), SINGLE).ratio == Fraction(1, 10)
