"""Tensors of SymPy expressions: every operation against the same one on NumPy arrays of expressions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp
import torch
from operations import EXACT_IN_FLOAT64, FRACTIONS, WRITES

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.rational import Rational
from gradderiv.numbers.symbols import KAPPA, LN2, Exp, Symbols, SymbolTensor


@pytest.fixture
def system():
    return Symbols()


def is_zero(e):
    return Rational(e).is_zero(e)


def equal(x, y):
    """Entry by entry, as rational functions."""
    return x.shape == y.shape and all(
        is_zero(sp.sympify(a - b)) for a, b in zip(x.reshape(-1), y.reshape(-1), strict=True)
    )


def outputs(out):
    return list(out) if isinstance(out, (list, tuple)) else [out]


CASES = {
    **EXACT_IN_FLOAT64,
    **{name: (f, shapes) for name, (f, _, shapes) in FRACTIONS.items()},
    **{name: (f, [(3, 4), (3, 4)]) for name, f in WRITES.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_on_expressions_is_the_table_on_numbers(name):
    """Symbols in, eighths put in their place afterwards: what torch computes on the eighths."""
    function, shapes = CASES[name]
    system = Symbols()
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randint(1, 33, s, generator=generator).double() / 8 for s in shapes]
    inputs = [system.symbols(f"x{k}", *s) for k, s in enumerate(shapes)]
    values = {
        symbol: sp.Rational(value)
        for x, t in zip(inputs, tensors, strict=True)
        for symbol, value in zip(system.entries(x).reshape(-1), t.reshape(-1).tolist(), strict=True)
    }
    before = [system.entries(x).copy() for x in inputs]
    found, expected = outputs(function(*inputs)), outputs(function(*[t.clone() for t in tensors]))
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert isinstance(x, SymbolTensor)
        assert x.shape == y.shape
        for e, v in zip(system.entries(x).reshape(-1), y.reshape(-1).tolist(), strict=True):
            number = sp.sympify(e).xreplace(values)
            assert not number.free_symbols
            assert float(number) == pytest.approx(
                v, rel=1e-7 if y.dtype == torch.float32 else 1e-12, abs=1e-12
            )
    for x, old in zip(inputs, before, strict=True):
        assert (system.entries(x) == old).all()


# ---------------------------------------------------------------- in and out


def test_symbols_have_names_and_indices_from_one(system):
    x = system.symbols("x", 2, 3)
    assert [str(e) for e in system.entries(x).reshape(-1)] == ["x_11", "x_12", "x_13", "x_21", "x_22", "x_23"]
    assert str(system.entries(system.symbols("tau"))) == "tau"
    assert all(e.is_real for e in system.entries(x).reshape(-1))
    assert system.entries(x.mT).shape == (3, 2)
    assert system.entries(x).dtype == object
    assert repr(x[0, :2]) == "SymbolTensor([x_11, x_12], dtype=torch.float64)"


def test_constants_are_read(system):
    x = system.symbols("x", 1)
    for value, expected in (
        (0.1, sp.Rational(1, 10)),
        (8**-0.5, sp.sqrt(2) / 4),
        (3, sp.Integer(3)),
        (-0.25, sp.Rational(-1, 4)),
        (math.e, sp.Rational(math.e)),
        (2 / math.sqrt(math.pi), 2 * KAPPA),
        (math.pi, KAPPA**-2),
        (math.log(2), LN2),
        (1 / math.log(2), 1 / LN2),
    ):
        assert system.entries(x * value)[0] == expected * sp.Symbol("x_1", real=True)
    assert system.entries(x + torch.tensor([1 / 3], dtype=torch.float64))[0] - sp.Symbol(
        "x_1", real=True
    ) == sp.Rational(1, 3)


def test_one_expression_is_stored_once(system):
    x = system.symbols("x", 50)
    y = x + x
    before = len(system.expressions)
    _ = x + x, 2 * x, x * 2, y.clone(), y.flip(0)
    assert len(system.expressions) == before + 1  # the constant 2


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_constants_that_are_no_numbers(system, bad):
    with pytest.raises(NoExactMeaning):
        system.symbols("x", 2) + bad


# ---------------------------------------------------------------- exponentials


def test_exp_is_opaque_and_its_own_derivative():
    x, y = sp.symbols("x y", real=True)
    assert Exp(x) * Exp(y) != Exp(x + y)
    assert Exp(x) ** 2 != Exp(2 * x)
    assert Exp(sp.Integer(0)) == 1
    assert Exp(-sp.oo) == 0
    assert Exp(x * y).diff(x) == y * Exp(x * y)
    assert Exp(Exp(x)).diff(x) == Exp(x) * Exp(Exp(x))
    assert sp.exp(x) * sp.exp(2 * x) == sp.exp(3 * x)  # a twin: SymPy's own merges
    assert Exp(x) * Exp(2 * x) != Exp(3 * x)


def test_exp_of_a_sum_with_logarithms():
    a, u, v = sp.Symbol("a", real=True), sp.Symbol("u", positive=True), sp.Symbol("v", positive=True)
    assert Exp(a + sp.log(u)) == u * Exp(a)
    assert Exp(a - sp.log(u)) == Exp(a) / u
    assert Exp(sp.log(u)) == u
    assert Exp(2 * sp.log(u) - sp.log(v)) == u**2 / v
    assert Exp(sp.log(Exp(a))) == Exp(a)
    assert Exp(sp.log(u) / 2).has(Exp)  # no root: not rational
    assert Exp(a * sp.log(u)).has(Exp)


def test_exp_of_the_same_argument_in_another_form_is_the_same(system):
    x, y = system.symbols("x", 1), system.symbols("y", 1)
    one, two = torch.exp((x + y) * (x - y)), torch.exp(x * x - y * y)
    assert system.entries(one)[0] == system.entries(two)[0]
    assert system.entries(torch.exp(x - x))[0] == 1
    assert system.entries(torch.exp(x * y))[0] != system.entries(torch.exp(x + y))[0]


def softmax(S):
    E = np.frompyfunc(Exp, 1, 1)(S)
    return E / E.sum(-1, keepdims=True)


def test_softmax_in_its_spellings(system):
    S = system.symbols("s", 2, 3)
    P = softmax(system.entries(S))
    m = S.amax(-1, keepdim=True)
    shifted = torch.exp(S - m)
    for spelled in (
        torch.softmax(S, -1),
        shifted / shifted.sum(-1, keepdim=True),
        torch.exp(S - torch.logsumexp(S, -1, keepdim=True)),
        torch.log_softmax(S, -1).exp(),
        torch.exp(S - (m + shifted.sum(-1, keepdim=True).log())),
    ):
        assert spelled.shape == S.shape
        assert equal(system.entries(spelled), P)
    assert not equal(system.entries(torch.softmax(S, 0)), P)
    assert not equal(system.entries(shifted), P)


def test_masks_of_minus_infinity(system):
    S = system.symbols("s", 2, 3)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = S.masked_fill(~mask, -math.inf)
    assert torch.equal(masked == -math.inf, ~mask)
    E = np.frompyfunc(Exp, 1, 1)(system.entries(S)) * mask.numpy().astype(int)
    P = E / E.sum(-1, keepdims=True)
    for spelled in (
        torch.softmax(masked, -1),
        torch.softmax(S + torch.zeros(2, 3).masked_fill(~mask, -math.inf), -1),
    ):
        assert equal(system.entries(spelled), P)
    assert not equal(system.entries(torch.softmax(S.masked_fill(~mask, -10000.0), -1)), P)
    with pytest.raises(NoExactMeaning):
        masked * mask


def test_the_shift_of_a_row_is_one_symbol(system):
    S = system.symbols("s", 2, 3)
    m = system.entries(S.amax(-1))
    assert m[0] != m[1]
    assert (system.entries(S.flip(-1).amax(-1)) == m).all()
    assert system.entries(torch.maximum(S[0, 0], S[0, 1])) == system.entries(torch.maximum(S[0, 1], S[0, 0]))
    assert system.entries(torch.full_like(S, -math.inf).amax(-1))[0] == -sp.oo


def test_zero_over_zero_is_not_taken_for_a_number(system):
    x = system.symbols("x", 1)
    empty = x.masked_fill(torch.tensor([True]), -math.inf)
    for program in (
        lambda: (x - x) / (x - x),
        lambda: 1 / (x - x),
        lambda: torch.softmax(empty, -1),
        lambda: empty - empty,
    ):
        try:
            (e,) = system.entries(program())
        except NoExactMeaning:
            continue
        with pytest.raises(ValueError, match="no rational function"):
            is_zero(e)


# ---------------------------------------------------------------- autograd and views


def test_autograd_over_expressions_is_the_derivative_of_the_expressions(system):
    Q, K = system.symbols("q", 2, 2).requires_grad_(), system.symbols("k", 3, 2).requires_grad_()
    weights = system.symbols("w", 2, 3)
    loss = (torch.softmax(Q @ K.mT * 2**-0.5, -1) * weights).sum()
    grads = torch.autograd.grad(loss, (Q, K))
    expression = system.entries(loss.detach()).item()
    for x, g in zip((Q, K), grads, strict=True):
        symbols = system.entries(x.detach())
        expected = np.frompyfunc(lambda s: expression.diff(s), 1, 1)(symbols)
        assert equal(system.entries(g), expected)
        assert not equal(system.entries(g), 2 * expected)


def test_writing_into_views(system):
    x, y = system.symbols("x", 2, 2), system.symbols("y", 2)
    z = x.clone()
    view = z.mT[0]
    view += y
    z[1, 1] = 0.5
    a, b = sp.symbols("x_11 x_21", real=True)
    y1, y2 = sp.symbols("y_1 y_2", real=True)
    assert system.entries(z).tolist() == [[a + y1, sp.Symbol("x_12", real=True)], [b + y2, sp.Rational(1, 2)]]
    assert system.entries(view).tolist() == [a + y1, b + y2]
    assert system.entries(x)[0, 0] == a


def test_tables_do_not_mix():
    with pytest.raises(NoExactMeaning, match="another"):
        Symbols().symbols("x", 2) + Symbols().symbols("x", 2)
