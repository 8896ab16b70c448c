"""``functional.multi_head_attention``: against PyTorch's own layer, gradcheck, and per-sample gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import functional_call, hessian, vmap
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

import gradderiv
from gradderiv.errors import DtypeError, InputError
from gradderiv.functional import fused_multi_head_attention, multi_head_attention
from gradderiv.rules.fused import fused, fused_vjp
from gradderiv.rules.layouts import LAYOUTS, fuse
from gradderiv.rules.masks import causal, padding, window
from gradderiv.rules.multihead import multihead, multihead_vjp

DOUBLE = torch.float64


def random(*shape):
    return torch.randn(shape, dtype=DOUBLE, requires_grad=True)


def plain(X, W_Q, W_K, W_V, W_O, *, n_heads, X_kv=None, b_Q=0, b_K=0, b_V=0, b_O=0, mask=None):
    """The layer out of PyTorch's own parts."""
    source = X if X_kv is None else X_kv
    rows = (X @ W_Q + b_Q, source @ W_K + b_K, source @ W_V + b_V)
    Q, K, V = (a.unflatten(-1, (n_heads, -1)).transpose(-3, -2) for a in rows)
    return scaled_dot_product_attention(Q, K, V, mask).transpose(-3, -2).flatten(-2) @ W_O + b_O


@pytest.mark.parametrize("masked", [False, True])
def test_the_docstring_passes_the_weights_of_pytorchs_layer(masked):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=True, dtype=DOUBLE)
    for b in (layer.in_proj_bias, layer.out_proj.bias):
        nn.init.normal_(b)
    X, X_kv = random(2, 5, 12), random(2, 7, 12)
    attn_mask = torch.rand(5, 7) > 0.7 if masked else None
    padding = torch.arange(7) > torch.tensor([[6], [4]])
    theirs, _ = layer(X, X_kv, X_kv, attn_mask=attn_mask, key_padding_mask=padding)

    W_Q, W_K, W_V = (W.mT for W in layer.in_proj_weight.chunk(3))
    b_Q, b_K, b_V = layer.in_proj_bias.chunk(3)
    W_O, b_O = layer.out_proj.weight.mT, layer.out_proj.bias
    mask = ~padding[:, None, None] if attn_mask is None else ~padding[:, None, None] & ~attn_mask
    biases = {"b_Q": b_Q, "b_K": b_K, "b_V": b_V, "b_O": b_O}
    ours = multi_head_attention(X, W_Q, W_K, W_V, W_O, n_heads=3, X_kv=X_kv, mask=mask, **biases)

    assert_close(ours, theirs, rtol=0, atol=1e-14)
    variables = (X, X_kv, *layer.parameters())
    dY = torch.randn_like(ours)
    assert_close(grad(ours, variables, dY), grad(theirs, variables, dY), rtol=0, atol=1e-13)
    # the twin: the weights as nn.Linear has them
    wrong = multi_head_attention(X, W_Q.mT, W_K.mT, W_V.mT, W_O.mT, n_heads=3, X_kv=X_kv, mask=mask, **biases)
    assert (wrong - theirs).abs().max() > 0.1


def problem(cross):
    """h = 2, h_kv = 1, every width another, and a mask with an empty row."""
    torch.manual_seed(1)
    shapes = {"X": (2, 3, 4), "W_Q": (4, 6), "W_K": (4, 3), "W_V": (4, 5), "W_O": (10, 2)}
    shapes |= {"b_Q": (6,), "b_K": (3,), "b_V": (5,), "b_O": (2,), "bias": (2, 1, 3)}
    if cross:
        shapes |= {"X_kv": (2, 3, 5), "W_K": (5, 3), "W_V": (5, 5)}
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    names = tuple(shapes)

    def call(*tensors):
        return multi_head_attention(
            **dict(zip(names, tensors, strict=True)), n_heads=2, n_kv_heads=1, mask=mask
        )

    return call, tuple(random(*s) for s in shapes.values())


@pytest.mark.parametrize("cross", [False, True])
def test_gradcheck(cross):
    call, inputs = problem(cross)
    assert gradcheck(call, inputs, check_forward_ad=True)
    assert gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("cross", [False, True])
def test_second_order(cross):
    call, inputs = problem(cross)
    assert gradgradcheck(call, inputs, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_batched_gradients(check):
    call, inputs = problem(cross=True)
    forward = {"check_forward_ad": True, "check_batched_forward_grad": True} if check is gradcheck else {}
    assert check(call, inputs, fast_mode=True, check_batched_grad=True, **forward)


def test_a_still_source_of_keys_has_no_tangent():
    """X moves and X_kv, of the same shape, does not: neither may stand in for the other."""
    torch.manual_seed(3)
    X, X_kv, *W = random(3, 4), random(3, 4), random(4, 4), random(4, 4), random(4, 4), random(4, 4)

    def rate(function):
        return torch.func.jvp(lambda X: function(X, *W, n_heads=2, X_kv=X_kv), (X,), (X,))[1]

    assert_close(rate(multi_head_attention), rate(plain), rtol=0, atol=1e-13)


# ---------------------------------------------------------------- options

SHAPES = {
    "X": (2, 5, 4),
    "X_kv": (2, 7, 3),
    "W_Q": (4, 12),
    "W_K": (3, 6),
    "W_V": (3, 10),
    "W_O": (20, 2),
    "b_Q": (12,),
    "b_V": (10,),
    "b_O": (2,),
}
OPTIONS = {
    "none": ({}, {}),
    "causal": ({"is_causal": True}, {"mask": causal("upper-left")}),
    "window": ({"window": (2, 1)}, {"mask": window(2, 1, "lower-right")}),
    "mask": ({"mask": padding([7, 3])}, {"mask": padding([7, 3])}),
    "causal mask": ({"mask": padding([7, 3]), "is_causal": True}, {"mask": padding([7, 3]) & causal("upper-left")}),
    "softcap": ({"softcap": 0.7}, {"softcap": 0.7}),
    "sinks": ({"sinks": (4,)}, {"sinks": (4,)}),
    "bias": ({"bias": (4, 5, 7)}, {"bias": (4, 5, 7)}),
    "scale": ({"scale": 0.9}, {"scale": 0.9}),
    "all": (
        {"sinks": (4,), "bias": (4, 1, 7), "softcap": 0.7, "window": (3, 0), "mask": padding([7, 3])},
        {"sinks": (4,), "bias": (4, 1, 7), "softcap": 0.7, "mask": padding([7, 3]) & window(3, 0, "lower-right")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_that_of_the_rule(name):
    """The rule, whose backward is recited, and whose forward is compared with loops in its own tests."""
    ours, rules = OPTIONS[name]
    variables = {n: random(*s) for n, s in SHAPES.items()}
    variables |= {n: random(*s) for n, s in rules.items() if n in ("sinks", "bias")}
    settings = [{k: v for k, v in o.items() if k not in variables} for o in (ours, rules)]
    Y = multi_head_attention(**variables, n_heads=4, n_kv_heads=2, **settings[0])
    with torch.no_grad():
        wanted, saved = multihead(**variables, n_heads=4, n_kv_heads=2, **settings[1])
        dY = torch.randn_like(wanted)
        g = multihead_vjp(dY, saved)
    assert_close(Y, wanted, rtol=0, atol=1e-13)
    found = dict(zip(variables, grad(Y, tuple(variables.values()), dY), strict=True))
    assert_close(found, {n: getattr(g, n) for n in variables}, rtol=0, atol=1e-12)
    if name != "none":  # the twin: without the option
        left_out = {n: v for n, v in variables.items() if n in SHAPES}
        assert (multi_head_attention(**left_out, n_heads=4, n_kv_heads=2) - wanted).abs().max() > 1e-3


def test_weights_are_those_that_multiply_the_values():
    X, W_Q, W_K, W_V = random(2, 5, 6), random(6, 8), random(6, 8), random(6, 8)
    eye = torch.eye(8, dtype=DOUBLE)
    for p in (0.0, 0.5):
        torch.manual_seed(0)
        C, P = multi_head_attention(
            X, W_Q, W_K, W_V, eye, n_heads=2, dropout_p=p, is_causal=True, return_weights=True
        )
        V = (X @ W_V).unflatten(-1, (2, 4)).transpose(-3, -2)
        assert_close((P @ V).transpose(-3, -2).flatten(-2), C, rtol=0, atol=1e-14)
        assert P.shape == (2, 2, 5, 5)
        assert not P.triu(1).any()
    assert (P == 0).sum() > (P.triu(1) == 0).sum() - P.numel()  # some are dropped
    torch.manual_seed(0)
    assert_close(multi_head_attention(X, W_Q, W_K, W_V, eye, n_heads=2, dropout_p=0.5, is_causal=True), C, rtol=0, atol=1e-14)  # fmt: skip


def test_no_score_matrix_is_kept_for_the_backward_pass():
    """The largest tensor that autograd keeps has n·d numbers; the layer out of plain products keeps n²."""

    def largest(layer, n=384):
        X, *W = random(n, 4), random(4, 4), random(4, 4), random(4, 4), random(4, 4)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(X, *W, n_heads=1)
        return max(sizes) / n

    def dense(X, W_Q, W_K, W_V, W_O, n_heads):
        return torch.softmax(X @ W_Q @ (X @ W_K).mT, -1) @ (X @ W_V) @ W_O

    assert largest(multi_head_attention) <= 16
    assert largest(dense) >= 384


def test_it_is_proved_and_is_the_rule():
    call, inputs = problem(cross=True)
    names = ("X", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "bias", "X_kv")
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)

    def rule(*tensors, scale=None):
        given = dict(zip(names, tensors, strict=True))
        return multihead(**given, n_heads=2, n_kv_heads=1, mask=mask, scale=scale)[0]

    tensors = tuple(t.detach() for t in inputs)
    assert gradderiv.prove(call, tensors, reference=rule).verdict == "proved"
    assert gradderiv.prove(call, tensors, order=2).verdict == "proved"
    assert gradderiv.prove(call, tensors, reference=lambda *t: rule(*t, scale=0.5)).verdict == "refuted"


# ---------------------------------------------------------------- one matrix for three


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fused_matrix_in_every_layout(layout):
    h_kv = 4 if layout == "interleaved" else 2
    X, W_O, b_O = random(2, 5, 6), random(12, 7), random(7)
    W = tuple(random(6, n) for n in (8, 2 * h_kv, 3 * h_kv))
    b = tuple(random(n) for n in (8, 2 * h_kv, 3 * h_kv))
    heads = {"layout": layout, "n_heads": 4, "n_kv_heads": h_kv}
    W_QKV, b_QKV = (fuse(*parts, **heads).detach().requires_grad_() for parts in (W, b))
    options = {"softcap": 0.7, "mask": causal()}
    found, P = fused_multi_head_attention(
        X, W_QKV, W_O, b_QKV=b_QKV, b_O=b_O, d_k=2, return_weights=True, **heads, **options
    )
    apart = multi_head_attention(
        X, *W, W_O, n_heads=4, n_kv_heads=h_kv, b_Q=b[0], b_K=b[1], b_V=b[2], b_O=b_O, **options
    )
    assert_close(found, apart, rtol=0, atol=1e-13)
    assert P.shape == (2, 4, 5, 5)
    variables = {"X": X, "W_QKV": W_QKV, "W_O": W_O, "b_QKV": b_QKV, "b_O": b_O}
    dY = torch.randn_like(found)
    with torch.no_grad():
        g = fused_vjp(dY, fused(**variables, d_k=2, **heads, **options)[1])
    gradients = dict(zip(variables, grad(found, tuple(variables.values()), dY), strict=True))
    assert_close(gradients, {n: getattr(g, n) for n in variables}, rtol=0, atol=1e-12)
    other = "head-last" if layout != "head-last" else "contiguous"  # the twin: read in another layout
    wrong = fused_multi_head_attention(
        X, W_QKV, W_O, b_QKV=b_QKV, b_O=b_O, d_k=2, **heads | {"layout": other}, **options
    )
    assert (wrong - found).abs().max() > 1e-3


BAD_FUSED = {
    "transposed": ({"W_QKV": (12, 4)}, InputError, "Conv1D"),
    "width": ({"W_QKV": (4, 13)}, InputError, "fused width"),
    "layout": ({"layout": "gpt2"}, InputError, "the name of a model"),
    "output": ({"W_O": (5, 4)}, InputError, "W_O with 4 rows"),
    "bias": ({"b_QKV": torch.zeros(4, dtype=DOUBLE)}, InputError, r"b_QKV \(12,\)"),
    "last bias": ({"b_O": torch.zeros(5, dtype=DOUBLE)}, InputError, r"b_O \(4,\)"),
    "integers": ({"b_QKV": torch.zeros(12, dtype=torch.int64)}, DtypeError, "floating-point"),
    "mask": ({"mask": torch.zeros(3, 3)}, DtypeError, "boolean mask"),
}


@pytest.mark.parametrize("name", BAD_FUSED)
def test_misuse_of_a_fused_matrix_is_named(name):
    change, error, words = BAD_FUSED[name]
    arguments = {"X": (3, 4), "W_QKV": (4, 12), "W_O": (4, 4), "n_heads": 2, "layout": "contiguous"} | change
    tensors = {k: random(*v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    with pytest.raises(error, match=words):
        fused_multi_head_attention(**tensors)


class Layer(nn.Module):
    """A layer that holds its weights as the closed forms take them."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.W = nn.ParameterList(torch.randn(6, 6, dtype=DOUBLE) for _ in range(4))

    def forward(self, X):
        return self.attend(X, *self.W, n_heads=2)


def test_per_sample_gradients_and_ensembles_by_functional_call():
    torch.manual_seed(4)
    layer, X = Layer(multi_head_attention), random(3, 5, 6).detach()
    weights = {name: W.detach() for name, W in layer.named_parameters()}

    def loss(weights, X, attend=multi_head_attention):
        layer.attend = attend
        return functional_call(layer, weights, (X,)).sin().sum()

    each = vmap(torch.func.grad(loss), (None, 0))(weights, X)
    for i in range(3):
        alone = torch.func.grad(lambda w, i=i: loss(w, X[i], plain))(weights)
        assert_close({name: g[i] for name, g in each.items()}, alone, rtol=0, atol=1e-13)
    ensemble = {name: torch.stack([W, -2 * W]) for name, W in weights.items()}
    both = vmap(loss, (0, None))(ensemble, X)
    expected = [loss({n: W[i] for n, W in ensemble.items()}, X, plain) for i in range(2)]
    assert_close(both, torch.stack(expected), rtol=0, atol=1e-13)


def test_hessian_of_a_weight():
    torch.manual_seed(5)
    X, W_Q, *W = (random(*s).detach() for s in ((3, 4), (4, 2), (4, 2), (4, 2), (2, 3)))

    def curvature(f):
        return hessian(lambda W_Q: f(X, W_Q, *W, n_heads=1).sin().sum())(W_Q)

    assert_close(curvature(multi_head_attention), curvature(plain), rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_a_break():
    call, inputs = problem(cross=False)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    expected = grad(call(*inputs).sin().sum(), inputs)
    assert_close(grad(compiled(*inputs).sin().sum(), inputs), expected, rtol=0, atol=1e-14)


def test_autocast_covers_the_projections():
    X, *W = (random(4, 4).detach().float().requires_grad_() for _ in range(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Y = multi_head_attention(X, *W, n_heads=2)
    assert Y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in grad(Y.float().sum(), (X, *W)))


BAD = {
    "layout": ({"W_Q": (6, 4)}, InputError, "transpose of nn.Linear.weight"),
    "heads": ({"n_heads": 4}, InputError, "n_heads to divide"),
    "mask": ({"mask": torch.zeros(3, 3)}, DtypeError, "boolean mask"),
    "temperature": ({"scale": torch.ones(())}, DtypeError, "temperature"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named(name):
    change, error, words = BAD[name]
    arguments = {"X": (3, 4), "W_Q": (4, 6), "W_K": (4, 6), "W_V": (4, 6), "W_O": (6, 4), "n_heads": 2}
    arguments |= change
    tensors = {k: random(*v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    with pytest.raises(error, match=words):
        multi_head_attention(**tensors)
