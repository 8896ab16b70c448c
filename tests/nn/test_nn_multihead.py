"""``gradderiv.nn.MultiheadAttention`` in the place of ``torch.nn.MultiheadAttention``: values, weights, gradients, states, and what differs."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.testing import assert_close

import gradderiv
from gradderiv.errors import DtypeError, InputError
from gradderiv.nn import MultiheadAttention

DOUBLE = torch.float64
N, L, S, E, H = 2, 5, 7, 12, 3  # batch, queries, keys, width, heads
INF = float("inf")


def pair(**options):
    """PyTorch's layer and ours, with the same weights, all of them random."""
    theirs = nn.MultiheadAttention(E, H, dtype=DOUBLE, **options)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.4)
    ours = MultiheadAttention(E, H, dtype=DOUBLE, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def inputs(options, *, batched=True, cross=True):
    """query, key, value as the layer's options want them."""
    sizes = (
        (L, E),
        (S if cross else L, options.get("kdim") or E),
        (S if cross else L, options.get("vdim") or E),
    )
    front = options.get("batch_first", False)
    shapes = [(s if not batched else (N, *s) if front else (s[0], N, s[1])) for s in sizes]
    return [torch.randn(s, dtype=DOUBLE, requires_grad=True) for s in shapes]


def padding(kind, batched=True):
    mask = torch.arange(S) >= torch.tensor([[S], [4]])
    mask = mask if batched else mask[1]
    return mask if kind == "bool" else torch.randn(mask.shape, dtype=DOUBLE).masked_fill(mask, -INF)


def hiding(kind, axes):
    mask = torch.rand((N * H, L, S)[3 - axes :]) > 0.6
    mask[..., 0] = False
    return mask if kind == "bool" else torch.randn(mask.shape, dtype=DOUBLE).masked_fill(mask, -INF)


def assert_same(theirs, ours, tensors, **call):
    """Output, weights, and the gradients of inputs, parameters and float masks."""
    variables = [
        *tensors,
        *(m for m in call.values() if isinstance(m, torch.Tensor) and m.is_floating_point()),
    ]
    for v in variables:
        v.requires_grad_()
    found, wanted = ours(*tensors, **call), theirs(*tensors, **call)
    assert (found[1] is None) == (wanted[1] is None)
    assert_close(found, wanted, rtol=0, atol=1e-13)
    d = [torch.randn_like(x) for x in found if x is not None]
    both = [
        grad([x for x in result if x is not None], [*variables, *layer.parameters()], d, allow_unused=True)
        for result, layer in ((found, ours), (wanted, theirs))
    ]
    assert_close(*both, rtol=0, atol=1e-12)


CONSTRUCTORS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "widths": {"kdim": 8, "vdim": 10, "batch_first": True},
    "learned key": {"add_bias_kv": True},
    "zero key": {"add_zero_attn": True, "batch_first": True},
    "both keys": {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("weights", ["none", "mean", "each"])
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_constructor(name, weights, batched):
    theirs, ours = pair(**CONSTRUCTORS[name])
    tensors = inputs(CONSTRUCTORS[name], batched=batched)
    masks = {"key_padding_mask": padding("bool", batched), "attn_mask": hiding("bool", 2)}
    assert_same(
        theirs, ours, tensors, need_weights=weights != "none", average_attn_weights=weights == "mean", **masks
    )


@pytest.mark.parametrize("pad", [None, "bool", "float"])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("hide", [None, "bool", "float"])
@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")
def test_every_mask(hide, axes, pad):
    options = {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}
    theirs, ours = pair(**options)
    masks = {
        "attn_mask": None if hide is None else hiding(hide, axes),
        "key_padding_mask": None if pad is None else padding(pad),
    }
    for need_weights in (True, False):
        assert_same(theirs, ours, inputs(options), need_weights=need_weights, **masks)
    if "bool" in (hide, pad):  # the twin: the opposite polarity
        tensors = inputs(options)
        opposite = {k: ~m if m is not None and m.dtype == torch.bool else m for k, m in masks.items()}
        assert (ours(*tensors, **opposite)[0] - theirs(*tensors, **masks)[0]).abs().max() > 0.01


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("causal", ["bool", "float"])
def test_is_causal_is_a_hint_about_the_mask(causal, padded, need_weights):
    theirs, ours = pair()
    tensors = inputs({}, cross=False)
    mask = torch.ones(L, L, dtype=torch.bool).triu(1)
    mask = mask if causal == "bool" else nn.Transformer.generate_square_subsequent_mask(L, dtype=DOUBLE)
    pad = (torch.arange(L) >= torch.tensor([[L], [3]])) if padded else None
    pad = pad if causal == "bool" or pad is None else torch.zeros(N, L, dtype=DOUBLE).masked_fill(pad, -INF)
    call = {"need_weights": need_weights, "key_padding_mask": pad, "is_causal": True}
    assert_same(theirs, ours, tensors, attn_mask=mask, **call)
    # a hint that does not hold is believed where PyTorch believes it, and there only
    assert_same(theirs, ours, tensors, attn_mask=torch.zeros_like(mask), **call)
    for layer, error in ((theirs, RuntimeError), (ours, InputError)):
        with pytest.raises(error, match="attn_mask"):
            layer(*tensors, **call)


def test_self_attention_is_one_product():
    theirs, ours = pair(batch_first=True)
    x = torch.randn(N, L, E, dtype=DOUBLE, requires_grad=True)
    assert_close(ours(x, x, x), theirs(x, x, x), rtol=0, atol=1e-13)
    assert_close(ours(x, x, x), ours(x, x.clone(), x.clone()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [(0, 4, 2), (3, 0, 2), (3, 4, 0)])
@pytest.mark.parametrize("need_weights", [True, False])
def test_nothing_in_nothing_out(sizes, need_weights):
    n_q, n_k, batch = sizes
    query, key = torch.randn(n_q, batch, E, dtype=DOUBLE), torch.randn(n_k, batch, E, dtype=DOUBLE)
    theirs, ours = pair()
    found, wanted = (layer(query, key, key, need_weights=need_weights) for layer in (ours, theirs))
    assert_close(found, wanted, rtol=0, atol=1e-13)


def test_a_row_that_may_attend_to_nothing_is_zero_where_pytorch_has_nan():
    theirs, ours = pair(batch_first=True)
    tensors = inputs({"batch_first": True})
    mask = torch.zeros(L, S, dtype=torch.bool)
    mask[2] = True
    Y, P = ours(*tensors, attn_mask=mask)
    assert_close(Y[:, 2], ours.out_proj.bias.expand(N, -1), rtol=0, atol=0)
    assert not P[:, 2].any()
    assert all(g.isfinite().all() for g in grad(Y.sin().sum(), [*tensors, *ours.parameters()]))
    wanted, _ = theirs(*tensors, attn_mask=mask)
    assert wanted[:, 2].isnan().all()
    others = [0, 1, 3, 4]
    assert_close(Y[:, others], wanted[:, others], rtol=0, atol=1e-13)


# ---------------------------------------------------------------- derivatives


def one_call(**options):
    """A function of the input, the parameters and a float mask."""
    _, layer = pair(**options)
    named = dict(layer.named_parameters())
    bias = torch.randn(L, L, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(N, L, E, dtype=DOUBLE, requires_grad=True)

    def call(x, bias, *values):
        weights = dict(zip(named, values, strict=True))
        Y, P = torch.func.functional_call(layer, weights, (x, x, x), {"attn_mask": bias})
        return Y, P

    return call, (x, bias, *named.values())


def test_derivatives_of_first_and_second_order():
    call, variables = one_call(batch_first=True, add_bias_kv=True)
    assert gradcheck(call, variables, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(call, variables, fast_mode=True)


def test_no_score_matrix_is_kept_for_the_backward_pass():
    """The largest tensor that autograd keeps has a few numbers for each of n·d; with weights, or in PyTorch's layer, it has n²."""

    def largest(layer, need_weights, n=384):
        x, sizes = torch.randn(1, n, E, dtype=DOUBLE, requires_grad=True), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            layer(x, x, x, need_weights=need_weights)
        return max(sizes) / n

    theirs, ours = pair(batch_first=True)
    assert largest(ours, False) <= 4 * E
    assert largest(theirs, True) >= 384


def test_gradients_of_each_sample():
    _, ours = pair(batch_first=True)
    weights = {name: p.detach() for name, p in ours.named_parameters()}
    x = torch.randn(N, L, E, dtype=DOUBLE)

    def loss(weights, x):
        return torch.func.functional_call(ours, weights, (x, x, x), {"need_weights": False})[0].sin().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for i in range(N):
        alone = torch.func.grad(loss)(weights, x[i])
        assert_close({name: g[i] for name, g in each.items()}, alone, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_compiles():
    _, ours = pair(batch_first=True, add_zero_attn=True)
    tensors = inputs({"batch_first": True})
    call = {"key_padding_mask": padding("bool"), "need_weights": False}
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert_close(compiled(*tensors, **call)[0], ours(*tensors, **call)[0], rtol=0, atol=1e-13)


def test_it_is_proved():
    _, ours = pair(batch_first=True)
    assert gradderiv.prove(ours, inputs({"batch_first": True})).verdict == "proved"


def test_a_float_mask_learns():
    _, ours = pair(batch_first=True)
    mask, pad = hiding("float", 2).requires_grad_(), padding("float").requires_grad_()
    Y, _ = ours(*inputs({"batch_first": True}), attn_mask=mask, key_padding_mask=pad, need_weights=False)
    for m, g in zip((mask, pad), grad(Y.sin().sum(), (mask, pad)), strict=True):
        assert not g[m == -INF].any()
        assert g[m != -INF].any()


# ---------------------------------------------------------------- a module like any other


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_constructor_and_state_are_pytorchs(name):
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(E, H, 0.1, **CONSTRUCTORS[name])
    torch.manual_seed(3)
    ours = MultiheadAttention(E, H, 0.1, **CONSTRUCTORS[name])
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert isinstance(ours, nn.MultiheadAttention)


def test_copies_and_pickles():
    _, ours = pair(kdim=8, add_bias_kv=True)
    tensors = inputs({"kdim": 8})
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for again in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        assert type(again) is MultiheadAttention
        assert_close(again(*tensors), ours(*tensors), rtol=0, atol=0)


def test_dtype_and_device_of_the_parameters():
    half = MultiheadAttention(E, H, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    x = torch.randn(L, E, dtype=torch.bfloat16)
    assert half(x, x, x, attn_mask=torch.zeros(L, L))[0].dtype == torch.bfloat16  # a mask in another dtype
    assert {p.device.type for p in MultiheadAttention(E, H, device="meta").parameters()} == {"meta"}


def test_autocast():
    ours = MultiheadAttention(E, H)
    x = torch.randn(L, E, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Y, _ = ours(x, x, x, need_weights=False)
    assert Y.dtype == torch.bfloat16
    assert grad(Y.float().sum(), x)[0].dtype == torch.float32


def test_dropout_in_training_only():
    ours = MultiheadAttention(E, H, dropout=0.5, dtype=DOUBLE)
    x = torch.randn(L, N, E, dtype=DOUBLE)
    _, P = ours(x, x, x, average_attn_weights=False)
    _, whole = ours.eval()(x, x, x, average_attn_weights=False)
    assert_close(
        P, torch.where(P == 0, 0.0, 2 * whole), rtol=0, atol=1e-13
    )  # those returned are those that multiply V
    assert 0.2 < (P == 0).double().mean() < 0.8
    assert_close(whole.sum(-1), torch.ones_like(whole[..., 0]), rtol=0, atol=1e-13)
    assert_close(ours(x, x, x), ours(x, x, x), rtol=0, atol=0)


@pytest.mark.parametrize("norm_first", [True, False])
def test_inside_an_encoder_layer(norm_first):
    layer = nn.TransformerEncoderLayer(
        E, 2, 20, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=DOUBLE
    )
    same = copy.deepcopy(layer)
    same.self_attn = MultiheadAttention(E, 2, batch_first=True, dtype=DOUBLE)
    same.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(N, L, E, dtype=DOUBLE, requires_grad=True)
    pad = torch.arange(L) >= torch.tensor([[L], [3]])
    causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=DOUBLE)
    calls = ({}, {"src_key_padding_mask": pad}, {"src_mask": causal, "is_causal": True})
    for call in calls:
        assert_close(same(x, **call), layer(x, **call), rtol=0, atol=1e-12)
    with torch.no_grad():  # the fast path of a whole layer, which asks self_attn for its parameters only
        layer.eval(), same.eval()
        for call in calls:
            assert_close(same(x, **call), layer(x, **call), rtol=0, atol=1e-12)
    for p in same.parameters():
        p.requires_grad_(False)
    double = grad(grad(same(x).sin().sum(), x, create_graph=True)[0].square().sum(), x)[0]
    assert double.isfinite().all()


def test_inside_a_decoder_layer_and_an_encoder():
    decoder = nn.TransformerDecoderLayer(E, 2, 20, dropout=0.0, dtype=DOUBLE)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(E, 2, 20, 0.0, batch_first=True, dtype=DOUBLE), 2
    )
    same = copy.deepcopy(nn.ModuleList([decoder, encoder]))
    for module in list(same.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention:
                setattr(module, name, MultiheadAttention(E, 2, batch_first=child.batch_first, dtype=DOUBLE))
    same.load_state_dict(nn.ModuleList([decoder, encoder]).state_dict(), strict=True)
    tgt, memory = torch.randn(L, N, E, dtype=DOUBLE), torch.randn(S, N, E, dtype=DOUBLE)
    assert_close(same[0](tgt, memory), decoder(tgt, memory), rtol=0, atol=1e-12)
    x, pad = tgt.transpose(0, 1), torch.arange(L) >= torch.tensor([[L], [3]])
    assert_close(
        same[1](x, src_key_padding_mask=pad), encoder(x, src_key_padding_mask=pad), rtol=0, atol=1e-12
    )


# ---------------------------------------------------------------- misuse

X = torch.randn(N, L, E, dtype=DOUBLE)
BAD = {
    "batch second": (
        {"query": torch.randn(L, N + 1, E, dtype=DOUBLE)},
        InputError,
        "batch and sequence exchanged",
    ),
    "four axes": ({"query": torch.randn(N, H, L, 4, dtype=DOUBLE)}, InputError, "heads already split"),
    "width": ({"key": torch.randn(N, L, 8, dtype=DOUBLE)}, InputError, "kdim"),
    "list": ({"query": [[1.0]]}, DtypeError, "as a tensor"),
    "integers": ({"query": torch.ones(N, L, E, dtype=torch.int64)}, DtypeError, "floating-point"),
    "dtypes": ({"query": torch.randn(N, L, E)}, DtypeError, "one dtype"),
    "0 and 1": ({"key_padding_mask": torch.ones(N, L, dtype=torch.int64)}, DtypeError, "== 0"),
    "another mask": ({"attn_mask": torch.zeros(N, L, L, dtype=torch.bool)}, InputError, "repeat_interleave"),
    "another padding": ({"key_padding_mask": torch.zeros(L, N, dtype=torch.bool)}, InputError, r"\(2, 5\)"),
    "hint alone": ({"is_causal": True}, InputError, "generate_square_subsequent_mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_misuse_is_named(name):
    change, error, words = BAD[name]
    layer = MultiheadAttention(E, H, batch_first=True, dtype=DOUBLE)
    with pytest.raises(error, match=words):
        layer(**{"query": X, "key": X, "value": X, **change})


@pytest.mark.parametrize(
    ("arguments", "words"), [((12, 5), "divide"), ((0, 1), "divide"), ((12, 3, 30), "share")]
)
def test_misuse_of_the_constructor_is_named(arguments, words):
    with pytest.raises(InputError, match=words):
        MultiheadAttention(*arguments)
