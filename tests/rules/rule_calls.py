"""A call of every rule, on tensors of any kind; and layers written out naively that share no line with the rules."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor

from gradderiv.rules import (
    _blocks,
    activation,
    attend,
    attention,
    blockdiag,
    cache,
    dropout,
    embedding,
    entrywise,
    fills,
    fused,
    graph,
    heads,
    layer_norm,
    linear,
    matmul,
    multihead,
    rms_norm,
    rope,
    score_bias,
    scores,
    softcap,
    softmax,
    softmax_lse,
    temperature,
    transformer,
)

MODULES = (
    linear, softmax, fills, attention, heads, multihead, matmul, embedding, blockdiag, _blocks, attend, fused,
    rope, rms_norm, scores, softcap, temperature, score_bias, softmax_lse, dropout, cache, layer_norm, activation, entrywise,
    transformer, graph,
)  # fmt: skip


def rules():
    """Every rule by its name, with the module that it stands in."""
    found = {}
    for module in MODULES:
        for name, function in vars(module).items():
            if (
                inspect.isfunction(function)
                and getattr(function, "is_rule", False)
                and function.__module__ == module.__name__
            ):
                found[name] = function
    return found


@dataclass(frozen=True)
class Sizes:
    """All different, products of two included, so that no axis can be taken for another."""

    batch: tuple[int, ...] = (6,)
    n_q: int = 3
    n_k: int = 5
    d_model: int = 31
    r: int = 16
    d_kv: int = 11
    h: int = 4
    h_kv: int = 2
    d_k: int = 13
    d_v: int = 17
    d_out: int = 19
    n_vocab: int = 23
    n_pos: int = 29
    m: int = 7
    m_k: int = 12

    def names(self):
        z = vars(self) | {"n": self.n_q, "d": self.d_model, "e": self.d_out, "r/2": self.r // 2}
        products = {f"{a}·{b}": z[a] * z[b] for a in ("h", "h_kv", "n_q") for b in ("d_k", "d_v", "n_k")}
        return {k: v for k, v in z.items() if k != "batch"} | products


SMALL = Sizes(
    batch=(), n_q=2, n_k=3, d_model=5, r=4, d_kv=6, h=2, h_kv=1, d_k=4, d_v=7, d_out=8, m=4, m_k=2
)  # 1/√d_k is rational
TINY = Sizes(
    batch=(),
    n_q=2,
    n_k=2,
    d_model=1,
    r=2,
    d_kv=2,
    h=2,
    h_kv=1,
    d_k=1,
    d_v=1,
    d_out=1,
    n_vocab=3,
    n_pos=2,
    m=2,
    m_k=2,
)


def a_mask(n_q, n_k):
    """Different in every row, the first of which is empty."""
    mask = torch.arange(n_q * n_k).reshape(n_q, n_k) % 3 != 1
    mask[0] = False
    mask[-1] = True
    return mask


def a_graph(z, masked):
    """Key 0 is in m_k lists, several times in one; of the lists the first is empty and the others have a gap, if ``masked``."""
    lists = (torch.arange(z.n_q)[:, None] + torch.arange(z.m)) % (z.n_k - 1) + 1
    lists[:, : z.m_k // (z.n_q - masked)] = 0
    if masked:
        lists[0] = -1
        lists = torch.cat([lists[:, :1], lists[:, -1:], lists[:, 1:-1]], 1)
        lists[:, 1] = -1
    return lists


def calls(make, z=SMALL, *, masked=True):
    """{rule: (function, arguments, keyword arguments)}; what a rule has saved is made by its forward."""
    return {name: call for group in GROUPS for name, call in group(make, z, masked).items()}


def call(name, make, z=SMALL, *, masked=True):
    """The call of one rule."""
    return _group_of(name)(make, z, masked)[name]


@functools.cache
def _group_of(name):
    return next(group for group in GROUPS if name in group(torch.randn, SMALL, True))


def four(name, module, args, kwargs, dots, dY, dY_dot):
    """A rule, its tangent, its cotangent and its second order; ``dots`` by position."""
    f, jvp, vjp, vjp_jvp = (getattr(module, f"{name}{s}") for s in ("", "_jvp", "_vjp", "_vjp_jvp"))
    _, saved = f(*args, **kwargs)
    return {
        name: (f, tuple(args), kwargs),
        f"{name}_jvp": (jvp, (saved, *dots), {}),
        f"{name}_vjp": (vjp, (dY, saved), {}),
        f"{name}_vjp_jvp": (vjp_jvp, (dY, saved, dY_dot, *dots), {}),
    }


def not_zero(make, *shape):
    """What is divided by."""
    return make(*shape) + 2.0


def some(z, masked):
    return a_mask(z.n_q, z.n_k) if masked else None


def _linear_calls(make, z, masked):
    X, W, b = make(*z.batch, z.n_q, z.d_model), make(z.d_model, z.d_out), make(z.d_out)
    dots = make(*X.shape), make(*W.shape)
    dY, dY_dot = make(*z.batch, z.n_q, z.d_out), make(*z.batch, z.n_q, z.d_out)
    _, saved = linear.linear(X, W, b)
    return {
        "linear": (linear.linear, (X, W, b), {}),
        "linear_jvp": (linear.linear_jvp, (saved, *dots, make(z.d_out)), {}),
        "linear_vjp": (linear.linear_vjp, (dY, saved), {}),
        "linear_vjp_jvp": (linear.linear_vjp_jvp, (dY, saved, dY_dot, *dots), {}),
    }


def _softmax_calls(make, z, masked):
    scores = (*z.batch, z.n_q, z.n_k)
    S, S_dot, dP, dP_dot = (make(*scores) for _ in range(4))
    return four("softmax", softmax, (S,), {"mask": some(z, masked)}, (S_dot,), dP, dP_dot)


def _attention_calls(make, z, masked):
    mask = some(z, masked)
    shapes = [(*z.batch, z.h, n, d) for n, d in ((z.n_q, z.d_k), (z.n_k, z.d_k), (z.n_k, z.d_v))]
    QKV, dots = [make(*s) for s in shapes], [make(*s) for s in shapes]
    bias, bias_dot = make(z.h, 1, z.n_k), make(z.h, 1, z.n_k)
    dO, dO_dot = (make(*z.batch, z.h, z.n_q, z.d_v) for _ in range(2))
    return four("attention", attention, QKV, {"mask": mask, "bias": bias}, (*dots, bias_dot), dO, dO_dot)


def _heads_calls(make, z, masked):
    X = make(*z.batch, z.h, z.n_k, z.d_v)
    return {
        "split_heads": (heads.split_heads, (make(*z.batch, z.n_k, z.h * z.d_v), z.h), {}),
        "join_heads": (heads.join_heads, (X,), {}),
        "repeat_heads": (heads.repeat_heads, (make(*z.batch, z.h_kv, z.n_k, z.d_v), z.h), {}),
        "sum_heads": (heads.sum_heads, (X, z.h_kv), {}),
    }


def _fill_calls(make, z, masked):
    mask = some(z, masked)
    scores = (*z.batch, z.n_q, z.n_k)
    S, S_dot, dS, dS_dot = (make(*scores) for _ in range(4))
    fill = fills.Fill(mask, make(z.n_q, z.n_k))
    _, saved = fills.masked_fill(S, fill=fill)
    return {
        "masked_fill": (fills.masked_fill, (S,), {"fill": fill}),
        "masked_fill_jvp": (fills.masked_fill_jvp, (saved, S_dot), {}),
        "masked_fill_vjp": (fills.masked_fill_vjp, (dS, saved), {}),
        "masked_fill_vjp_jvp": (fills.masked_fill_vjp_jvp, (dS, saved, dS_dot, S_dot), {}),
    }


def _score_calls(make, z, masked):
    """What acts on scores; a sink in each head where there is a mask, whose first row is empty."""
    mask, full = some(z, masked), (*z.batch, z.h, z.n_q, z.n_k)
    out = {}
    S, S_dot, dY, dY_dot = (make(*full) for _ in range(4))
    out |= four("cap", softcap, (S,), {"softcap": 1.5}, (S_dot,), dY, dY_dot)
    T, T_dot = not_zero(make, z.h, 1, 1), make(z.h, 1, 1)
    out |= four("cool", temperature, (S, T), {}, (S_dot, T_dot), dY, dY_dot)
    s, s_dot = (() if mask is None else (make(z.h),) for _ in range(2))
    several = [(make(*full), make(*full[:-1])) for _ in range(2)]
    out |= four("softmax_lse", softmax_lse, (S, *s), {"mask": mask}, (S_dot, *s_dot), *several)
    buckets = score_bias.t5_buckets(z.n_q, z.n_k, n_buckets=4, max_distance=4)
    keep = a_mask(z.n_q, z.n_k)
    return out | {
        "add_bias": (score_bias.add_bias, (S, make(z.n_q, 1)), {}),
        "add_alibi": (score_bias.add_alibi, (S, make(z.h)), {}),
        "add_relative": (score_bias.add_relative, (S, make(5, z.h)), {"buckets": buckets}),
        "drop": (dropout.drop, (S,), {"keep": keep, "dropout_p": 0.25}),
    }


def _projection_calls(make, z, masked):
    """What acts on queries and keys: r of max(d, r) columns turn."""
    width = max(z.d_model, z.r)
    shape = (*z.batch, z.n_q, width)
    X, X_dot, dY, dY_dot = (make(*shape) for _ in range(4))
    tables, tables_dot = ([make(z.n_q, z.r) for _ in range(2)] for _ in range(2))
    out = four("rope", rope, (X, *tables), {"pairing": "half"}, (X_dot, *tables_dot), dY, dY_dot)
    out["turn"] = (rope.turn, (make(*z.batch, z.n_q, z.r), "interleaved"), {})
    Q, Q_dot = (make(*z.batch, z.n_q, z.d_k) for _ in range(2))
    K, K_dot, past, past_dot = (make(*z.batch, z.n_k, z.d_k) for _ in range(4))
    dS, dS_dot = (make(*z.batch, z.n_q, z.n_k) for _ in range(2))
    out |= four("scores", scores, (Q, K), {"scale": 0.75}, (Q_dot, K_dot), dS, dS_dot)
    dK, dK_dot = (make(*z.batch, 2 * z.n_k, z.d_k) for _ in range(2))
    return out | four("append", cache, (past, K), {}, (past_dot, K_dot), dK, dK_dot)


def square(z):
    return Sizes(**(vars(z) | {"n_q": z.n_k}))


def attend_options(z, *, masked=True):
    """Every option at once, as the shapes of those with a gradient and the rest; at width 1 without norm, rotation and cap."""
    z = square(z)
    past, wide = 2, z.d_k > 1
    n = past + z.n_k
    shapes = {
        "K_cache": (*z.batch, z.h_kv, past, z.d_k), "V_cache": (*z.batch, z.h_kv, past, z.d_v), "temperature": (z.h, 1, 1),
        "slopes": (z.h,), "table": (4, z.h), "bias": (z.h, 1, n),
    }  # fmt: skip
    options = {"buckets": score_bias.t5_buckets(z.n_q, n, n_buckets=4, max_distance=3), "scale": 0.75}
    if wide:
        shapes |= {"gain_Q": (z.d_k,), "gain_K": (z.d_k,), "cos": (z.n_k, 2), "sin": (z.n_k, 2)}
        options |= {"eps": 0.125, "pairing": "interleaved", "softcap": 1.5}
    if masked:
        shapes |= {"sinks": (z.h,)}
        options |= {"mask": a_mask(z.n_q, n), "keep": a_mask(z.n_q, n).flip(0), "dropout_p": 0.25}
    return shapes, options


def _attend_calls(make, z, masked):
    """As many queries as new keys, so that one table of angles is for both."""
    z = square(z)
    shapes, options = attend_options(z, masked=masked)
    heads_ = [(*z.batch, h, z.n_k, d) for h, d in ((z.h, z.d_k), (z.h_kv, z.d_k), (z.h_kv, z.d_v))]
    QKV, dots = ([make(*s) for s in heads_] for _ in range(2))
    given = {n: not_zero(make, *s) if n == "temperature" else make(*s) for n, s in shapes.items()}
    given_dot = {f"{n}_dot": make(*s) for n, s in shapes.items()}
    d, d_dot = (
        [make(*z.batch, z.h, z.n_k, *last) for last in ((z.d_v,), (2 + z.n_k,), ())] for _ in range(2)
    )
    _, saved = attend.attend(*QKV, **given, **options)
    others = {"dweights": d[1], "dlse": d[2]}
    others_dot = {"dweights_dot": d_dot[1], "dlse_dot": d_dot[2]}
    return {
        "attend": (attend.attend, tuple(QKV), {**given, **options}),
        "attend_jvp": (attend.attend_jvp, (saved, *dots), given_dot),
        "attend_vjp": (attend.attend_vjp, (d[0], saved), others),
        "attend_vjp_jvp": (
            attend.attend_vjp_jvp, (d[0], saved, d_dot[0], *dots), {**others, **others_dot, **given_dot},
        ),
    }  # fmt: skip


def _fused_calls(make, z, masked):
    """Shared heads, values of another width than keys, biases, and a sink beside the mask."""
    N = (z.h + z.h_kv) * z.d_k + z.h_kv * z.d_v
    main = (*z.batch, z.n_q, z.d_model), (z.d_model, N), (z.h * z.d_v, z.d_out)
    rest = {"b_QKV": (N,), "b_O": (z.d_out,)} | ({"sinks": (z.h,)} if masked else {})
    values, dots = ([make(*s) for s in main] for _ in range(2))
    given, given_dot = ({f"{n}{e}": make(*s) for n, s in rest.items()} for e in ("", "_dot"))
    options = {"layout": "grouped", "n_heads": z.h, "n_kv_heads": z.h_kv, "d_k": z.d_k}
    options["mask"] = a_mask(z.n_q, z.n_q) if masked else None
    dY, dY_dot = (make(*z.batch, z.n_q, z.d_out) for _ in range(2))
    _, saved = fused.fused(*values, **given, **options)
    return {
        "fused": (fused.fused, tuple(values), {**given, **options}),
        "fused_jvp": (fused.fused_jvp, (saved, *dots), given_dot),
        "fused_vjp": (fused.fused_vjp, (dY, saved), {}),
        "fused_vjp_jvp": (fused.fused_vjp_jvp, (dY, saved, dY_dot, *dots), given_dot),
    }


def _matmul_calls(make, z, masked):
    """One matrix for a batch of heads: both operands are broadcast."""
    shapes = (*z.batch, 1, z.n_q, z.d_model), (z.h, z.d_model, z.d_out)
    operands, dots = ([make(*s) for s in shapes] for _ in range(2))
    dC, dC_dot = (make(*z.batch, z.h, z.n_q, z.d_out) for _ in range(2))
    _, saved = matmul.matmul(*operands)
    return {
        "matmul": (matmul.matmul, tuple(operands), {}),
        "matmul_jvp": (matmul.matmul_jvp, (saved, *dots), {}),
        "matmul_vjp": (matmul.matmul_vjp, (dC, saved), {}),
        "matmul_vjp_jvp": (matmul.matmul_vjp_jvp, (dC, saved, dC_dot, *dots), {}),
    }


def _embedding_calls(make, z, masked):
    """A token that comes twice and others that do not come; positions given, or counted."""
    table, table_dot = (make(z.n_vocab, z.d_model) for _ in range(2))
    positions, positions_dot = (make(z.n_pos, z.d_model) for _ in range(2))
    tokens = (torch.arange(z.n_q) * 2 % 3).expand(*z.batch, z.n_q).clone()
    tokens[..., -1] = tokens[..., 0]
    options = {"tokens": tokens, "position_ids": torch.arange(z.n_q).flip(0) if masked else None}
    dX, dX_dot = (make(*z.batch, z.n_q, z.d_model) for _ in range(2))
    _, saved = embedding.embedding(table, positions, **options)
    return {
        "embedding": (embedding.embedding, (table, positions), options),
        "embedding_jvp": (embedding.embedding_jvp, (saved, table_dot, positions_dot), {}),
        "embedding_vjp": (embedding.embedding_vjp, (dX, saved), {}),
        "embedding_vjp_jvp": (embedding.embedding_vjp_jvp, (dX, saved, dX_dot), {}),
    }


def layer_shapes(z, h_kv):
    """The arguments of the layer, cross-attention with all biases."""
    return {
        "X": (*z.batch, z.n_q, z.d_model), "W_Q": (z.d_model, z.h * z.d_k), "W_K": (z.d_kv, h_kv * z.d_k),
        "W_V": (z.d_kv, h_kv * z.d_v), "W_O": (z.h * z.d_v, z.d_out), "X_kv": (*z.batch, z.n_k, z.d_kv),
        "b_Q": (z.h * z.d_k,), "b_K": (h_kv * z.d_k,), "b_V": (h_kv * z.d_v,), "b_O": (z.d_out,),
    }  # fmt: skip


def _multihead_calls(make, z, masked):
    shapes = layer_shapes(z, z.h_kv) | {"bias": (z.h, z.n_q, 1)}
    values, dots = ({name: make(*s) for name, s in shapes.items()} for _ in range(2))
    main, rest = _split(values)
    main_dot, rest_dot = _split(dots, "_dot")
    dY, dY_dot = (make(*z.batch, z.n_q, z.d_out) for _ in range(2))
    options = {"n_heads": z.h, "n_kv_heads": z.h_kv, "mask": some(z, masked), **rest}
    _, saved = multihead.multihead(*main, **options)
    return {
        "multihead": (multihead.multihead, main, options),
        "multihead_jvp": (multihead.multihead_jvp, (saved, *main_dot), rest_dot),
        "multihead_vjp": (multihead.multihead_vjp, (dY, saved), {}),
        "multihead_vjp_jvp": (multihead.multihead_vjp_jvp, (dY, saved, dY_dot, *main_dot), rest_dot),
    }


def _split(values, suffix=""):
    main = tuple(values[n] for n in ("X", "W_Q", "W_K", "W_V", "W_O"))
    return main, {
        f"{n}{suffix}": t for n, t in values.items() if n in ("X_kv", "b_Q", "b_K", "b_V", "b_O", "bias")
    }


def _blockdiag_calls(make, z, masked):
    mask = some(z, masked)
    flat = Sizes(**(vars(z) | {"batch": ()}))
    main, rest = _split({name: make(*s) for name, s in layer_shapes(flat, z.h).items()})
    options = {"n_heads": z.h, "mask": mask, **rest}
    dY = make(z.n_q, z.d_out)
    out = {"blocks": (blockdiag.blocks, main, options), "layer": (blockdiag.layer, main, options)}
    for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "X", "X_kv"):
        function = getattr(blockdiag, f"grad_{name}")
        out[f"grad_{name}"] = (function, (*main, dY), options)
    S = make(z.n_q, z.h * z.n_k)
    M = a_mask(z.n_q, z.n_k).repeat(1, z.h)
    return out | {
        "block_ones": (_blocks.block_ones, (S, z.h, z.n_k, z.d_k), {}),
        "stack_identity": (_blocks.stack_identity, (S, z.h, z.n_k), {}),
        "row_shift": (_blocks.row_shift, (S, M, z.h), {}),
        "repeat_mask": (_blocks.repeat_mask, (S, mask, z.h), {}),
        "empty_rows": (_blocks.empty_rows, (M, z.h), {}),
    }


def _norm_calls(make, z, masked):
    X, X_dot, dY, dY_dot = (make(*z.batch, z.n_q, z.d_model) for _ in range(4))
    gain, gain_dot, shift, shift_dot = (make(z.d_model) for _ in range(4))
    out = four("rms_norm", rms_norm, (X, gain), {"eps": 0.125}, (X_dot, gain_dot), dY, dY_dot)
    dots = (X_dot, gain_dot, shift_dot)
    return out | four("layer_norm", layer_norm, (X, gain, shift), {"eps": 0.125}, dots, dY, dY_dot)


def _entrywise_calls(make, z, masked):
    A, B, A_dot, B_dot, dY, dY_dot = (make(*z.batch, z.n_q, z.d_model) for _ in range(6))
    out = four("activate", activation, (A,), {"function": "silu"}, (A_dot,), dY, dY_dot)
    for name in ("add", "multiply"):
        out |= four(name, entrywise, (A, B), {}, (A_dot, B_dot), dY, dY_dot)
    return out


def _transformer_calls(make, z, masked):
    """Llama's: shared heads, a gate, norms without a shift; biases, and a sink beside the mask."""
    d, g, wide, d_ff = z.d_model, z.h_kv, z.h * z.d_v, z.d_out
    main = {
        "X": (*z.batch, z.n_q, d), "W_Q": (d, z.h * z.d_k), "W_K": (d, g * z.d_k), "W_V": (d, g * z.d_v), "W_O": (wide, d),
        "W_U": (d, d_ff), "W_D": (d_ff, d), "gain_1": (d,), "gain_2": (d,),
    }  # fmt: skip
    rest = {"W_G": (d, d_ff), "b_Q": (z.h * z.d_k,), "b_O": (d,), "b_D": (d,)} | (
        {"sinks": (z.h,)} if masked else {}
    )
    values, given = ({n: make(*s) for n, s in shapes.items()} for shapes in (main, rest))
    dots = {f"{n}_dot": make(*s) for n, s in {**main, **rest}.items()}
    options = {"style": "llama", "n_heads": z.h, "n_kv_heads": g, "norm_eps": 0.125}
    options["mask"] = a_mask(z.n_q, z.n_q) if masked else None
    dY, dY_dot = (make(*z.batch, z.n_q, d) for _ in range(2))
    _, saved = transformer.transformer_layer(**values, **given, **options)
    return {
        "transformer_layer": (transformer.transformer_layer, tuple(values.values()), {**given, **options}),
        "transformer_layer_jvp": (transformer.transformer_layer_jvp, (saved,), dots),
        "transformer_layer_vjp": (transformer.transformer_layer_vjp, (dY, saved), {}),
        "transformer_layer_vjp_jvp": (transformer.transformer_layer_vjp_jvp, (dY, saved, dY_dot), dots),
    }


def _graph_calls(make, z, masked):
    heads_ = [(*z.batch, z.h, n, d) for n, d in ((z.n_q, z.d_k), (z.n_k, z.d_k), (z.n_k, z.d_v))]
    QKV, dots = ([make(*s) for s in heads_] for _ in range(2))
    dO, dO_dot = (make(*z.batch, z.h, z.n_q, z.d_v) for _ in range(2))
    options = {"neighbours": a_graph(z, masked), "scale": 0.75}
    return four("graph_attention", graph, QKV, options, dots, dO, dO_dot)


GROUPS = (
    _linear_calls, _softmax_calls, _attention_calls, _heads_calls, _fill_calls, _matmul_calls, _embedding_calls,
    _multihead_calls, _blockdiag_calls, _score_calls, _projection_calls, _norm_calls, _attend_calls, _fused_calls,
    _entrywise_calls, _transformer_calls, _graph_calls,
)  # fmt: skip


def tensors(tree, where=""):
    """The tensors of nested tuples and dicts, by their path."""
    if isinstance(tree, Tensor):
        return {where: tree}
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        items = zip(tree._fields, tree, strict=True)
    elif isinstance(tree, (tuple, list)):
        items = enumerate(tree)
    else:
        return {}
    return {k: t for name, value in items for k, t in tensors(value, f"{where}.{name}").items()}


def results(out):
    """What a rule has computed: without what it saved."""
    forward = isinstance(out, tuple) and not hasattr(out, "_fields") and len(out) == 2
    kept = forward and (hasattr(out[1], "_fields") or isinstance(out[1], int))
    return tensors(out[0] if kept else out)


# ---------------------------------------------------------------- naive layers


def naive_softmax(S, mask):
    E = torch.exp(S)
    if mask is None:
        return E / E.sum(-1, keepdim=True)
    E = E * mask
    return E / torch.where(mask.any(-1, keepdim=True), E.sum(-1, keepdim=True), 1.0)


def naive_attention(Q, K, V, bias=None, *, mask=None, scale=None):
    S = torch.einsum("...ia,...ja->...ij", Q, K) * (Q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("...ij,...jb->...ib", naive_softmax(S if bias is None else S + bias, mask), V)


def naive_layer(X, W_Q, W_K, W_V, W_O, X_kv, b_Q, b_K, b_V, b_O, bias=None, *, h, h_kv, mask=None):
    """A loop over heads; query head i uses key/value head i // (h / h_kv)."""
    Q, K, V = X @ W_Q + b_Q, X_kv @ W_K + b_K, X_kv @ W_V + b_V
    d_k, d_v, heads = Q.shape[-1] // h, V.shape[-1] // h_kv, []
    for i in range(h):
        j = i // (h // h_kv)
        q, k, v = (
            Q[..., i * d_k : (i + 1) * d_k],
            K[..., j * d_k : (j + 1) * d_k],
            V[..., j * d_v : (j + 1) * d_v],
        )
        heads.append(naive_attention(q, k, v, None if bias is None else bias[i], mask=mask))
    return torch.cat(heads, -1) @ W_O + b_O
