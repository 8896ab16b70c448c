"""Dual numbers: the tangent of every operation, against torch's own forward mode and against exact derivatives."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from exact_reference import assert_is, entered, modest, objects, same
from hypothesis import given
from hypothesis import strategies as st
from operations import ANALYTIC, EXACT_IN_FLOAT64, FRACTIONS, SHIFTS, WRITES

from gradderiv.errors import NoExactMeaning
from gradderiv.numbers.dual import Dual, DualTensor
from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import FieldTensor

# forward mode announces, at its first use, that its own torch.jit is deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

DUAL = Dual()
CASES = {
    **EXACT_IN_FLOAT64,
    **{name: (f, shapes) for name, (f, _, shapes) in FRACTIONS.items()},
    **ANALYTIC,
    **{name: (f, [(3, 4), (3, 4)]) for name, f in WRITES.items()},
}
NO_FORWARD_MODE = {  # torch itself has no forward derivative of these: the primal alone is compared
    "_reshape_alias", "slice_backward", "select_backward", "diagonal_backward", "copy", "lift_fresh",
    "embedding bag", "embedding bag, last offset", "embedding bag without gradient", "embedding bag of its weights",
    "embedding bag backward", "embedding bag backward, of its weights",
}  # fmt: skip
DETACHES = {"detach", "detached alias"}  # the tangent goes on, and torch's does not


def outputs(out):
    return list(out) if isinstance(out, (list, tuple)) else [out]


def eighths(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 33, s, generator=generator).double() / 8 for s in shapes]


@pytest.mark.parametrize("name", sorted({*CASES} - NO_FORWARD_MODE - DETACHES))
def test_tangents_are_those_of_torch(name):
    function, shapes = CASES[name]
    primals, tangents = eighths(shapes, 0), eighths(shapes, 1)
    duals = [DUAL.make(p.clone(), t.clone()) for p, t in zip(primals, tangents, strict=True)]
    found = outputs(function(*duals))
    expected, expected_dot = torch.func.jvp(
        lambda *xs: tuple(outputs(function(*xs))), tuple(primals), tuple(tangents)
    )
    assert len(found) == len(expected)
    for x, y, y_dot in zip(found, expected, expected_dot, strict=True):
        assert isinstance(x, DualTensor)
        assert x.shape == y.shape
        torch.testing.assert_close(x.primal.double(), y.double(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(x.tangent.double(), y_dot.double(), rtol=1e-13, atol=1e-13)
    for x, p, t in zip(duals, primals, tangents, strict=True):
        assert torch.equal(x.primal, p)
        assert torch.equal(x.tangent, t)


@pytest.mark.parametrize("name", sorted(NO_FORWARD_MODE))
def test_primals_are_those_of_torch(name):
    function, shapes = CASES[name]
    primals, tangents = eighths(shapes, 0), eighths(shapes, 1)
    (x,) = outputs(function(*map(DUAL.make, primals, tangents)))
    assert torch.equal(x.primal, function(*primals))
    if name != "copy":
        assert torch.equal(x.tangent, function(*tangents))  # linear


@pytest.mark.parametrize("name", [n for n in CASES if n not in WRITES and n != "copy"])
def test_one_argument_moves_and_the_others_are_constants(name):
    """A missing tangent is zero; an ordinary tensor beside a dual one is a constant."""
    function, shapes = CASES[name]
    primals, tangents = eighths(shapes, 0), eighths(shapes, 1)
    for i in range(len(shapes)):
        zeros = [t if j == i else torch.zeros_like(t) for j, t in enumerate(tangents)]
        full = outputs(function(*map(DUAL.make, primals, zeros)))
        alone = [DUAL.make(p, tangents[j]) if j == i else DUAL.make(p) for j, p in enumerate(primals)]
        for x, y in zip(outputs(function(*alone)), full, strict=True):
            assert torch.equal(x.primal, y.primal)
            torch.testing.assert_close(x.tangent, y.tangent, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", [n for n in CASES if n not in WRITES])
def test_a_result_that_is_written_over_leaves_the_arguments_alone(name):
    """Where torch's does: primal and tangent of an argument may change only through a view of it."""
    function, shapes = CASES[name]
    primals, tangents = eighths(shapes, 0), eighths(shapes, 1)
    floats = [p.clone() for p in primals]
    try:
        for y in outputs(function(*floats)):
            y.mul_(3).sub_(1000)
    except RuntimeError:  # entries of an expanded view are one
        return
    for moving in range(len(shapes)):
        duals = [
            DUAL.make(p.clone(), t.clone()) if j == moving else DUAL.make(p.clone())
            for j, (p, t) in enumerate(zip(primals, tangents, strict=True))
        ]
        for y in outputs(function(*duals)):
            y.mul_(3).sub_(1000)
        for j, (x, f) in enumerate(zip(duals, floats, strict=True)):
            changed = not torch.equal(f, primals[j])
            assert torch.equal(x.primal, primals[j]) == (not changed)
            if j == moving:
                assert torch.equal(x.tangent, tangents[j]) == (not changed), (
                    "the tangent of the argument was overwritten"
                )


def test_twin_a_broadcast_tangent_is_its_own():
    """x + C broadcasts x's tangent over the rows of C; writing into one row must not reach the others."""
    x = DUAL.make(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    z = x + torch.zeros(3, 2)
    z[0] = 0.0
    assert z.tangent.tolist() == [[0, 0], [3, 4], [3, 4]]
    assert x.tangent.tolist() == [3, 4]


# ---------------------------------------------------------------- conventions


def test_a_division_by_an_integer_is_in_the_precision_of_the_tensor():
    x = DUAL.make(torch.ones(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64))
    for y in (x / 3, x.sum() / 18, x.mean() / 3, x.clone().div_(3)):
        assert (y.primal - 1 / 3).abs().max().item() < 1e-16
        assert (y.tangent - 1 / 3).abs().max().item() < 1e-16


def test_detach_keeps_the_tangent():
    x = DUAL.make(torch.tensor([2.0]), torch.tensor([5.0]))
    for y in (x.detach(), x.detach().clone(), x.data * 1):
        assert y.tangent.tolist() == [5]
    with torch.no_grad():
        assert (x * x).tangent.tolist() == [20]
    z = x.clone()
    z.detach().mul_(3)
    assert (z.primal.item(), z.tangent.item()) == (6, 15)


@pytest.mark.parametrize("name", SHIFTS)
def test_the_maximum_is_a_shift_with_tangent_zero(name):
    function, shapes = SHIFTS[name]
    primals, tangents = eighths(shapes, 0), eighths(shapes, 1)
    out = function(*map(DUAL.make, primals, tangents))
    assert torch.equal(out.primal, function(*primals))
    assert torch.equal(out.tangent, torch.zeros_like(out.primal))


def test_a_program_that_does_not_depend_on_its_shift_has_the_right_tangent():
    p, t = eighths([(3, 4)], 0)[0], eighths([(3, 4)], 1)[0]

    def shifted(S):
        E = torch.exp(S - S.amax(-1, keepdim=True))
        return E / E.sum(-1, keepdim=True)

    P, P_dot = torch.func.jvp(lambda S: torch.softmax(S, -1), (p,), (t,))
    out = shifted(DUAL.make(p, t))
    torch.testing.assert_close(out.primal, P, rtol=1e-13, atol=0)
    torch.testing.assert_close(out.tangent, P_dot, rtol=1e-12, atol=1e-15)


def test_large_scores_do_not_overflow():
    S = DUAL.make(
        torch.tensor([[1e4, 1e4 - 1]], dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    )
    P = torch.softmax(S, -1)
    p = 1 / (1 + math.exp(-1))
    assert P.primal[0, 0].item() == pytest.approx(p)
    assert P.tangent[0, 0].item() == pytest.approx(2 * p * (1 - p))
    assert torch.logsumexp(S, -1).primal.item() == pytest.approx(1e4 + math.log1p(math.exp(-1)))


def test_masks_of_minus_infinity():
    p, t = eighths([(2, 3)], 0)[0], eighths([(2, 3)], 1)[0]
    mask = torch.tensor([[True, False, True], [True, True, True]])
    masked = DUAL.make(p, t).masked_fill(~mask, -math.inf)
    assert torch.equal(masked == -math.inf, ~mask)
    P, P_dot = torch.func.jvp(lambda S: torch.softmax(S.masked_fill(~mask, -math.inf), -1), (p,), (t,))
    out = torch.softmax(masked, -1)
    torch.testing.assert_close(out.primal, P)
    torch.testing.assert_close(out.tangent, P_dot)
    assert out.tangent[0, 1].item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    p, t = (x.to(dtype) for x in (*eighths([(2, 3)], 0), *eighths([(2, 3)], 1)))
    out = torch.softmax(DUAL.make(p, t) @ p.mT, -1)
    assert out.dtype == out.primal.dtype == out.tangent.dtype == dtype


def test_an_ordinary_buffer_is_refused_and_a_made_one_is_dual():
    x = DUAL.make(torch.ones(3), torch.ones(3))
    with pytest.raises(NoExactMeaning):
        torch.zeros(3).add_(x)
    out = torch.zeros_like(x)
    out[1:] += x[1:] * 2
    assert out.tangent.tolist() == [0, 2, 2]


def test_repr_says_the_shape():
    assert repr(DUAL.make(torch.ones(2, 3))) == "DualTensor(shape=(2, 3), dtype=torch.float32)"


# ---------------------------------------------------------------- the forward of a hand-written Function alone


class Cubed(torch.autograd.Function):
    """x³, with a backward that is wrong on purpose, and with forward-mode rules that would raise."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            y = x.detach() * x
        return y * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x * x  # the factor 3 forgotten

    @staticmethod
    def jvp(ctx, t):
        raise AssertionError("the jvp of the Function was called")


def test_only_the_forward_of_a_function_counts():
    p, t = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 10.0])
    out = Cubed.apply(DUAL.make(p, t))
    assert out.primal.tolist() == [8, -1]
    assert out.tangent.tolist() == [12, 30]
    x = p.clone().requires_grad_()
    (wrong,) = torch.autograd.grad(Cubed.apply(x).sum(), x)
    assert wrong.tolist() == [4, 1]


# ---------------------------------------------------------------- over the field


FIELD = Field(seed=8, lanes=2, roots=frozenset({2}))


def over_field(values, tangents):
    return DUAL.make(entered(FIELD, values), entered(FIELD, tangents))


@modest
@given(st.lists(st.fractions(max_denominator=9).filter(bool), min_size=8, max_size=8))
def test_exact_derivatives_of_a_rational_function(values):
    """f = (x y + x³)/(1 + y²) + x/3, entry by entry: its directional derivative from fractions"""
    x, y, u, v = (np.array(values[i : i + 2], dtype=object) for i in (0, 2, 4, 6))
    a, b = over_field(x, u), over_field(y, v)
    out = (a * b + a**3) / (1 + b**2) + a / 3
    n, d = x * y + x**3, 1 + y**2
    assert_is(out.primal, n / d + x / 3)
    n_dot, d_dot = u * y + x * v + 3 * x**2 * u, 2 * y * v
    assert_is(out.tangent, (n_dot * d - n * d_dot) / d**2 + u * Fraction(1, 3))


@pytest.mark.parametrize("name", [n for n in EXACT_IN_FLOAT64 if n not in NO_FORWARD_MODE])
def test_the_table_over_the_field_has_the_tangents_of_floats(name):
    """Residues of the tangent that float64 computes without rounding."""
    function, shapes = EXACT_IN_FLOAT64[name]
    primals, tangents = eighths(shapes, 0), eighths(shapes, 1)
    expected = outputs(function(*map(DUAL.make, primals, tangents)))
    found = outputs(
        function(*(over_field(objects(p), objects(t)) for p, t in zip(primals, tangents, strict=True)))
    )
    for x, y in zip(found, expected, strict=True):
        assert isinstance(x.primal, FieldTensor)
        assert_is(x.primal, objects(y.primal))
        assert_is(x.tangent, objects(y.tangent))


def test_opaque_functions_over_the_field():
    p, t = FIELD.random(3, 4), FIELD.random(3, 4)
    S = DUAL.make(p, t)
    E = p.exp()
    P = E / E.sum(-1, keepdim=True)
    P_dot = P * (t - (P * t).sum(-1, keepdim=True))
    assert same(S.exp().tangent, E * t)
    assert same(S.log().tangent, t / p)
    assert same(torch.softmax(S, -1).tangent, P_dot)
    assert same(torch.logsumexp(S, -1).tangent, (P * t).sum(-1))
    assert same(torch.log_softmax(S, -1).tangent, t - (P * t).sum(-1, keepdim=True))
    lse = torch.logsumexp(S, -1, keepdim=True)
    assert same(torch.exp(S - lse).tangent, P_dot)
    shifted = torch.exp(S - S.amax(-1, keepdim=True))
    assert same((shifted / shifted.sum(-1, keepdim=True)).tangent, P_dot)
    assert not same(torch.softmax(S, -1).tangent, P * t)


def blockwise(S, V, block, *, logs=False):
    """softmax(S) V by blocks of keys: with a running maximum, or by logsumexp and logaddexp."""
    O = torch.zeros_like(S[:, :1]).expand(S.shape[0], V.shape[1]) + torch.zeros_like(V[:1])
    m = torch.full_like(S[:, :1], -math.inf)
    r = torch.zeros_like(m.masked_fill(m == -math.inf, 0.0))
    for start in range(0, S.shape[1], block):
        s, v = S[:, start : start + block], V[start : start + block]
        if logs:
            new = torch.logaddexp(m, torch.logsumexp(s, -1, keepdim=True))
            O = O * torch.exp(m - new) + torch.exp(s - new) @ v
        else:
            new = torch.maximum(m, s.amax(-1, keepdim=True))
            p = torch.exp(s - new)
            r = r * torch.exp(m - new) + p.sum(-1, keepdim=True)
            O = O * torch.exp(m - new) + p @ v
        m = new
    return O if logs else O / r


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_blockwise_softmax_over_the_field_has_the_tangent_of_the_whole(block, logs):
    p, t, v, v_dot = FIELD.random(3, 4), FIELD.random(3, 4), FIELD.random(4, 2), FIELD.random(4, 2)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    mask |= logs  # log has no derivative at the 0 of a block that is masked altogether
    E = p.exp() * mask
    P = E / E.sum(-1, keepdim=True)
    P_dot = P * (t - (P * t).sum(-1, keepdim=True))
    out = blockwise(DUAL.make(p, t).masked_fill(~mask, -math.inf), DUAL.make(v, v_dot), block, logs=logs)
    assert same(out.primal, P @ v)
    assert same(out.tangent, P_dot @ v + P @ v_dot)
    assert not same(out.tangent, P_dot @ v)
    floats = [torch.randn(s, dtype=torch.float64) for s in ((3, 4), (3, 4), (4, 2), (4, 2))]
    S = DUAL.make(*floats[:2]).masked_fill(~mask, -math.inf)
    out = blockwise(S, DUAL.make(*floats[2:]), block, logs=logs)
    f = lambda S, V: torch.softmax(S.masked_fill(~mask, -math.inf), -1) @ V  # noqa: E731
    O, O_dot = torch.func.jvp(f, (floats[0], floats[2]), (floats[1], floats[3]))
    torch.testing.assert_close(out.primal, O)
    torch.testing.assert_close(out.tangent, O_dot)


@pytest.mark.parametrize("name", WRITES)
def test_programs_that_write_over_the_field(name):
    p, t = eighths([(3, 4), (3, 4)], 0), eighths([(3, 4), (3, 4)], 1)
    expected = outputs(WRITES[name](*[DUAL.make(a.clone(), b.clone()) for a, b in zip(p, t, strict=True)]))
    found = outputs(WRITES[name](*(over_field(objects(a), objects(b)) for a, b in zip(p, t, strict=True))))
    for x, y in zip(found, expected, strict=True):
        assert_is(x.primal, objects(y.primal))
        assert_is(x.tangent, objects(y.tangent))


def test_forward_and_reverse_mode_agree_exactly():
    """⟨dY, Ẏ⟩ = Σ ⟨dθ, θ̇⟩ for an attention whose scale is 1/√2."""
    thetas = [FIELD.random(*s) for s in ((3, 2), (5, 2), (5, 4))]
    dots = [FIELD.random(*x.shape) for x in thetas]
    dO = FIELD.random(3, 4)

    def attention(Q, K, V):
        return torch.softmax(Q @ K.mT * 2**-0.5, -1) @ V

    out = attention(*map(DUAL.make, thetas, dots))
    leaves = [x.clone().requires_grad_() for x in thetas]
    grads = torch.autograd.grad(attention(*leaves), leaves, dO)
    left = (dO * out.tangent).sum()
    right = sum((g * d).sum() for g, d in zip(grads, dots, strict=True))
    assert same(left, right)
    assert not same(left, right + (grads[0] * dots[0]).sum())
