"""A call of every rule, on tensors of any kind; and layers written out naively that share no line with the rules."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor

from gradderiv.rules import _blocks, attention, blockdiag, linear, multihead, softmax

MODULES = (linear, softmax, attention, multihead, blockdiag, _blocks)


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
    d_model: int = 7
    d_kv: int = 11
    h: int = 4
    h_kv: int = 2
    d_k: int = 13
    d_v: int = 17
    d_out: int = 19

    def names(self):
        z = vars(self) | {"n": self.n_q, "d": self.d_model, "e": self.d_out}
        products = {f"{a}·{b}": z[a] * z[b] for a in ("h", "h_kv") for b in ("d_k", "d_v", "n_k")}
        return {k: v for k, v in z.items() if k != "batch"} | products


SMALL = Sizes(
    batch=(), n_q=2, n_k=3, d_model=5, d_kv=6, h=2, h_kv=1, d_k=4, d_v=7, d_out=8
)  # 1/√d_k is rational
TINY = Sizes(batch=(), n_q=2, n_k=2, d_model=1, d_kv=2, h=2, h_kv=1, d_k=1, d_v=1, d_out=1)


def a_mask(n_q, n_k):
    """Different in every row, the first of which is empty."""
    mask = torch.arange(n_q * n_k).reshape(n_q, n_k) % 3 != 1
    mask[0] = False
    mask[-1] = True
    return mask


def calls(make, z=SMALL, *, masked=True):
    """{rule: (function, arguments, keyword arguments)}; what a rule has saved is made by its forward."""
    mask = a_mask(z.n_q, z.n_k) if masked else None
    out = {}

    X, W, b = make(*z.batch, z.n_q, z.d_model), make(z.d_model, z.d_out), make(z.d_out)
    dots = make(*X.shape), make(*W.shape)
    dY, dY_dot = make(*z.batch, z.n_q, z.d_out), make(*z.batch, z.n_q, z.d_out)
    _, saved = linear.linear(X, W, b)
    out |= {
        "linear": (linear.linear, (X, W, b), {}),
        "linear_jvp": (linear.linear_jvp, (saved, *dots, make(z.d_out)), {}),
        "linear_vjp": (linear.linear_vjp, (dY, saved), {}),
        "linear_vjp_jvp": (linear.linear_vjp_jvp, (dY, saved, dY_dot, *dots), {}),
    }

    scores = (*z.batch, z.n_q, z.n_k)
    S, S_dot, dP, dP_dot = (make(*scores) for _ in range(4))
    _, saved = softmax.softmax(S, mask=mask)
    out |= {
        "softmax": (softmax.softmax, (S,), {"mask": mask}),
        "softmax_jvp": (softmax.softmax_jvp, (saved, S_dot), {}),
        "softmax_vjp": (softmax.softmax_vjp, (dP, saved), {}),
        "softmax_vjp_jvp": (softmax.softmax_vjp_jvp, (dP, saved, dP_dot, S_dot), {}),
    }

    shapes = [(*z.batch, z.h, n, d) for n, d in ((z.n_q, z.d_k), (z.n_k, z.d_k), (z.n_k, z.d_v))]
    QKV, dots = [make(*s) for s in shapes], [make(*s) for s in shapes]
    bias, bias_dot = make(z.h, 1, z.n_k), make(z.h, 1, z.n_k)
    dO, dO_dot = (make(*z.batch, z.h, z.n_q, z.d_v) for _ in range(2))
    _, saved = attention.attention(*QKV, mask=mask, bias=bias)
    out |= {
        "attention": (attention.attention, tuple(QKV), {"mask": mask, "bias": bias}),
        "attention_jvp": (attention.attention_jvp, (saved, *dots, bias_dot), {}),
        "attention_vjp": (attention.attention_vjp, (dO, saved), {}),
        "attention_vjp_jvp": (attention.attention_vjp_jvp, (dO, saved, dO_dot, *dots, bias_dot), {}),
    }

    out |= _multihead_calls(make, z, mask)
    out |= _blockdiag_calls(make, z, mask)
    heads = make(*z.batch, z.h, z.n_k, z.d_v)
    out |= {
        "split_heads": (multihead.split_heads, (make(*z.batch, z.n_k, z.h * z.d_v), z.h), {}),
        "join_heads": (multihead.join_heads, (heads,), {}),
        "repeat_heads": (multihead.repeat_heads, (make(*z.batch, z.h_kv, z.n_k, z.d_v), z.h), {}),
        "sum_heads": (multihead.sum_heads, (heads, z.h_kv), {}),
    }
    return out


def layer_shapes(z, h_kv):
    """The arguments of the layer, cross-attention with all biases."""
    return {
        "X": (*z.batch, z.n_q, z.d_model), "W_Q": (z.d_model, z.h * z.d_k), "W_K": (z.d_kv, h_kv * z.d_k),
        "W_V": (z.d_kv, h_kv * z.d_v), "W_O": (z.h * z.d_v, z.d_out), "X_kv": (*z.batch, z.n_k, z.d_kv),
        "b_Q": (z.h * z.d_k,), "b_K": (h_kv * z.d_k,), "b_V": (h_kv * z.d_v,), "b_O": (z.d_out,),
    }  # fmt: skip


def _multihead_calls(make, z, mask):
    shapes = layer_shapes(z, z.h_kv) | {"bias": (z.h, z.n_q, 1)}
    values, dots = ({name: make(*s) for name, s in shapes.items()} for _ in range(2))
    main, rest = _split(values)
    main_dot, rest_dot = _split(dots, "_dot")
    dY, dY_dot = (make(*z.batch, z.n_q, z.d_out) for _ in range(2))
    options = {"n_heads": z.h, "n_kv_heads": z.h_kv, "mask": mask, **rest}
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


def _blockdiag_calls(make, z, mask):
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
    return tensors(out[0] if isinstance(out, tuple) and len(out) == 2 and hasattr(out[1], "_fields") else out)


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
