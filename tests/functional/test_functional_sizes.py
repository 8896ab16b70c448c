"""Sizes: odd, prime, one, none; more queries than keys and fewer; edges of the mask. Value, gradients, forward mode and second order against the naive formula."""

from __future__ import annotations

import pytest
import torch
from attention_cases import band, naive
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from gradderiv.errors import InputError
from gradderiv.functional import _fused, _tiles, attention

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (5, 3), (7, 7), (8, 8), (11, 13), (13, 11), (17, 4), (4, 17)]
EVERY = (0, 1, 2)


def drawn(n_q, n_k, lead=(2,), d_k=3, d_v=3):
    return tuple(
        torch.randn(*lead, n, d, dtype=torch.float64) for n, d in ((n_q, d_k), (n_k, d_k), (n_k, d_v))
    )


def derivatives(function, inputs):
    """Value, gradients, tangent, and the product with the Hessian."""

    def loss(*x):
        O = function(*x)
        return (O * torch.linspace(-2, 3, O.numel()).view(O.shape)).sin().sum()

    leaves = [t.clone().requires_grad_() for t in inputs]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.cos().sum() for g in first), leaves)
    moved = jvp(function, inputs, inputs)
    return (*(t.detach() for t in first), *second, *moved, *jvp(grad(loss, EVERY), inputs, inputs)[1])


def assert_naive(inputs, options, mask, softcap=None):
    ours = derivatives(lambda *x: attention(*x, **options, softcap=softcap), inputs)
    theirs = derivatives(lambda *x: naive(*x, mask=mask, softcap=softcap)[0], inputs)
    assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", [1, 2, 3, 128], ids=lambda m: f"{m} rows")
@pytest.mark.parametrize(("n_q", "n_k"), SIZES, ids=lambda n: str(n))
@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
def test_every_size_in_tiles_of_every_size(n_q, n_k, rows, is_causal, monkeypatch):
    """Also by the kernel, first: d_k = d_v. Causal: query i sees the keys 0 … i, though there be more keys or fewer."""
    monkeypatch.setattr(_tiles, "ROWS", rows)
    monkeypatch.setattr(_tiles, "FEWEST", rows)
    mask = band(n_q, n_k, None, 0) if is_causal else None
    assert_naive(drawn(n_q, n_k), {"is_causal": is_causal}, mask)


@pytest.mark.parametrize("entries", [1, 20, 40, 70, 100, 1000])
def test_several_heads_in_a_tile_and_batches_that_do_not_divide(entries, monkeypatch):
    monkeypatch.setattr(_tiles, "ENTRIES", dict.fromkeys(("cpu", "cuda"), entries))
    monkeypatch.setattr(_tiles, "FEWEST", 1)
    inputs = drawn(5, 4, (3, 5))
    x = _tiles.Inputs(*inputs)
    assert sum(1 for _ in _tiles.tiles(_tiles.Call(0.5), x)) >= 3 * 5 * 5 * 4 / max(entries, 4)
    assert_naive(inputs, {}, None, softcap=1.5)


WINDOWS = [(0, 0), (1, 0), (0, 2), (2, 1), (-1, 1), (1, -1), (-1, -1), (100, 100), (3, 0)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("n_q", "n_k"), [(5, 5), (3, 8), (8, 3)])
def test_window_edges(window, n_q, n_k, several_tiles):
    """Rows before the first key, or after the last, see nothing where n_q > n_k."""
    left, right = (None if w < 0 else w for w in window)
    low = None if left is None else n_k - n_q - left
    high = None if right is None else n_k - n_q + right
    mask = band(n_q, n_k, low, high)
    assert_naive(drawn(n_q, n_k), {"window": window}, mask)
    if n_q == 8 and window == (0, 0):
        assert not mask[:5].any()


def test_a_window_that_is_one_wider_is_another(several_tiles):
    """The twin."""
    inputs = drawn(5, 5)
    with pytest.raises(AssertionError, match="not close"):
        assert_naive(inputs, {"window": (2, 0)}, band(5, 5, -3, 0))
    with pytest.raises(AssertionError, match="not close"):
        assert_naive(drawn(3, 5), {"is_causal": True}, band(3, 5, None, 2))


@pytest.mark.parametrize("options", ["mask", "bias", "window", "sinks"])
def test_rows_that_see_nothing_anywhere(options, several_tiles):
    """All of them: the output is 0, and every gradient, of first and second order."""
    Q, K, V = drawn(5, 3)
    given = {
        "mask": {"attn_mask": torch.zeros(5, 3, dtype=torch.bool)},
        "bias": {"bias": torch.full((5, 3), -torch.inf, dtype=torch.float64)},
        "window": {"window": (0, -1), "attn_mask": torch.ones(5, 3, dtype=torch.bool).triu(3)},
        "sinks": {"attn_mask": torch.zeros(5, 3, dtype=torch.bool), "sinks": torch.ones(2).double()},
    }[options]
    found = derivatives(lambda *x: attention(*(t.unflatten(0, (1, 2)) for t in x), **given), (Q, K, V))
    first = found[:3]
    assert not any(t.any() for t in first)
    assert not any(t.any() for t in found)
    assert derivatives(lambda *x: attention(*x), (Q, K, V))[0].any()  # the twin


EMPTY = {
    "batch": ((0, 2), 3, 4, 2), "heads": ((2, 0), 3, 4, 2), "queries": ((2, 2), 0, 4, 2), "keys": ((2, 2), 3, 0, 2), "width of V": ((2, 2), 3, 4, 0),
    "queries, 5-D": ((2, 1, 3), 0, 4, 2), "keys, 5-D": ((1, 2, 3), 2, 0, 2), "batch, 5-D": ((2, 0, 3), 2, 3, 2), "both": ((2,), 0, 0, 3), "all": ((0,), 0, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"softcap": 2.0}, {"dropout_p": 0.5}], ids=str)
@pytest.mark.parametrize("name", EMPTY)
def test_axes_without_elements(name, options):
    """Everything has its shape, and is zero; a query without keys sees nothing."""
    lead, n_q, n_k, d_v = EMPTY[name]
    inputs = drawn(n_q, n_k, lead, d_k=2, d_v=d_v)
    found = derivatives(lambda *x: attention(*x, **options), inputs)
    shapes = [t.shape for t in inputs]
    assert [t.shape for t in found] == [*shapes, *shapes, *[(*lead, n_q, d_v)] * 2, *shapes]
    assert not any(t.any() for t in found)
    O, lse, W = attention(*inputs, **options, return_lse=True, return_weights=True)
    assert (O.shape, lse.shape, W.shape) == ((*lead, n_q, d_v), (*lead, n_q), (*lead, n_q, n_k))
    if n_k == 0:
        assert (lse == -torch.inf).all()


@pytest.mark.parametrize("name", ["keys", "queries", "batch"])
def test_a_bias_a_mask_and_sinks_without_elements(name):
    lead, n_q, n_k, d_v = EMPTY[name]
    Q, K, V = drawn(n_q, n_k, lead, d_k=2, d_v=d_v)
    bias = torch.randn(n_q, n_k, dtype=torch.float64).requires_grad_()
    sinks = torch.randn(lead[-1], dtype=torch.float64).requires_grad_()
    mask = torch.ones(n_q, n_k, dtype=torch.bool)
    O, lse = attention(Q, K, V, mask, bias=bias, sinks=sinks, return_lse=True)
    dbias, dsinks = torch.autograd.grad(O.sum() + lse.sum(), (bias, sinks), materialize_grads=True)
    assert dbias.shape == bias.shape
    assert_close(dsinks, torch.full_like(sinks, lead[0] * n_q if n_k == 0 else 0))


def test_keys_and_queries_of_no_width_are_a_mistake():
    Q, K, V = drawn(3, 4, d_k=0)
    with pytest.raises(InputError, match="width 0"):
        attention(Q, K, V)


def test_the_fused_kernel_is_what_computes_plain_first_order(monkeypatch):
    """So that the tests above are of it, too; and what it does not do, it is not asked."""
    asked = []
    right = _fused.value
    monkeypatch.setattr(_fused, "value", lambda call, x: asked.append(call) or right(call, x))
    Q, K, V = drawn(3, 4)
    attention(Q, K, V)
    assert len(asked) == 1
    with sdpa_kernel(SDPBackend.MATH):  # who forbids PyTorch's kernel gets the tiles
        attention(Q, K, V)
    for options in ({"softcap": 1.0}, {"window": (1, 1)}, {"dropout_p": 0.5}, {"return_weights": True}):
        attention(Q, K, V, **options)
    attention(Q, K, V[..., :2])
    attention(Q, K, V, sinks=torch.zeros(2).double())
    assert len(asked) == 1
