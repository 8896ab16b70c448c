"""Leading axes of every number, and what broadcasts: each gradient has the shape of its tensor, and is the sum over what shares it."""

from __future__ import annotations

import pytest
import torch
from attention_cases import naive
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from gradderiv.functional import attention

F64 = torch.float64
N_Q, N_K, D_K, D_V = 3, 4, 2, 2


def drawn(*leads):
    sizes = ((N_Q, D_K), (N_K, D_K), (N_K, D_V))
    return tuple(torch.randn(*lead, *size, dtype=F64) for lead, size in zip(leads, sizes, strict=True))


def derivatives(function, inputs):
    every = tuple(range(len(inputs)))

    def loss(*x):
        O = function(*x)
        return (O * torch.linspace(-2, 3, O.numel()).view(O.shape)).sin().sum()

    leaves = [t.clone().requires_grad_() for t in inputs]
    O = function(*leaves)
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.cos().sum() for g in first), leaves)
    assert [g.shape for g in first] == [g.shape for g in second] == [t.shape for t in inputs]
    return (O.detach(), *(t.detach() for t in first), *second, *jvp(grad(loss, every), inputs, inputs)[1])


CAPS = pytest.mark.parametrize("softcap", [None, 1.5], ids=["fused first", "tiles"])


def assert_naive(inputs, ours=attention, theirs=lambda *x: naive(*x)[0]):
    assert_close(derivatives(ours, inputs), derivatives(theirs, inputs), rtol=1e-11, atol=1e-11)


def assert_capped(inputs, softcap, mask=None):
    assert_naive(
        inputs,
        lambda *x: attention(*x, mask, softcap=softcap),
        lambda *x: naive(*x, mask=mask, softcap=softcap)[0],
    )


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 1, 3), (1, 2, 3, 2)], ids=lambda a: f"{len(a) + 2}-D")
@CAPS
def test_inputs_of_two_to_six_axes(lead, softcap, several_tiles):
    inputs = drawn(lead, lead, lead)
    assert_capped(inputs, softcap)
    assert attention(*inputs).shape == (*lead, N_Q, D_V)


LEADS = [((2, 3), (1, 3), (2, 1)), ((2, 3), (), ()), ((3,), (2, 1), (2, 3)), ((1, 1), (2, 3), (1, 3)), ((), (2, 1, 3), (1, 2, 3)), ((2, 1, 1), (1, 2, 1), (1, 1, 3))]  # fmt: skip


@pytest.mark.parametrize("leads", LEADS, ids=str)
@CAPS
def test_leading_axes_broadcast(leads, softcap, several_tiles):
    assert_capped(drawn(*leads), softcap)


ON_SCORES = [
    (), (N_K,), (N_Q, N_K), (N_Q, 1), (1, N_K), (1, 1), (3, N_Q, N_K), (3, 1, N_K), (3, N_Q, 1), (3, 1, 1), (1, 1, N_K),
    (2, 1, 1, N_K), (2, 3, N_Q, N_K), (2, 3, 1, 1), (1, 3, N_Q, 1), (2, 1, N_Q, 1), (1, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", ON_SCORES, ids=str)
@pytest.mark.parametrize("additive", [True, False], ids=["attn_mask", "bias"])
def test_a_bias_of_every_shape_has_a_gradient_of_its_shape(shape, additive, several_tiles):
    inputs = (*drawn((2, 3), (2, 3), (2, 3)), torch.randn(shape, dtype=F64))
    ours = (lambda *x: attention(*x)) if additive else (lambda Q, K, V, b: attention(Q, K, V, bias=b))
    assert_naive(inputs, ours, lambda Q, K, V, b: naive(Q, K, V, bias=b)[0])


@pytest.mark.parametrize("shape", ON_SCORES, ids=str)
@CAPS
def test_a_mask_of_every_shape(shape, softcap, several_tiles):
    mask = torch.rand(shape) > 0.4
    inputs = drawn((2, 3), (2, 3), (2, 3))
    assert_capped(inputs, softcap, mask)


@pytest.mark.parametrize("lead", [(2,), (2, 2, 3)], ids=["3-D", "5-D"])
@pytest.mark.parametrize("shape", [(), (N_K,), (N_Q, 1), "last", "first", "every"], ids=str)
def test_a_bias_beside_other_leading_axes(lead, shape, several_tiles):
    shape = {"last": (lead[-1], 1, N_K), "first": (*lead[:1], *[1] * (len(lead) + 1)), "every": (*lead, N_Q, N_K)}.get(shape, shape)  # fmt: skip
    inputs = (*drawn(lead, lead, lead), torch.randn(shape, dtype=F64))
    assert_naive(inputs, attention, lambda Q, K, V, b: naive(Q, K, V, bias=b)[0])


def test_a_sum_over_other_axes_is_refuted():
    """The twin: a gradient of the right shape and of the wrong sum."""
    inputs = (*drawn((3, 3), (3, 3), (3, 3)), torch.randn(3, 1, N_K, dtype=F64))
    with pytest.raises(AssertionError, match="not close"):
        assert_naive(inputs, attention, lambda Q, K, V, b: naive(Q, K, V, bias=b[:, None])[0])


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("lead", [(), (2,), (2, 2)], ids=str)
def test_grouped_heads(groups, lead, several_tiles):
    h, kv = (*lead, 6), (*lead, 6 // groups)
    inputs = drawn(h, kv, kv)

    def theirs(Q, K, V):
        return naive(Q, *(t.repeat_interleave(groups, -3) for t in (K, V)))[0]

    assert_naive(inputs, lambda *x: attention(*x, enable_gqa=True), theirs)


def test_samples_of_vmap_and_a_batch_axis_are_one(several_tiles):
    inputs = drawn((2, 3), (2, 3), (2, 3))
    bias = torch.randn(2, 3, 1, N_K, dtype=F64)
    mapped = vmap(lambda *x: attention(*x[:3], bias=x[3]))(*inputs, bias)
    assert_close(mapped, attention(*inputs, bias=bias), rtol=0, atol=1e-15)
    outside = vmap(vmap(lambda *x: attention(*x)), in_dims=1, out_dims=1)(*inputs)
    assert_close(outside, attention(*inputs), rtol=0, atol=1e-15)
