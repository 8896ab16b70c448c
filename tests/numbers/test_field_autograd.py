"""PyTorch's own derivatives, evaluated in exact arithmetic: they are the derivatives, and a wrong one shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_reference import assert_is, entered, modest, objects, same
from hypothesis import given
from hypothesis import strategies as st
from operations import EXACT_IN_FLOAT64, FRACTIONS, WRITES

from gradderiv.numbers.field import Field
from gradderiv.numbers.lanes import FieldTensor

FIELD = Field(seed=6, lanes=2)
ATTENTION = Field(seed=6, lanes=2, roots=frozenset({2}))


def leaf(*shape, field=FIELD):
    return field.random(*shape).requires_grad_()


def grad(y, *xs, cotangent=None, **options):
    return torch.autograd.grad(y, xs, cotangent, **options)


NOT_DIFFERENTIABLE = {
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "detach", "power 0", "zero_", "fill_", "fill_ tensor",
    "addmm beta 0", "_reshape_alias", "lift_fresh", "sub_ of itself", "slice_backward", "select_backward", "copy",
    "_unsafe_index_put", "unbound rows", "results are fresh",  # torch itself refuses
    "embedding bag without gradient", "embedding bag backward", "embedding bag backward, of its weights",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*EXACT_IN_FLOAT64, *WRITES} - NOT_DIFFERENTIABLE))
def test_gradients_are_those_of_torch_where_float64_is_exact(name):
    function, shapes = EXACT_IN_FLOAT64.get(name) or (WRITES[name], [(3, 4), (3, 4)])
    generator = torch.Generator().manual_seed(0)

    def eighths(shape):
        return torch.randint(-16, 17, shape, generator=generator).double() / 8

    tensors = [eighths(s) for s in shapes]
    floats = [t.clone().requires_grad_() for t in tensors]
    numbers = [entered(FIELD, objects(t)).requires_grad_() for t in tensors]
    expected, found = (
        [*o] if isinstance(o, (list, tuple)) else [o] for o in (function(*floats), function(*numbers))
    )
    cotangents = [eighths(y.shape) for y in expected]
    reference = torch.autograd.grad(expected, floats, cotangents, allow_unused=True)

    gradients = torch.autograd.grad(
        found, numbers, [entered(FIELD, objects(g)) for g in cotangents], allow_unused=True
    )
    for g, r in zip(gradients, reference, strict=True):
        assert (g is None) == (r is None)
        if r is not None:
            assert_is(g, objects(r))


@modest
@given(st.lists(st.fractions(max_denominator=9).filter(bool), min_size=4, max_size=4), st.integers(-3, 4))
def test_a_quotient_and_a_power(values, n):
    """d(x/y) = dx/y − x dy/y²,   d xⁿ = n xⁿ⁻¹ dx"""
    x, y = (np.array(v, dtype=object) for v in (values[:2], values[2:]))
    a, b = (entered(FIELD, v).requires_grad_() for v in (x, y))
    dx, dy = grad((a / b).sum(), a, b)
    assert_is(dx, 1 / y)
    assert_is(dy, -x / y**2)
    (dx,) = grad((a**n).sum(), a, allow_unused=True, materialize_grads=True)
    assert_is(dx, n * x ** (n - 1) if n else x * 0)


def test_a_matrix_product_cubed():
    """f = Σ (A B)³: dA = 3 (A B)² Bᵀ,   and its derivative along U, entry by entry from fractions"""
    rng = np.random.default_rng(0)
    A, B, U = (np.array(rng.integers(-9, 9, s), dtype=object) for s in ((2, 3), (3, 2), (2, 3)))
    a, b, u = (entered(FIELD, v) for v in (A, B, U))
    a.requires_grad_(), b.requires_grad_()
    dA, dB = grad(((a @ b) ** 3).sum(), a, b, create_graph=True)
    C = A.dot(B)
    assert_is(dA, (3 * C**2).dot(B.T))
    assert_is(dB, A.T.dot(3 * C**2))
    dAA, dAB = grad((dA * u).sum(), a, b)
    assert_is(dAA, (6 * C * U.dot(B)).dot(B.T))
    assert_is(dAB, A.T.dot(6 * C * U.dot(B)) + U.T.dot(3 * C**2))


def test_the_exponential_is_its_own_derivative():
    x = leaf(3, 4)
    g = FIELD.random(3, 4)
    (first,) = grad(x.exp(), x, cotangent=g, create_graph=True)
    assert same(first, g * x.exp())
    (second,) = grad(first.sum(), x)
    assert same(second, first)
    (chained,) = grad((x * x).exp(), x, cotangent=g)
    assert same(chained, 2 * x * (x * x).exp() * g)
    (log,) = grad(((x * x).log() + x).exp().sum(), x)
    assert same(log, (2 * x + x * x) * x.exp())


def plain(S, mask=None):
    E = S.exp() if mask is None else S.exp() * mask
    return E / E.sum(-1, keepdim=True)


MASK = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
SOFTMAXES = {
    "torch": lambda S: torch.softmax(S.masked_fill(~MASK, -torch.inf), -1),
    "plain": lambda S: plain(S, MASK),
    "recomputed": lambda S: torch.exp(S.masked_fill(~MASK, -torch.inf) - torch.logsumexp(S.masked_fill(~MASK, -torch.inf), -1, True)),
    "by its logarithm": lambda S: torch.log_softmax(S.masked_fill(~MASK, -torch.inf), -1).exp(),
    "shifted": lambda S: plain(S - S.detach().amax(-1, keepdim=True), MASK),
}  # fmt: skip


@pytest.mark.parametrize("way", SOFTMAXES)
def test_softmax_to_second_order(way):
    """dS = P ∘ (dP − δ), and the tangent of that, against the formulas; every spelling has the same derivatives."""
    S = leaf(3, 4)
    dP, u = leaf(3, 4), FIELD.random(3, 4)
    P = plain(S.detach(), MASK)
    (dS,) = grad(SOFTMAXES[way](S), S, cotangent=dP, create_graph=True)
    delta = (P * dP).sum(-1, keepdim=True)
    assert same(dS.detach(), (P * (dP - delta)).detach())
    dSS, dSP = grad(dS, S, dP, cotangent=u)
    P_dot = P * (u - (P * u).sum(-1, keepdim=True))
    assert same(dSP, P_dot)
    second = P_dot * (dP - delta) - P * (P_dot * dP).sum(-1, keepdim=True)
    assert same(dSS, second.detach())
    assert not same(dSS, (P_dot * (dP - delta)).detach())  # a twin: the derivative of δ forgotten


def test_logsumexp_and_logaddexp():
    S, g = leaf(3, 4), FIELD.random(3)
    (dS,) = grad(torch.logsumexp(S, -1), S, cotangent=g)
    assert same(dS, plain(S.detach()) * g[:, None])
    x, y = leaf(3), leaf(3)  # of logarithms: torch's own formula is 1/(1 + exp(log y − log x))
    dx, dy = grad(torch.logaddexp(x.log(), y.log()), x, y, cotangent=g)
    assert same(dx, g / (x + y).detach())
    assert same(dy, dx)


def online(S, V, block, forget=False):
    """softmax(S) V by blocks of keys; the running maximum is detached, as a shift."""
    m, r = torch.full_like(S[:, :1], -torch.inf), S.new_zeros(S.shape[0], 1)
    O = S.new_zeros(S.shape[0], V.shape[1])
    for start in range(0, S.shape[1], block):
        s = S[:, start : start + block]
        new = torch.maximum(m, s.detach().amax(-1, keepdim=True))
        p, keep = torch.exp(s - new), torch.exp(m - new)
        r = (r if forget else r * keep) + p.sum(-1, keepdim=True)
        O = O * keep + p @ V[start : start + block]
        m = new
    return O / r, m + torch.log(r)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_online_softmax_differentiated_by_autograd(block):
    """With a mask that leaves every row a key in its first block, and a cotangent on O and on exp(S − lse)."""
    S, V = leaf(3, 4), leaf(4, 2)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    masked = S.masked_fill(~mask, -torch.inf)
    dO, dP = FIELD.random(3, 2), FIELD.random(3, 4)
    P = plain(S, mask)
    expected = grad(P @ V, S, V, cotangent=dO, retain_graph=True), grad((P * dP).sum(), S)
    O, lse = online(masked, V, block)
    assert same(O.detach(), (P @ V).detach())
    found = grad(O, S, V, cotangent=dO, retain_graph=True), grad((torch.exp(masked - lse) * dP).sum(), S)
    for a, b in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert same(a, b)
    wrong, _ = online(S.masked_fill(~mask, -torch.inf), V, block, forget=True)
    assert same(grad(wrong, S, cotangent=dO)[0], expected[0][0]) == (block == 4)


def test_the_maximum_of_a_row_has_the_derivative_of_a_shift():
    """What does not depend on the maximum has its gradient; the gradient of what does moves with the seed of the shifts."""
    found = {}
    for shift in (0, 1):
        field = Field(seed=6, lanes=2, shift=shift)
        x, g = leaf(3, 4, field=field), field.random(3, 4)
        E = torch.exp(x - x.amax(-1, keepdim=True))
        (right,) = grad(E / E.sum(-1, keepdim=True), x, cotangent=g, retain_graph=True)
        P = plain(x.detach())
        assert same(right, P * (g - (P * g).sum(-1, keepdim=True)))
        (moving,) = grad(E.sum(), x)
        found[shift] = right, moving
    for j in range(2):
        assert torch.equal(found[0][0].part(f"v{j}"), found[1][0].part(f"v{j}"))
        assert not bool((found[0][1].part(f"v{j}") == found[1][1].part(f"v{j}")).any())


# ---------------------------------------------------------------- hand-written Functions


class Attention(torch.autograd.Function):
    """softmax(Q Kᵀ) V with a hand-written backward, and ways to get it wrong."""

    @staticmethod
    def forward(ctx, Q, K, V, wrong):
        S = Q @ K.mT
        m = S.amax(-1, keepdim=True)
        E = torch.exp(S - m)
        r = E.sum(-1, keepdim=True)
        O = (E @ V) / r
        ctx.save_for_backward(Q, K, V, O, m + torch.log(r))
        ctx.wrong = wrong
        return O

    @staticmethod
    def backward(ctx, dO):
        Q, K, V, O, lse = ctx.saved_tensors
        P = torch.exp(Q @ K.mT - lse)
        dV = P.mT @ dO
        dP = dO @ V.mT
        delta = (O * dO).sum(-1, keepdim=True)
        if ctx.wrong == "delta of P and P":
            delta = (P * P).sum(-1, keepdim=True)
        if ctx.wrong == "no delta":
            delta = 0 * delta
        dS = P * (dP - delta)
        if ctx.wrong == "sign":
            dS = -dS
        dK = dS.mT @ Q
        if ctx.wrong == "dK of dP":
            dK = dP.mT @ Q
        if ctx.wrong == "a billionth":
            dV = dV * (1 + 1e-9)
        return dS @ K, dK, dV, None


def attention(Q, K, V):
    E = torch.exp(Q @ K.mT)
    return (E @ V) / E.sum(-1, keepdim=True)


def function_gradients(wrong):
    Q, K, V = leaf(3, 4), leaf(5, 4), leaf(5, 2)
    dO = FIELD.random(3, 2)
    O = Attention.apply(Q, K, V, wrong)
    return grad(O, Q, K, V, cotangent=dO), grad(attention(Q, K, V), Q, K, V, cotangent=dO)


def test_a_right_backward_is_exactly_autograd():
    assert all(same(a, b) for a, b in zip(*function_gradients(None), strict=True))


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ("delta of P and P", "QK"),
        ("no delta", "QK"),
        ("sign", "QK"),
        ("dK of dP", "K"),
        ("a billionth", "V"),
    ],
)
def test_twin_a_wrong_backward_differs_where_it_is_wrong(wrong, where):
    found, reference = function_gradients(wrong)
    for name, a, b in zip("QKV", found, reference, strict=True):
        assert same(a, b) == (name not in where)
        assert bool(FIELD.differs(a, b).all()) == (name in where)


# ---------------------------------------------------------------- autograd's own conduct


def test_leaves_accumulate_and_unused_ones_have_none():
    x, y = leaf(3), leaf(3)
    (x * 2).sum().backward()
    (x * x).sum().backward()
    assert isinstance(x.grad, FieldTensor)
    assert same(x.grad, 2 + 2 * x.detach())
    assert y.grad is None
    (dy,) = grad((x * 2).sum(), y, allow_unused=True)
    assert dy is None


def test_hooks_and_retained_gradients():
    x = leaf(3)
    y = x * x
    y.retain_grad()
    y.register_hook(lambda g: g * 3)
    y.sum().backward()
    assert same(x.grad, 6 * x.detach())
    assert_is(y.grad, [3, 3, 3])


def test_modules_run_unchanged():
    """nn.MultiheadAttention, its fused weights and its own backward: dW_O = Cᵀ dY and db_O = Σ dY."""
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    field = Field(seed=7, lanes=2)
    parameters = {n: field.random(*p.shape).requires_grad_() for n, p in module.named_parameters()}
    X = field.random(1, 3, 8).requires_grad_()
    Y, P = torch.func.functional_call(module, parameters, (X, X, X), {"average_attn_weights": False})
    dY = field.random(1, 3, 8)
    found = dict(zip(["X", *parameters], grad(Y, X, *parameters.values(), cotangent=dY), strict=True))
    W, b = parameters["in_proj_weight"].detach(), parameters["in_proj_bias"].detach()
    x = X.detach()[0]
    Q, K, V = (
        (x @ w.mT + c).unflatten(-1, (2, 4)).transpose(0, 1)
        for w, c in zip(W.chunk(3), b.chunk(3), strict=True)
    )
    weights = plain(Q @ K.mT / 2)
    C = (weights @ V).transpose(0, 1).flatten(1)
    assert same(P.detach()[0], weights)
    assert same(found["out_proj.weight"], (C.mT @ dY[0]).mT)
    assert same(found["out_proj.bias"], dY[0].sum(0))
    assert_is(found["in_proj_bias"][8:16], [0] * 8)  # db_K
    dC = (dY[0] @ parameters["out_proj.weight"].detach()).unflatten(-1, (2, 4)).transpose(0, 1)
    dS = weights * (dC @ V.mT - (weights * (dC @ V.mT)).sum(-1, keepdim=True))
    dQ = (dS @ K / 2).transpose(0, 1).flatten(1)
    assert same(found["in_proj_weight"][:8], dQ.mT @ x)
    assert not same(found["in_proj_weight"][:8], dQ.mT @ x * 2)  # a twin: another scale


def test_quotients_by_rows():
    """The cases of the table that divide: d(x/y) with broadcasting sums over the broadcast axes."""
    for name in ("div broadcast", "mean dim", "a scalar divided"):
        function, *_, shapes = FRACTIONS[name]
        xs = [leaf(*s) for s in shapes]
        y = function(*xs)
        found = grad(y, *xs, cotangent=torch.ones_like(y))
        if name == "div broadcast":
            a, b = (x.detach() for x in xs)
            assert same(found[0], (1 / b).expand(2, 3) + 0)
            assert same(found[1], -(a / b**2).sum(1, keepdim=True))
        elif name == "mean dim":
            assert_is(found[0][0, 0, 0], np.array(objects([1])[0] / 21))
        else:
            assert same(found[0], -3 / xs[0].detach() ** 2)
