"""LayerNorm and RMSNorm: what must hold for their gradients whatever the reference, and the slips that people make."""

from __future__ import annotations

import pytest
import torch

from gradderiv.numbers.field import Field
from gradderiv.numbers.rational import Rational
from gradderiv.numbers.symbols import Symbols
from gradderiv.rules.layer_norm import LAYER_NORM, layer_norm, layer_norm_vjp
from gradderiv.rules.rms_norm import RMS_NORM, rms_norm, rms_norm_jvp, rms_norm_vjp, rms_norm_vjp_jvp


def eighths(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randint(-12, 13, shape, generator=generator).double() / 8


KINDS = {"float64": eighths, "field": lambda: Field(seed=2, lanes=2).random}


def zero(x):
    if hasattr(x, "system"):
        return not bool(x.system.differs(x, torch.zeros_like(x)).any())
    return bool((x.abs() < 1e-12).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.0, 0.125])
def test_the_gradient_of_layer_norm_has_row_sum_zero(kind, eps):
    """A shift of a row changes nothing behind LayerNorm, and something behind RMSNorm."""
    make = KINDS[kind]()
    X, gain, shift, dY = make(2, 3, 5), make(5), make(5), make(2, 3, 5)
    _, saved = layer_norm(X, gain, shift, eps=eps)
    g = layer_norm_vjp(dY, saved)
    assert zero(g.X.sum(-1))
    assert zero(saved.N.sum(-1))
    assert not zero(g.X)
    assert not zero(rms_norm_vjp(dY, rms_norm(X, gain, eps=eps)[1]).X.sum(-1))


@pytest.mark.parametrize("eps", [0.0, 0.125])
def test_without_epsilon_the_gradients_are_orthogonal_to_the_rows(eps):
    """The length of a row then changes nothing. Over the field a root is free of what it is the root of: floats and symbols show this."""
    make = eighths()
    X, gain, dY = make(2, 3, 5), make(5), make(2, 3, 5)
    _, layer = layer_norm(X, gain, eps=eps)
    _, rms = rms_norm(X, gain, eps=eps, offset=1.0)
    for g, N in ((layer_norm_vjp(dY, layer).X, layer.N), (rms_norm_vjp(dY, rms).X, rms.N)):
        assert zero((g * X).sum(-1)) == zero((g * N).sum(-1)) == (eps == 0)
        assert not zero(g)


@pytest.mark.parametrize("eps", [0, 1])
def test_on_symbols_too(eps):
    system = Symbols()
    X, gain, dY = system.symbols("x", 1, 2), system.symbols("g", 2), system.symbols("d", 1, 2)
    (product,) = system.entries((rms_norm_vjp(dY, rms_norm(X, gain, eps=eps)[1]).X * X).sum(-1))
    assert Rational(product).is_zero(product) == (eps == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_is_a_gain_that_is_stored_less_one(kind):
    """Value, tangent, gradients and second order of 1 + γ are those of the gain γ′ = 1 + γ."""
    make = KINDS[kind]()
    X, gain, dY, dY_dot, X_dot = make(3, 5), make(5), make(3, 5), make(3, 5), make(3, 5)
    gain_dot = make(5)
    (Y, saved), (Z, other) = rms_norm(X, gain, offset=1.0), rms_norm(X, gain + 1)
    pairs = [(Y, Z), (rms_norm_jvp(saved, X_dot, gain_dot), rms_norm_jvp(other, X_dot, gain_dot))]
    pairs += zip(rms_norm_vjp(dY, saved), rms_norm_vjp(dY, other), strict=True)
    given = dY_dot, X_dot, gain_dot
    pairs += zip(rms_norm_vjp_jvp(dY, saved, *given), rms_norm_vjp_jvp(dY, other, *given), strict=True)
    assert all(zero(a - b) for a, b in pairs)
    assert not zero(rms_norm_vjp(dY, rms_norm(X, gain)[1]).X - rms_norm_vjp(dY, saved).X)  # Liger #74


def test_layer_norm_of_centred_rows_is_rms_norm():
    make = eighths()
    X, gain, dY = make(3, 5), make(5), make(3, 5)
    X = X - X.mean(-1, keepdim=True)
    (Y, saved), (Z, other) = layer_norm(X, gain, eps=0.1), rms_norm(X, gain, eps=0.1)
    assert zero(Y - Z)
    a, b = layer_norm_vjp(dY, saved), rms_norm_vjp(dY, other)
    assert a.shift is None
    assert zero(a.gain - b.gain)
    assert zero(a.X - (b.X - b.X.mean(-1, keepdim=True)))  # the one term that LayerNorm has more
    assert not zero(a.X - b.X)


@pytest.mark.parametrize("operator", [LAYER_NORM, RMS_NORM], ids=["layer", "rms"])
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_large_and_small_rows_stay_finite(operator, size):
    """Up to where their squares leave the range of float64."""
    X = size * torch.tensor([[1.0, 2.0, -4.0]], dtype=torch.float64)
    gain = torch.ones(3, dtype=torch.float64)
    Y, saved = operator.f(X, gain, eps=1e-5)
    g = operator.vjp(torch.ones_like(X), saved)
    assert all(bool(t.isfinite().all()) for t in (Y, *(t for t in g if t is not None)))


def test_a_constant_row_is_zero_and_its_gradient_is_scaled_by_epsilon_alone():
    """var = 0: X̂ = 0, and the Jacobian is (I − 11ᵀ/d)/√ε."""
    X, dY = torch.full((1, 4), 3.0, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    Y, saved = layer_norm(X, torch.ones(4, dtype=torch.float64), eps=0.25)
    assert not Y.any()
    torch.testing.assert_close(layer_norm_vjp(dY, saved).X, 2 * (dY - dY.mean(-1, keepdim=True)))
