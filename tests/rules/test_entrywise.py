"""A sum and a product of two tensors: a residual passes its gradient on whole, a gate passes it on times the other factor."""

from __future__ import annotations

import pytest
import torch

from gradderiv.errors import InputError
from gradderiv.rules.entrywise import ADD, MULTIPLY, add, add_vjp, multiply, multiply_vjp
from gradderiv.rules.steps import run, run_vjp, step


def r(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_both_paths_of_a_residual_get_the_whole_gradient():
    A, B, dY = r(2, 3), r(2, 3), r(2, 3)
    Y, saved = add(A, B)
    g = add_vjp(dY, saved)
    torch.testing.assert_close(Y, A + B)
    assert torch.equal(g.A, dY)
    assert torch.equal(g.B, dY)


def test_a_factor_gets_the_other_one():
    A, B, dY = r(2, 3), r(2, 3), r(2, 3)
    Y, saved = multiply(A, B)
    g = multiply_vjp(dY, saved)
    torch.testing.assert_close(Y, A * B)
    torch.testing.assert_close(g.A * A, g.B * B)  # ⟨dA, A⟩ = ⟨dB, B⟩ entry by entry
    torch.testing.assert_close(g.A, dY * B)


def test_what_is_added_to_itself_or_multiplied_by_itself_collects_both_paths():
    x, dY = r(2, 3), r(2, 3)
    for operator, factor in ((ADD, 2 * torch.ones_like(x)), (MULTIPLY, 2 * x)):
        trace = run([step(operator, "x x -> y")], {"x": x})
        torch.testing.assert_close(run_vjp({"y": dY}, trace)["x"], factor * dY)


@pytest.mark.parametrize("operator", [add, multiply])
def test_what_would_broadcast_is_refused(operator):
    """A residual of another shape would make a gradient of another shape."""
    with pytest.raises(InputError, match="needs two tensors of one shape"):
        operator(r(2, 3), r(3))
