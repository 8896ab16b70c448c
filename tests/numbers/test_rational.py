"""Zero or not: true identities that SymPy's == does not see, and false ones that look alike."""

from __future__ import annotations

import pytest
import sympy as sp
from exact_reference import modest
from hypothesis import given
from hypothesis import strategies as st

from gradderiv.numbers.rational import Rational
from gradderiv.numbers.symbols import Exp

x, y, z = sp.symbols("x y z", real=True)
E, F = Exp(x), Exp(y)
R = sp.sqrt(x**2 + y**2)


def is_zero(e):
    e = sp.sympify(e)
    return Rational(e).is_zero(e)


TRUE = {
    "a square": (x + y) ** 2 - (x**2 + 2 * x * y + y**2),
    "fractions": 1 / x + 1 / y - (x + y) / (x * y),
    "a telescope": 1 / (x * (x + 1)) - 1 / x + 1 / (x + 1),
    "nested fractions": 1 / (1 + 1 / (1 + 1 / x)) - (1 + x) / (1 + 2 * x),
    "a power of a fraction": (1 / (1 + x)) ** 3 * (1 + x) ** 2 - 1 / (1 + x),
    "a negative power of a product": (x * (y + 1)) ** -2 - 1 / (x**2 * (y + 1) ** 2),
    "softmax sums to one": E / (E + F) + F / (E + F) - 1,
    "softmax differentiated": (E / (E + F)).diff(x) - E * F / (E + F) ** 2,
    "softmax along a shift of the row": (E / (E + F)).diff(x) + (E / (E + F)).diff(y),
    "a root squared": (sp.sqrt(2) * x / 2) ** 2 - x**2 / 2,
    "a root below": 1 / sp.sqrt(2) - sp.sqrt(2) / 2,
    "a root of eight": x / sp.sqrt(8) - sp.sqrt(2) * x / 4,
    "a sum of roots": (sp.sqrt(2) + sp.sqrt(3)) ** 2 - 5 - 2 * sp.sqrt(2) * sp.sqrt(3),
    "a root to the third": sp.sqrt(3) ** 3 * x - 3 * sp.sqrt(3) * x,
    "the golden ratio": ((1 + sp.sqrt(5)) / 2) ** 2 - (1 + sp.sqrt(5)) / 2 - 1,
    "a rationalised denominator": 1 / (1 + sp.sqrt(2)) - (sp.sqrt(2) - 1),
    "a unit row": (x / R) ** 2 + (y / R) ** 2 - 1,
    "the Jacobian of a unit row": (x / R).diff(x) - (1 - x**2 / R**2) / R,
    "a rationalised root": 1 / (R - x) - (R + x) / y**2,
    "a root within a root": (sp.sqrt(1 + sp.sqrt(x)) + 1) * (sp.sqrt(1 + sp.sqrt(x)) - 1) - sp.sqrt(x),
    "exponentials under a root": (E / sp.sqrt(E + F)) * sp.sqrt(E + F) + F - (sp.sqrt(E + F)) ** 2,
    "a constant": sp.Rational(1, 3) + sp.Rational(1, 6) - sp.Rational(1, 2),
    "nothing": sp.Integer(0),
}
FALSE = {
    "a square": (x + y) ** 2 - (x**2 + x * y + y**2),
    "fractions": 1 / x + 1 / y - 2 / (x + y),
    "softmax": E / (E + F) - E / (1 + F),
    "softmax differentiated": (E / (E + F)).diff(x) - E / (E + F),
    "a functional equation": Exp(x + y) - E * F,
    "a derivative of the argument": Exp(x * y).diff(x) - Exp(x * y),
    "the other root": sp.sqrt(2) * x + 2 * x / sp.sqrt(2),
    "another root": sp.sqrt(2) * x - sp.sqrt(3) * x,
    "the root of a polynomial": sp.sqrt(x**2 + 1) - x - 1,
    "its derivative": sp.sqrt(x**2 + y).diff(x) - 2 * x / sp.sqrt(x**2 + y),
    "two roots of polynomials": sp.sqrt(x) * sp.sqrt(y) - sp.sqrt(x + y),
    "a millionth": x * sp.Rational(1_000_001, 1_000_000) - x,
    "a symbol": x,
    "one": sp.Integer(1),
}


@pytest.mark.parametrize("name", TRUE)
def test_true_identities(name):
    assert is_zero(TRUE[name])


@pytest.mark.parametrize("name", FALSE)
def test_false_identities(name):
    assert not is_zero(FALSE[name])


def test_the_cases_are_ones_that_equality_of_expressions_gets_wrong():
    assert sum(e != 0 for e in TRUE.values()) > len(TRUE) / 2


@pytest.mark.parametrize(
    "e",
    [
        (x + sp.sqrt(2)) * (x + sp.sqrt(3)) - (x**2 + sp.sqrt(2) * x + sp.sqrt(3) * x + sp.sqrt(6)),
        (sp.sqrt(2) * x + 1) * (sp.sqrt(5) * y + 1) * sp.sqrt(10)
        - (10 * x * y + 2 * sp.sqrt(5) * x + 5 * sp.sqrt(2) * y + sp.sqrt(10)),
        (sp.sqrt(6) * x + y) * (sp.sqrt(10) * x - y)
        - (2 * sp.sqrt(15) * x**2 - sp.sqrt(6) * x * y + sp.sqrt(10) * x * y - y**2),
    ],
)
def test_roots_that_depend_on_one_another(e):
    """√6 = √2 √3: zero modulo the roots' own squares alone is not the whole of it."""
    assert sp.expand(e) == 0
    assert is_zero(e)


def test_twin_roots_that_depend_on_one_another_in_a_false_identity():
    assert not is_zero(
        (x + sp.sqrt(2)) * (x + sp.sqrt(3)) - (x**2 + sp.sqrt(2) * x + sp.sqrt(3) * x - sp.sqrt(6))
    )


@pytest.mark.parametrize(
    "e",
    [
        ((x + 1) ** 2 - x**2 - 2 * x - 1) / (x**2 - (x - 1) * (x + 1) - 1),
        1 / ((x + 1) ** 2 - x**2 - 2 * x - 1) - 1 / (x**2 - (x - 1) * (x + 1) - 1),
        x / (sp.sqrt(2) * (sp.sqrt(2) + x) - 2 - sp.sqrt(2) * x)
        - y / (sp.sqrt(2) * (sp.sqrt(2) + x) - 2 - sp.sqrt(2) * x),
    ],
)
def test_a_denominator_that_vanishes_identically_is_no_number(e):
    """0/0 is not zero, and 1/0 − 1/0 neither."""
    with pytest.raises((ZeroDivisionError, ValueError)):
        assert is_zero(e) is None


@pytest.mark.parametrize("e", [sp.nan, sp.zoo, sp.oo, sp.sin(x), sp.log(x), sp.exp(x), x**y, sp.pi * x])
def test_what_is_no_rational_function_is_refused(e):
    with pytest.raises(ValueError, match="no rational function"):
        is_zero(e + 0 * x if e is not sp.nan else e)


@modest
@given(st.data())
def test_random_identities(data):
    """a (b + c) = a b + a c, a/b · b = a, (a/b)/(c/b) = a/c for random rational functions; and none with one added."""

    def expression(depth):
        if depth == 0:
            return data.draw(
                st.sampled_from([x, y, z, E, F, Exp(x * y), sp.sqrt(2), sp.Integer(3), sp.Rational(-1, 2)])
            )
        a, b = expression(depth - 1), expression(depth - 1)
        return data.draw(st.sampled_from(["+", "*", "-", "/"])), a, b

    def built(e):
        if not isinstance(e, tuple):
            return e
        op, a, b = e[0], built(e[1]), built(e[2])
        return {"+": a + b, "*": a * b, "-": a - b, "/": a / (b**2 + 7)}[op]

    a, b, c = (built(expression(2)) for _ in range(3))
    for identity in (
        a * (b + c) - (a * b + a * c),
        a / (b**2 + 7) * (b**2 + 7) - a,
        (a / (b**2 + 7)) / ((c**2 + 7) / (b**2 + 7)) - a / (c**2 + 7),
        (a + b) ** 3 - a**3 - 3 * a**2 * b - 3 * a * b**2 - b**3,
    ):
        assert is_zero(identity)
        assert not is_zero(identity + sp.Rational(1, 10**6))


def test_one_ring_decides_many_expressions():
    first, second = (x + y) ** 2 - x**2, E / (E + F)
    ring = Rational(first, second)
    assert not ring.is_zero(first)
    assert ring.is_zero(first - 2 * x * y - y**2)
    assert ring.is_zero(second * (E + F) - E)
    assert not ring.is_zero(second - first)
