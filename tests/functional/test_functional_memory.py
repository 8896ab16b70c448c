"""Nothing of n_q × n_k is made: the largest tensor that any operation returns, in every derivative of first and second order, grows as n.

A mode that sees every operation of PyTorch notes what each returns, below autograd and torch.func. The fused kernel is one operation there; what it holds inside is its own.
"""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradderiv.functional import _tiles, attention
from gradderiv.rules.masks import causal

SIZES = (128, 256)
ROWS = 16
EVERY = (0, 1, 2)


class Largest(TorchDispatchMode):
    """The most elements that an operation's result lies in."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor):
                elements = t.untyped_storage().nbytes() // t.element_size()
                self.most = max(self.most, min(elements, t.numel()))
        return found


def backward(f, x, u):
    leaves = [t.clone().requires_grad_() for t in x]
    torch.autograd.grad(f(*leaves), leaves)


def double_backward(f, x, u):
    leaves = [t.clone().requires_grad_() for t in x]
    first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    torch.autograd.grad(sum((g * v).sum() for g, v in zip(first, u, strict=True)), leaves)


def three(x):
    return tuple(torch.stack([t] * 3) for t in x)


DERIVATIVES = {
    "value": lambda f, x, u: f(*x),
    "backward": backward,
    "double backward": double_backward,
    "jvp": lambda f, x, u: jvp(f, x, u),
    "forward over reverse": lambda f, x, u: jvp(grad(f, EVERY), x, u),
    "reverse over forward": lambda f, x, u: grad(lambda *y: jvp(f, y, u)[1], EVERY)(*x),
    "reverse over reverse": lambda f, x, u: grad(lambda *y: (grad(f)(*y) * u[0]).sum(), EVERY)(*x),
    "forward over forward": lambda f, x, u: jvp(lambda *y: jvp(f, y, u), x, u),
    "per sample": lambda f, x, u: vmap(grad(f, EVERY), randomness="different")(*three(x)),
    "product per sample": lambda f, x, u: vmap(lambda *y: jvp(grad(f, EVERY), y, u), randomness="different")(
        *three(x)
    ),
}
OPTIONS = {
    "plain": {}, "causal": {"is_causal": True}, "window": {"window": (9, 3)}, "softcap": {"softcap": 2.0}, "sinks": {"sinks": torch.zeros(2).double()},
    "lse": {"return_lse": True}, "dropout": {"dropout_p": 0.1}, "grouped": {"enable_gqa": True}, "softcap, all": {"softcap": 2.0, "dropout_p": 0.1, "window": (50, 20)},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(_tiles, "ROWS", ROWS)
    monkeypatch.setattr(_tiles, "FEWEST", ROWS)
    monkeypatch.setattr(_tiles, "ENTRIES", {"cpu": 1, "cuda": 1})


def largest(derivative, function, n, *, h_kv=2, dtype=torch.float64):
    x = tuple(torch.randn(h, n, 2, dtype=dtype) for h in (2, h_kv, h_kv))
    u = tuple(torch.randn_like(t) for t in x)
    with Largest() as seen:
        DERIVATIVES[derivative](lambda *y: sum(t.sum() for t in tree_leaves(function(*y))), x, u)
    return seen.most


def made(derivative, name, n):
    h_kv = 1 if name == "grouped" else 2
    return largest(derivative, lambda *y: attention(*y, **OPTIONS[name]), n, h_kv=h_kv)


def bound(n):
    """A tile of ROWS × (n + 1) scores, its sink among them, or the inputs: 3 samples of 2 heads of n × 2 numbers."""
    return max(ROWS * (n + 1), 12 * n)


FAST = {"plain", "grouped", "softcap, all"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in OPTIONS]
)
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_the_largest_tensor_is_linear_in_n(derivative, name):
    assert made(derivative, name, SIZES[0]) <= bound(SIZES[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAST))
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_twice_the_tokens_are_twice_the_numbers(derivative, name):
    first, second = (made(derivative, name, n) for n in (512, 1024))
    assert second <= 2 * first
    assert second <= bound(1024)


def math(*y):
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(*(t[None] for t in y))


@pytest.mark.parametrize("derivative", [d for d in DERIVATIVES if "sample" not in d])
def test_pytorchs_formula_holds_the_scores(derivative):
    """The twin: the meter sees them where there are any."""
    n = SIZES[0]
    assert largest(derivative, math, n) >= 2 * n * n


def test_what_is_asked_for_is_made():
    """The exceptions that the docstring names: weights, a mask, the gradient of a bias, and third order."""
    n = SIZES[0]
    assert largest("value", lambda *y: attention(*y, return_weights=True), n) == 2 * n * n
    assert largest("value", lambda *y: attention(*y, causal(), softcap=1.0), n) == n * n
    bias = torch.zeros(n, n, dtype=torch.float64, requires_grad=True)
    assert largest("backward", lambda *y: attention(*y, bias=bias), n) <= n * n
    with Largest() as seen:
        x = torch.randn(n, 2, dtype=torch.float64)
        jvp(lambda w: jvp(lambda y: jvp(lambda z: attention(z, z, z), (y,), (x,)), (w,), (x,)), (x,), (x,))
    assert seen.most >= n * n


def test_a_bias_for_each_key_costs_no_more():
    """Its gradient is a sum over queries, tile by tile; the twin writes it out."""
    n = SIZES[0]
    bias = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    assert largest("double backward", lambda *y: attention(*y, bias=bias), n) <= bound(n)
    assert largest("double backward", lambda *y: attention(*y, bias=bias.expand(n, n)), n) >= n * n


def test_half_precision_is_widened_tile_by_tile():
    n = SIZES[0]
    assert largest("double backward", attention, n, dtype=torch.bfloat16) <= bound(n)
