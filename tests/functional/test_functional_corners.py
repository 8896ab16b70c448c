"""Rare combinations that a reviewer found wrong once, each against the naive formula or PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.autograd import grad
from torch.testing import assert_close

from gradderiv.errors import DtypeError, InputError
from gradderiv.functional import attention, graph_attention
from gradderiv.nn import MultiheadAttention
from gradderiv.rules.graphs import sliding_window

COMPILE_WARNS = "ignore:.*should not be instantiated:DeprecationWarning"


def drawn(*lengths, lead=(2, 3), d=4):
    torch.manual_seed(1)
    return tuple(torch.randn(*lead, n, d, dtype=torch.float64, requires_grad=True) for n in lengths)


@pytest.mark.parametrize(
    "options", [{}, {"window": (2, 0)}, {"return_lse": True}], ids=["fused", "tiles", "lse"]
)
def test_batched_gradients_can_be_differentiated_again(options, reference):
    """``jacobian(vectorize=True, create_graph=True)``"""
    Q, K, V = drawn(5, 5, 5)

    def second(function):
        O = function(Q, K, V)
        dO = torch.linspace(-1, 1, 3 * O.numel(), dtype=O.dtype).view(3, *O.shape)
        first = grad(O, (Q, K), dO, is_grads_batched=True, create_graph=True)
        assert all(g.requires_grad for g in first)
        return grad(sum(g.sin().sum() for g in first) + Q.square().sum(), (Q, K, V))

    def ours(*x):
        found = attention(*x, **options)
        return found[0] if "return_lse" in options else found

    band = torch.ones(5, 5, dtype=torch.bool)
    mask = band.tril().triu(-2) if "window" in options else None
    assert_close(second(ours), second(lambda *x: reference(*x, mask=mask)), rtol=0, atol=1e-11)


def test_batched_gradients_on_a_graph_can_be_differentiated_again():
    x, graph = drawn(6, 6, 6), sliding_window(6, 1)
    O = graph_attention(*x, graph)
    (one,) = grad(O, x[0], torch.ones(2, *O.shape, dtype=O.dtype), is_grads_batched=True, create_graph=True)
    (two,) = grad(O, x[0], torch.ones_like(O), create_graph=True)
    assert_close(grad(one[0].sin().sum(), x[1]), grad(two.sin().sum(), x[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_causal_with_a_scale_that_is_not_positive(scale, reference):
    """PyTorch's kernel hides by −∞, and multiplies by the scale afterwards."""
    x = drawn(5, 5, 5)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    assert_close(attention(*x, is_causal=True, scale=scale), reference(*x, mask=mask, scale=scale))
    theirs = torch.nn.functional.scaled_dot_product_attention(*x, is_causal=True, scale=scale)
    assert theirs.isnan().any()


@pytest.mark.filterwarnings(COMPILE_WARNS)
def test_compiled_with_a_bias_and_causal_in_linear_memory(reference):
    x = drawn(5, 5, 5)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(
        lambda *t: attention(*t[:3], bias=t[3], is_causal=True), backend="aot_eager", fullgraph=True
    )
    expected = reference(*x, bias=bias, mask=torch.ones(5, 5, dtype=torch.bool).tril())
    found = compiled(*x, bias)
    assert_close(grad(found.sin().sum(), (*x, bias)), grad(expected.sin().sum(), (*x, bias)))


@pytest.mark.filterwarnings(COMPILE_WARNS)
def test_compiled_with_numbers_that_change():
    x = [t.detach() for t in drawn(5, 5, 5)]
    compiled = torch.compile(lambda *t, **o: attention(*t, **o), backend="aot_eager", fullgraph=True)
    for options in (
        {"window": (1, 0)},
        {"window": (2, 0)},
        {"window": (3, 0)},
        {"softcap": 1.0},
        {"softcap": 2.0},
        {"softcap": 3.0},
    ):
        assert_close(compiled(*x, **options), attention(*x, **options), rtol=0, atol=0)


@pytest.mark.filterwarnings(COMPILE_WARNS, "ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("options", [{"window": (2, 0)}, {"return_lse": True}], ids=str)
def test_forward_mode_raises_under_the_compiler_and_is_not_0(options):
    Q, K, V = (t.detach() for t in drawn(5, 5, 5))
    whole = torch.compile(lambda q: attention(q, K, V, **options), backend="aot_eager", fullgraph=True)
    with forward_ad.dual_level(), pytest.raises(Exception, match="forward mode"):
        whole(forward_ad.make_dual(Q, Q))
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_reverse_over_forward_while_the_level_is_open(reference):
    Q, K, V = drawn(5, 5, 5)

    def tangent(function):
        with forward_ad.dual_level():
            O = function(forward_ad.make_dual(Q.detach(), torch.ones_like(Q)), K, V)
            return grad(forward_ad.unpack_dual(O).tangent.sin().sum(), K)

    assert_close(tangent(attention), tangent(reference), rtol=0, atol=1e-13)


def test_a_sink_of_minus_infinity_is_none(reference):
    x = drawn(4, 4, 4)
    sinks = torch.tensor([-torch.inf, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1] = False
    O = attention(*x, mask, sinks=sinks)
    assert not O[:, :, 1].any()
    assert_close(O[:, 0], reference(*(t[:, 0] for t in x), mask=mask))
    assert all(g.isfinite().all() for g in grad(O.sin().sum(), (*x, sinks)))


@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"window": (3, 0)}, {}], ids=str)
def test_a_backward_inside_autocast_is_in_the_type_of_the_inputs(options):
    x = tuple(t.detach().float().requires_grad_() for t in drawn(6, 6, 6))

    def second(inside):
        O = attention(*x, **options)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            first = grad(O, x, torch.ones_like(O), create_graph=True)
            return grad(sum((g * g).sum() for g in first), x)

    assert_close(second(True), second(False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3)], ids=str)
def test_what_comes_back_is_no_view_and_is_guarded(lead):
    """As PyTorch's own: it may be written to, and a backward pass that needs it says so."""
    x = drawn(4, 4, 4, lead=lead)
    O = attention(*x)
    O += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        O.sum().backward()


def test_a_float_mask_of_another_type_is_cast_as_pytorch_does():
    x = [t.detach().bfloat16() for t in drawn(4, 4, 4)]
    mask = torch.randn(4, 4)
    assert_close(
        attention(*x, mask),
        torch.nn.functional.scaled_dot_product_attention(*x, mask),
        rtol=1.6e-2,
        atol=1e-2,
    )


BAD = {
    "cap": (lambda *x: attention(*x, softcap=float("inf")), InputError, "softcap"),
    "no number": (lambda *x: attention(*x, window=(None, 0)), InputError, "-1 = unbounded"),
    "half a key": (lambda *x: attention(*x, window=(1.5, 0)), InputError, "-1 = unbounded"),
    "device": (lambda *x: attention(*x, torch.ones(4, 4, dtype=torch.bool, device="meta")), DtypeError, "one device"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(*drawn(4, 4, 4))


def test_keys_that_a_layer_adds_are_seen_whether_weights_are_asked_for_or_not():
    layer = MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True)
    x, mask = torch.randn(2, 5, 8), torch.ones(5, 5, dtype=torch.bool).triu(1)
    found = [layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=w)[0] for w in (False, True)]
    assert_close(*found)
