"""Fused projections: every layout against the models that have it, against an enumeration of its columns, and on every number."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

import gradderiv
from gradderiv.errors import InputError
from gradderiv.rules.layouts import LAYOUTS, convert, fuse, split

SIZES = [(3, 3, 2, 2), (3, 3, 2, 5), (6, 2, 4, 3), (4, 1, 3, 3), (1, 1, 2, 1)]  # h, h_kv, d_k, d_v
FITTING = [
    (layout, s) for layout, s in itertools.product(LAYOUTS, SIZES) if layout != "interleaved" or s[0] == s[1]
]


def columns(layout: str, h: int, h_kv: int, d_k: int, d_v: int) -> list[tuple[str, int, int]]:
    """What stands in each column: (part, head, coordinate), written down as the systems describe it."""
    g = h // h_kv
    q = [[("q", i, c) for c in range(d_k)] for i in range(h)]
    k = [[("k", j, c) for c in range(d_k)] for j in range(h_kv)]
    v = [[("v", j, c) for c in range(d_v)] for j in range(h_kv)]
    if layout == "contiguous":
        return [c for part in (q, k, v) for head in part for c in head]
    if layout == "head-last":
        return [head[c] for part in (q, k, v) for c in range(len(part[0])) for head in part]
    return [c for j in range(h_kv) for head in (*q[j * g : (j + 1) * g], k[j], v[j]) for c in head]


def parts(h, h_kv, d_k, d_v, *leading):
    return [torch.randn(*leading, n, dtype=torch.float64) for n in (h * d_k, h_kv * d_k, h_kv * d_v)]


@pytest.mark.parametrize(("layout", "sizes"), FITTING)
def test_every_column_stands_where_the_system_has_it(layout, sizes):
    h, h_kv, d_k, d_v = sizes
    W_Q, W_K, W_V = parts(*sizes, 7)
    fused = fuse(W_Q, W_K, W_V, layout=layout, n_heads=h, n_kv_heads=h_kv)
    here = {"q": (W_Q, d_k), "k": (W_K, d_k), "v": (W_V, d_v)}
    expected = [here[p][0][:, i * here[p][1] + c] for p, i, c in columns(layout, *sizes)]
    assert torch.equal(fused, torch.stack(expected, -1))


@pytest.mark.parametrize(("layout", "sizes"), FITTING)
@pytest.mark.parametrize("leading", [(), (7,), (2, 7)])
def test_split_is_the_inverse_of_fuse_to_the_last_bit(layout, sizes, leading):
    h, h_kv, d_k, _ = sizes
    given = parts(*sizes, *leading)
    fused = fuse(*given, layout=layout, n_heads=h, n_kv_heads=h_kv)
    back = split(fused, layout=layout, n_heads=h, n_kv_heads=h_kv, d_k=d_k)
    assert all(torch.equal(a, b) for a, b in zip(given, back, strict=True))


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(LAYOUTS, 2)))
def test_any_layout_from_any_other_and_back(source, target):
    W = torch.randn(5, 36)
    there = convert(W, source=source, target=target, n_heads=4)
    assert torch.equal(convert(there, source=target, target=source, n_heads=4), W)
    if {source, target} != {"grouped", "interleaved"}:
        assert not torch.equal(there, W)


@pytest.mark.parametrize(("layout", "sizes"), FITTING)
def test_the_gradient_of_the_fused_matrix_is_the_fused_gradient(layout, sizes):
    h, h_kv, d_k, _ = sizes
    X = torch.randn(4, 7, dtype=torch.float64)
    fused = fuse(*parts(*sizes, 7), layout=layout, n_heads=h, n_kv_heads=h_kv).requires_grad_()
    projected = [X @ W for W in split(fused, layout=layout, n_heads=h, n_kv_heads=h_kv, d_k=d_k)]
    cotangents = [torch.randn_like(y) for y in projected]
    (by_autograd,) = torch.autograd.grad(projected, fused, cotangents)
    closed = fuse(*(X.mT @ g for g in cotangents), layout=layout, n_heads=h, n_kv_heads=h_kv)
    assert torch.allclose(by_autograd, closed, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_proved(layout):
    """Attention on a fused projection, its layout's gradient against that of separate matrices fused."""

    def attend(Q, K, V):
        return torch.softmax(Q @ K.mT, -1) @ V

    def on_fused(X, W, b):
        return attend(*split(X @ W + b, layout=layout, n_heads=3))

    def on_parts(X, W, b):
        parts = zip(split(W, layout=layout, n_heads=3), split(b, layout=layout, n_heads=3), strict=True)
        return attend(*(X @ w + c for w, c in parts))

    inputs = {"X": torch.randn(4, 5), "W": torch.randn(5, 18), "b": torch.randn(18)}
    proof = gradderiv.prove(on_fused, inputs, reference=on_parts)
    assert proof.passed, proof
    others = [other for other in LAYOUTS if {other, layout} != {"grouped", "interleaved"} and other != layout]

    def misread(X, W, b):
        return attend(*split(X @ W + b, layout=others[0], n_heads=3))

    assert gradderiv.prove(misread, inputs, reference=on_parts).verdict == "refuted"


# ---------------------------------------------------------------- real systems


def test_torch_reads_in_proj_weight_as_contiguous():
    layer = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    X = torch.randn(2, 5, 12, dtype=torch.float64)
    W = split(layer.in_proj_weight.mT, layout="contiguous", n_heads=3)
    b = split(layer.in_proj_bias, layout="contiguous", n_heads=3)
    Q, K, V = ((X @ w + c).unflatten(-1, (3, 4)).transpose(1, 2) for w, c in zip(W, b, strict=True))
    O = functional.scaled_dot_product_attention(Q, K, V).transpose(1, 2).flatten(2)
    assert torch.allclose(layer.out_proj(O), layer(X, X, X)[0], atol=1e-12)


MODELS = [("GPT2", "h.0.attn", "contiguous", 2, 2), ("GPTNeoX", "layers.0.attention", "interleaved", 2, 2),
          ("Falcon", "h.0.self_attention", "grouped", 4, 2), ("Falcon, 1 KV head", "h.0.self_attention", "grouped", 2, 1)]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "layout", "h", "h_kv"), MODELS)
def test_a_model_computes_the_heads_that_its_layout_says(name, place, layout, h, h_kv):
    """Queries, keys and values are those that the model's own code cuts out of its fused projection, before any rotation."""
    from gradderiv.examples.real_systems import model_of

    model = model_of(name)
    part = model.get_submodule(place)
    linear = next(m for n, m in part.named_modules() if n in ("c_attn", "query_key_value"))
    weight = linear.weight if type(linear).__name__ == "Conv1D" else linear.weight.mT
    X = torch.randn(3, 5, weight.shape[0])
    Q, K, V = split(X @ weight, layout=layout, n_heads=h, n_kv_heads=h_kv)
    wrong = next(
        other
        for other in ("contiguous", "grouped")
        if other != layout and not (layout == "interleaved" and other == "grouped")
    )
    seen = heads_of(name, part, X @ weight, h, h_kv)
    for ours, theirs in zip((Q, K, V), seen, strict=True):
        assert torch.equal(ours, theirs)
    misread = split(X @ weight, layout=wrong, n_heads=h, n_kv_heads=h_kv)
    assert torch.equal(misread[1], seen[1]) == (h_kv == 1)  # one group is contiguous


def heads_of(name, part, fused, h, h_kv):
    """Queries, keys and values as the model's own code cuts them out of the fused projection, heads side by side."""
    if name == "GPT2":
        return fused.split(part.split_size, dim=2)
    if name == "GPTNeoX":
        cut = fused.view(*fused.shape[:-1], -1, 3 * part.head_size).transpose(1, 2).chunk(3, dim=-1)
        return [t.transpose(1, 2).flatten(2) for t in cut]
    query, key, value = part._split_heads(fused)
    group = h // h_kv
    firsts = slice(None, None, group) if key.shape[-2] == h else slice(None)
    return [query.flatten(2), key[..., firsts, :].flatten(2), value[..., firsts, :].flatten(2)]


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split(torch.randn(5, 18), layout="gpt2", n_heads=3), "a layout is one of contiguous"),
        (lambda: split(torch.randn(5, 18), layout="contiguous", n_heads=4), "a fused width"),
        (lambda: split(torch.randn(5, 18), layout="interleaved", n_heads=4, n_kv_heads=2), "layout='grouped'"),
        (lambda: split(torch.randn(5, 18), layout="grouped", n_heads=2, n_kv_heads=4), "equal groups"),
        (lambda: fuse(*parts(3, 3, 2, 2, 5), layout="contiguous", n_heads=4), "widths that the heads divide"),
        (lambda: fuse(*parts(4, 2, 4, 4, 5), layout="contiguous", n_heads=4), "keys as wide as queries"),
        (lambda: fuse(torch.randn(5, 6), torch.randn(4, 6), torch.randn(5, 6), layout="contiguous", n_heads=3), "equal leading axes"),
    ],
)  # fmt: skip
def test_misuse_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
