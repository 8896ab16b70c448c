"""A fully masked row gives 0 and gradients 0, never NaN: in every dtype, to second order, and for any mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_calls import SMALL, call, naive_attention, naive_softmax, results, rules

from gradderiv.rules.attention import attention, attention_jvp, attention_vjp, attention_vjp_jvp
from gradderiv.rules.blockdiag import grad_W_K, grad_W_Q, layer
from gradderiv.rules.multihead import multihead, multihead_vjp
from gradderiv.rules.softmax import softmax, softmax_jvp, softmax_vjp, softmax_vjp_jvp

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MASK = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
modest = settings(deadline=None, max_examples=30, derandomize=True, database=None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_an_empty_row(dtype):
    S, S_dot, dP, dP_dot = (torch.randn(3, 4).to(dtype) for _ in range(4))
    P, saved = softmax(S, mask=MASK)
    outs = [
        P,
        softmax_jvp(saved, S_dot),
        softmax_vjp(dP, saved).S,
        softmax_vjp_jvp(dP, saved, dP_dot, S_dot).S,
    ]
    for out in outs:
        assert out.dtype == dtype
        assert bool(torch.isfinite(out).all())
        assert not out[1].any()
        assert not out[~MASK].any()
        assert out[0].any()
    assert bool(torch.isnan(torch.softmax(S.masked_fill(~MASK, -torch.inf), -1))[1].all())  # what torch does


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_with_an_empty_row(dtype):
    Q, K, V = (torch.randn(2, n, 5).to(dtype) for n in (3, 4, 4))
    dots, dO, dO_dot = [torch.randn_like(x) for x in (Q, K, V)], torch.randn_like(Q), torch.randn_like(Q)
    O, saved = attention(Q, K, V, mask=MASK)
    g, g_dot = attention_vjp(dO, saved), attention_vjp_jvp(dO, saved, dO_dot, *dots)
    for out in (O, attention_jvp(saved, *dots), g.Q, g_dot.Q):
        assert out.dtype == dtype
        assert not out[:, 1].any()
        assert out[:, 0].any()
    for out in (*g[:3], *g_dot[:3]):
        assert bool(torch.isfinite(out).all())
    assert g.bias is None
    assert g_dot.bias is None


@pytest.mark.parametrize(
    "mask", [torch.zeros(3, 4, dtype=torch.bool), torch.tensor(False), torch.zeros(1, 4, dtype=torch.bool)]
)
def test_nothing_may_attend_to_anything(mask):
    Q, K, V = (torch.randn(2, n, 5, dtype=torch.float64) for n in (3, 4, 4))
    O, saved = attention(Q, K, V, mask=mask, bias=torch.randn(3, 4, dtype=torch.float64))
    g = attention_vjp(torch.randn_like(O), saved)
    for out in (O, *g):
        assert not out.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_autograd_through_a_rule_with_an_empty_row_to_second_order(dtype):
    """The forward is differentiable as it stands: its gradients are the vjp's, and have no NaN."""
    Q, K, V = (torch.randn(n, 5, dtype=dtype, requires_grad=True) for n in (3, 4, 4))
    O, saved = attention(Q, K, V, mask=MASK)
    dO = torch.randn_like(O)
    grads = torch.autograd.grad(O, (Q, K, V), dO, create_graph=True)
    for a, b in zip(grads, attention_vjp(dO, saved)[:3], strict=True):
        torch.testing.assert_close(a, b)
    second = torch.autograd.grad(sum((g * g).sum() for g in grads), (Q, K, V))
    assert all(bool(torch.isfinite(x).all()) for x in second)
    assert not second[0][1].any()


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in rules()
        if n not in ("row_shift", "empty_rows", "repeat_mask", "block_ones", "stack_identity")
    ],
)
def test_no_rule_makes_nan_of_an_empty_row(name):
    for dtype in DTYPES[:3]:
        function, args, kwargs = call(name, lambda *s, d=dtype: torch.randn(s).to(d), SMALL)
        for out in results(function(*args, **kwargs)).values():
            assert out.dtype == dtype
            assert bool(torch.isfinite(out).all())


def test_large_and_infinite_scores():
    """Scores up to the edge of the dtype; −∞ in the bias is a mask of its own, but for a row of nothing else."""
    S = torch.tensor([[3e38, 0.0], [-3e38, -3e38], [88.0, 89.0]])
    P, _ = softmax(S)
    torch.testing.assert_close(
        P, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.26894, 0.73106]]), atol=1e-5, rtol=0
    )
    W = torch.full((2, 2), 1e3, dtype=torch.float64)
    X = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    Y = layer(X, W, W, W, W, n_heads=1)
    assert bool(torch.isfinite(Y).all())
    for grad in (grad_W_Q, grad_W_K):
        assert bool(torch.isfinite(grad(X, W, W, W, W, torch.ones_like(Y), n_heads=1)).all())
    Q, K, V = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.zeros(3, 3, dtype=torch.float64).masked_fill(
        ~torch.ones(3, 3, dtype=torch.bool).tril(), -torch.inf
    )
    masked, _ = attention(Q, K, V, mask=torch.ones(3, 3, dtype=torch.bool).tril())
    torch.testing.assert_close(attention(Q, K, V, bias=bias)[0], masked)


@modest
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_any_mask(n_q, n_k, data):
    """Values and gradients are those of a naive softmax, wherever the mask lets something through."""
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=n_k, max_size=n_k), min_size=n_q, max_size=n_q))
    )
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    S = torch.randn(n_q, n_k, dtype=torch.float64, requires_grad=True)
    dP = torch.randn(n_q, n_k, dtype=torch.float64)
    P, saved = softmax(S.detach(), mask=mask)
    expected = naive_softmax(S, mask)
    torch.testing.assert_close(P, expected.detach())
    (dS,) = torch.autograd.grad(expected, S, dP)
    torch.testing.assert_close(softmax_vjp(dP, saved).S, dS)
    torch.testing.assert_close(P.sum(-1), mask.any(-1).double())
    assert not P[~mask].any()


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 1), (4,), (2, 1, 3, 4), (5, 3, 4), (2, 5, 1, 1)])
def test_masks_and_biases_that_broadcast(shape):
    torch.manual_seed(1)
    Q, K, V = (torch.randn(2, 5, n, 6, dtype=torch.float64) for n in (3, 4, 4))
    mask = torch.rand(shape) < 0.7
    bias = torch.randn(shape, dtype=torch.float64)
    O, saved = attention(Q, K, V, mask=mask, bias=bias)
    full_mask, full_bias = (x.expand(2, 5, 3, 4) for x in (mask, bias))
    torch.testing.assert_close(O, naive_attention(Q, K, V, full_bias, mask=full_mask))
    g = attention_vjp(torch.randn_like(O), saved)
    assert g.bias.shape == bias.shape


def test_a_mask_for_every_head_in_the_layer():
    X, W = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(4, 8, 8, dtype=torch.float64)
    mask = torch.rand(2, 4, 3, 3) < 0.6
    Y, saved = multihead(X, *W, n_heads=4, mask=mask)
    Q, K, V = ((X @ w).unflatten(-1, (4, 2)).transpose(1, 2) for w in W[:3])
    torch.testing.assert_close(Y, naive_attention(Q, K, V, mask=mask).transpose(1, 2).flatten(2) @ W[3])
    assert all(
        bool(torch.isfinite(g).all()) for g in multihead_vjp(torch.randn_like(Y), saved) if g is not None
    )
