"""Rounding errors, against float64: at most twice those of PyTorch's own attention in the same dtype, by the kernel, by the tiles, and in second order."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.functional import _fused, _tiles, attention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = {"37": (37, 37, 16), "64 to 200": (64, 200, 32), "1 to 300": (1, 300, 8)}


def drawn(size, dtype, spread=1.0):
    n_q, n_k, d = SIZES[size]
    return [spread * torch.randn(2, 3, n, d).to(dtype) for n in (n_q, n_k, n_k)]


def leaves(inputs, dtype):
    return [t.detach().to(dtype).requires_grad_() for t in inputs]


def weights(t):
    """A cotangent, the same in every dtype."""
    draw = torch.Generator().manual_seed(t.numel())
    return torch.randn(t.shape, generator=draw).bfloat16().to(t.dtype)


def first_order(function, inputs):
    O = function(*inputs)
    return [O.detach(), *torch.autograd.grad(O, inputs, weights(O))]


def second_order(function, inputs):
    O = function(*inputs)
    first = torch.autograd.grad(O, inputs, weights(O), create_graph=True)
    return torch.autograd.grad(first, inputs, [weights(g) for g in first])


def errors(found, truth):
    return [float((x.double() - t).norm()) for x, t in zip(found, truth, strict=True)]


def formula(*x, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(*x, **options)


def assert_as_good(ours, theirs, truth, dtype):
    assert all(x.dtype == dtype for x in ours)
    assert all(a <= 2 * b for a, b in zip(errors(ours, truth), errors(theirs, truth), strict=True))


OPTIONS = {"all": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.7}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_value_and_gradients_by_the_kernel_and_by_tiles(name, size, dtype, monkeypatch):
    options, inputs = OPTIONS[name], drawn(size, dtype)
    truth = first_order(lambda *x: formula(*x, **options), leaves(inputs, torch.float64))
    theirs = first_order(lambda *x: scaled_dot_product_attention(*x, **options), leaves(inputs, dtype))

    def ours(*x):
        return attention(*x, **options)

    assert_as_good(first_order(ours, leaves(inputs, dtype)), theirs, truth, dtype)
    monkeypatch.setattr(_fused, "plainest", lambda *x: False)
    monkeypatch.setattr(_fused, "fits", lambda call, x: False)
    monkeypatch.setattr(_tiles, "ROWS", 16)
    monkeypatch.setattr(_tiles, "FEWEST", 16)
    assert_as_good(first_order(ours, leaves(inputs, dtype)), theirs, truth, dtype)


SECOND = list(itertools.product(SIZES, DTYPES, (0.3, 1.0)))


@pytest.mark.parametrize(("size", "dtype", "spread"), SECOND)
def test_second_order_against_the_formula_of_pytorch(spread, size, dtype, monkeypatch):
    """Its fused kernel has none."""
    monkeypatch.setattr(_tiles, "ROWS", 16)
    monkeypatch.setattr(_tiles, "FEWEST", 16)
    inputs = drawn(size, dtype, spread)
    truth = second_order(formula, leaves(inputs, torch.float64))
    theirs = second_order(formula, leaves(inputs, dtype))
    assert_as_good(second_order(attention, leaves(inputs, dtype)), theirs, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_that_are_rounded_at_every_tile_are_worse(dtype, monkeypatch):
    """The twin: the tiles computed in the dtype of the inputs. The bound of twice the error sees it."""
    monkeypatch.setattr(_fused, "plainest", lambda *x: False)
    monkeypatch.setattr(_fused, "fits", lambda call, x: False)
    monkeypatch.setattr(_tiles, "ROWS", 4)
    monkeypatch.setattr(_tiles, "FEWEST", 4)
    monkeypatch.setattr(_tiles, "computed_in", lambda dtype: dtype)
    inputs = drawn("37", dtype)
    truth = first_order(formula, leaves(inputs, torch.float64))
    theirs = first_order(scaled_dot_product_attention, leaves(inputs, dtype))
    with pytest.raises(AssertionError):
        assert_as_good(first_order(attention, leaves(inputs, dtype)), theirs, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_a_bias_and_of_sinks_are_summed_in_float32(dtype):
    """A sum over 2 × 200 rows; one that is rounded as it goes along would lose digits."""
    Q, K, V = (torch.randn(2, 3, n, 8).to(dtype) for n in (200, 40, 40))
    bias, sinks = torch.randn(40).to(dtype), torch.randn(3).to(dtype)

    def gradients(dtype):
        x = leaves((Q, K, V, bias, sinks), dtype)
        O = attention(*x[:3], bias=x[3], sinks=x[4])
        return torch.autograd.grad(O, x[3:], weights(O))

    for found, true in zip(gradients(dtype), gradients(torch.float64), strict=True):
        assert found.dtype == dtype
        eps = torch.finfo(dtype).eps
        assert float((found - true).norm()) <= 2 * eps * float(true.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lse_is_float32_at_least_and_scores_may_be_large(dtype):
    """exp(300) overflows in float32: the maximum is taken off first, in every tile and derivative."""
    inputs = leaves([30 * t for t in drawn("37", torch.float32)], dtype)
    O, lse = attention(*inputs, return_lse=True)
    assert lse.dtype == torch.float32
    assert O.dtype == dtype
    assert float(lse.detach().max()) > 300
    first = torch.autograd.grad(O.float().sum() + lse.sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.float().sum() for g in first), inputs)
    assert all(t.isfinite().all() for t in (O, lse, *first, *second))
