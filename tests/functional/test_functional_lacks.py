"""Why there is this function: what PyTorch's own attention does not do on the same inputs. When one of these fails, PyTorch has learned it."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gradderiv.functional import attention

FLASH = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@pytest.fixture
def inputs():
    return tuple(torch.randn(1, 2, 8, 4, requires_grad=True) for _ in range(3))


def double_backward(f, x):
    first = torch.autograd.grad(f(*x).sin().sum(), x, create_graph=True)
    return torch.autograd.grad(sum(g.sin().sum() for g in first), x)


def tangent(f, x):
    x = tuple(t.detach() for t in x)
    return jvp(f, x, x)[1]


def hessian_product(f, x):
    x = tuple(t.detach() for t in x)
    return jvp(grad(lambda *y: f(*y).sin().sum(), (0, 1, 2)), x, x)[1]


LACKS = {
    "double backward": (double_backward, "derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
    "forward mode": (tangent, "forward AD"),
    "Hessian product": (hessian_product, "forward AD|derivative for"),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKS)
def test_its_default_kernel_has_no_second_derivative(name, inputs):
    derivative, words = LACKS[name]
    with pytest.raises((RuntimeError, NotImplementedError), match=words):
        derivative(scaled_dot_product_attention, inputs)
    # the twin: the same lines with ours, and with its formula, which holds the scores
    ours = derivative(attention, inputs)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = derivative(scaled_dot_product_attention, inputs)
    torch.testing.assert_close(ours, theirs)


def test_a_mask_that_needs_a_gradient_takes_its_fast_kernel_away(inputs):
    """A learned bias: PyTorch falls back on the formula, or refuses where only kernels are allowed."""
    bias = torch.zeros(8, 8, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with (
            pytest.raises(RuntimeError, match="No available kernel"),
            pytest.warns(UserWarning, match="kernel"),
        ):
            scaled_dot_product_attention(*inputs, attn_mask=bias)
        dbias = torch.autograd.grad(attention(*inputs, bias=bias).sin().sum(), bias)[0]
    assert dbias.any()


def test_its_per_sample_gradients_are_ours(inputs):
    """They work, by its formula; the twin is a mean over the samples."""
    x = tuple(torch.cat([t, 2 * t, t.flip(-1)]).detach() for t in inputs)
    found = vmap(grad(lambda *y: attention(*y).sin().sum(), (0, 1, 2)))(*x)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = vmap(grad(lambda *y: scaled_dot_product_attention(*y).sin().sum(), (0, 1, 2)))(*x)
    torch.testing.assert_close(found, theirs)
    assert not torch.allclose(found[0][0], found[0].mean(0))
