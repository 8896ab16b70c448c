"""Activations: their derivatives at points where these are known, and how far one GELU is from the other."""

from __future__ import annotations

import math

import pytest
import torch

from gradderiv.checks.exact import exactly
from gradderiv.errors import InputError
from gradderiv.rules.activation import (
    FUNCTIONS,
    Activation,
    activate,
    activate_jvp,
    activate_vjp,
    activate_vjp_jvp,
)

X = torch.linspace(-4, 4, 41, dtype=torch.float64)  # with 0


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        ("relu", 0.0, 0.0),  # by convention, as torch has it
        ("silu", 0.5, 0.5),
        ("gelu", 0.5, 2 / math.sqrt(2 * math.pi)),
        ("gelu_tanh", 0.5, math.sqrt(2 / math.pi)),
    ],
)
def test_the_derivatives_at_zero(function, first, second):
    """f(x) = x g(x) with g(0) = ½ has f′(0) = ½ and f″(0) = 2 g′(0)."""
    x = torch.zeros(1, dtype=torch.float64)
    assert float(FUNCTIONS[function].f(x)) == 0
    assert float(FUNCTIONS[function].first(x)) == pytest.approx(first)
    assert float(FUNCTIONS[function].second(x)) == pytest.approx(second)


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh"])
def test_an_odd_gate_makes_the_odd_part_linear(function):
    """f(x) − f(−x) = x, so that f′(x) + f′(−x) = 1 and f″ is even."""
    f = FUNCTIONS[function]
    torch.testing.assert_close(f.f(X) - f.f(-X), X)
    torch.testing.assert_close(f.first(X) + f.first(-X), torch.ones_like(X))
    torch.testing.assert_close(f.second(X), f.second(-X))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_far_away_they_are_the_identity_and_zero(function):
    far = torch.tensor([-60.0, 60.0], dtype=torch.float64)
    f = FUNCTIONS[function]
    for found, expected in ((f.f(far), [0.0, 60.0]), (f.first(far), [0.0, 1.0]), (f.second(far), [0.0, 0.0])):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_one_gelu_is_near_the_other_and_not_it():
    """Less than 5·10⁻⁴ apart, value and derivative: an absolute tolerance of 10⁻³ takes one for the other."""
    one, other = FUNCTIONS["gelu"], FUNCTIONS["gelu_tanh"]
    for a, b in ((one.f, other.f), (one.first, other.first)):
        gap = float((a(X) - b(X)).abs().max())
        assert 1e-4 < gap < 1e-3


def derivatives(told, x, u, dY, dY_dot):
    """The derivatives of the rule beside torch's own, for a function of that name."""
    _, saved = activate(x, function=told)
    return {
        "jvp": activate_jvp(saved, u),
        "vjp": activate_vjp(dY, saved).X,
        "vjp_jvp": activate_vjp_jvp(dY, saved, dY_dot, u).X,
    }


@pytest.mark.parametrize("function", FUNCTIONS)
def test_exactly_they_are_the_derivatives_of_what_the_function_is_made_of(function):
    """f as its paper has it, through autograd over the field; and the other GELU, as a twin, is refused."""
    from gradderiv.checks.reference import TEXTBOOK

    def run(told):
        def pairs(field):
            x, dY = field.random(3), field.random(3)
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                Y = TEXTBOOK["activation"](leaf, function=function)
                (g,) = torch.autograd.grad(Y, leaf, dY)
            value, saved = activate(x, function=told)
            return {"value": (value, Y.detach()), "gradient": (activate_vjp(dY, saved).X, g)}

        return {name: outcome.equal for name, outcome in exactly(pairs).items()}

    assert run(function) == {"value": True, "gradient": True}
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "silu": "relu", "relu": "silu"}[function]
    assert run(other) == {"value": False, "gradient": False}


def test_a_function_of_ones_own_is_a_row(monkeypatch):
    """x²: three lines, and the four functions of the rule follow."""
    square = Activation(torch.square, lambda x: 2 * x, lambda x: torch.full_like(x, 2))
    monkeypatch.setitem(FUNCTIONS, "square", square)
    u, dY, dY_dot = (torch.randn_like(X) for _ in range(3))
    found = derivatives("square", X, u, dY, dY_dot)
    torch.testing.assert_close(found["jvp"], 2 * X * u)
    torch.testing.assert_close(found["vjp"], 2 * X * dY)
    torch.testing.assert_close(found["vjp_jvp"], 2 * u * dY + 2 * X * dY_dot)


def test_the_name_of_a_library_is_answered_with_ours():
    with pytest.raises(InputError) as caught:
        activate(X, function="gelu_new")
    assert str(caught.value) == (
        "activate knows relu, silu, gelu, gelu_tanh\n  came:  'gelu_new'\n"
        "  cause: the name that a library has for it: gelu_new, gelu_pytorch_tanh, swish\n"
        "  do:    gelu_tanh for the first two, silu for the third"
    )
