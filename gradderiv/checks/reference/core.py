"""The layer and what it is made of, three times over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# ---------------------------------------------------------------- textbook, in torch


def linear(X: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    Y = torch.einsum("...nd,de->...ne", X, W)
    return Y if b is None else Y + b


def softmax(S: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None:
        return torch.softmax(S, -1)
    mask = mask.expand(S.shape)
    empty = ~mask.any(-1, keepdim=True)
    P = torch.softmax(torch.where(mask | empty, S, -torch.inf), -1)
    return torch.where(empty, torch.zeros_like(P), P)


def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    S = torch.einsum("...qd,...kd->...qk", Q, K) * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)
    return torch.einsum("...qk,...kd->...qd", softmax(S if bias is None else S + bias, mask), V)


def multihead(
    X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, *, n_heads: int, n_kv_heads: int | None = None,
    X_kv: Tensor | None = None, b_Q: Tensor | None = None, b_K: Tensor | None = None, b_V: Tensor | None = None,
    b_O: Tensor | None = None, scale: float | None = None, mask: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One head after the other, each with its own columns of the projections, joined by cat."""
    source = X if X_kv is None else X_kv
    group = n_heads // (n_kv_heads or n_heads)
    Q, K, V = linear(X, W_Q, b_Q), linear(source, W_K, b_K), linear(source, W_V, b_V)
    d_k, d_v = Q.shape[-1] // n_heads, V.shape[-1] * group // n_heads
    heads = []
    for i in range(n_heads):
        j = i // group
        heads.append(
            attention(
                Q[..., i * d_k : (i + 1) * d_k],
                K[..., j * d_k : (j + 1) * d_k],
                V[..., j * d_v : (j + 1) * d_v],
                scale=scale,
                mask=_of_head(mask, i, n_heads),
                bias=_of_head(bias, i, n_heads),
            )
        )
    return linear(torch.cat(heads, -1), W_O, b_O)


def _of_head(t: Tensor | None, i: int, n_heads: int) -> Tensor | None:
    """What head i sees of a mask or bias that broadcasts to (..., h, n_q, n_k)."""
    if t is None or t.dim() < 3:
        return t
    return t.select(-3, i if t.shape[-3] == n_heads else 0)


TEXTBOOK: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "softmax": softmax,
    "attention": attention,
    "multihead": multihead,
    "blockdiag": multihead,
}

# ---------------------------------------------------------------- the same as loops, entry by entry


def loop_linear(X: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    Y = X.new_zeros(*X.shape[:-1], W.shape[1])
    for row in (
        torch.cartesian_prod(*(torch.arange(n) for n in X.shape[:-1])).reshape(-1, X.dim() - 1).tolist()
    ):
        for e in range(W.shape[1]):
            Y[(*row, e)] = sum(float(X[(*row, d)]) * float(W[d, e]) for d in range(W.shape[0]))
            if b is not None:
                Y[(*row, e)] += b[e]
    return Y


def loop_softmax(S: Tensor, mask: Tensor | None = None) -> Tensor:
    P = torch.zeros_like(S)
    allowed = torch.ones(S.shape, dtype=torch.bool) if mask is None else mask.expand(S.shape)
    for row, seen, out in zip(*(t.reshape(-1, S.shape[-1]) for t in (S, allowed, P)), strict=True):
        scores = [float(s) for s, m in zip(row, seen, strict=True) if m]
        if scores:
            total = math.fsum(math.exp(s - max(scores)) for s in scores)
            for j, s in enumerate(row.tolist()):
                out[j] = math.exp(s - max(scores)) / total if seen[j] else 0.0
    return P


def loop_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    n_q, n_k = Q.shape[-2], K.shape[-2]
    tau = 1 / math.sqrt(Q.shape[-1]) if scale is None else scale
    S = Q.new_zeros(*Q.shape[:-1], n_k)
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (Q, K, V, S)]
    for q, k, _, s in zip(*flat, strict=True):
        for i in range(n_q):
            for j in range(n_k):
                s[i, j] = tau * math.fsum(a * b for a, b in zip(q[i].tolist(), k[j].tolist(), strict=True))
    P = loop_softmax(S if bias is None else S + bias, mask)
    O = Q.new_zeros(*Q.shape[:-1], V.shape[-1])
    for p, v, o in zip(*(t.reshape(-1, *t.shape[-2:]) for t in (P, V, O)), strict=True):
        for i in range(n_q):
            for c in range(V.shape[-1]):
                o[i, c] = math.fsum(a * b for a, b in zip(p[i].tolist(), v[:, c].tolist(), strict=True))
    return O


def loop_multihead(X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, *, n_heads: int,
                   n_kv_heads: int | None = None, X_kv: Tensor | None = None, b_Q: Tensor | None = None,
                   b_K: Tensor | None = None, b_V: Tensor | None = None, b_O: Tensor | None = None,
                   scale: float | None = None, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:  # fmt: skip
    source = X if X_kv is None else X_kv
    group = n_heads // (n_kv_heads or n_heads)
    Q, K, V = loop_linear(X, W_Q, b_Q), loop_linear(source, W_K, b_K), loop_linear(source, W_V, b_V)
    d_k, d_v = W_Q.shape[1] // n_heads, W_V.shape[1] * group // n_heads
    C = X.new_zeros(*X.shape[:-1], n_heads * d_v)
    for i in range(n_heads):
        j = i // group
        C[..., i * d_v : (i + 1) * d_v] = loop_attention(
            Q[..., i * d_k : (i + 1) * d_k], K[..., j * d_k : (j + 1) * d_k], V[..., j * d_v : (j + 1) * d_v],
            scale=scale, mask=_of_head(mask, i, n_heads), bias=_of_head(bias, i, n_heads),
        )  # fmt: skip
    return loop_linear(C, W_O, b_O)


LOOPS: dict[str, Callable[..., Tensor]] = {
    "linear": loop_linear,
    "softmax": loop_softmax,
    "attention": loop_attention,
    "multihead": loop_multihead,
    "blockdiag": loop_multihead,
}

# ---------------------------------------------------------------- torch's own layers


def torch_linear(X: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    return functional.linear(X, W.mT, b)


def torch_softmax(S: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None:
        return functional.softmax(S, -1)
    return functional.softmax(S.masked_fill(~mask, -torch.inf), -1).nan_to_num(
        0.0
    )  # torch: an empty row is NaN


def torch_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    attn_mask: Tensor | None = mask
    if bias is not None:
        attn_mask = bias if mask is None else torch.where(mask, bias, -torch.inf)
    return functional.scaled_dot_product_attention(Q, K, V, attn_mask, scale=scale).nan_to_num(0.0)


def torch_multihead(X: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, *, n_heads: int,
                    n_kv_heads: int | None = None, X_kv: Tensor | None = None, scale: float | None = None,
                    mask: Tensor | None = None, bias: Tensor | None = None, **b: Any) -> Tensor:  # fmt: skip
    source = X if X_kv is None else X_kv
    projections = [
        functional.linear(x, W.mT, b.get(name)).unflatten(-1, (h, -1)).transpose(-3, -2)
        for x, W, name, h in (
            (X, W_Q, "b_Q", n_heads),
            (source, W_K, "b_K", n_kv_heads or n_heads),
            (source, W_V, "b_V", n_kv_heads or n_heads),
        )
    ]
    if n_kv_heads is not None:
        projections[1:] = [t.repeat_interleave(n_heads // n_kv_heads, -3) for t in projections[1:]]
    O = torch_attention(*projections, scale=scale, mask=mask, bias=bias)
    return functional.linear(O.transpose(-3, -2).flatten(-2), W_O.mT, b.get("b_O"))


TORCH: dict[str, Callable[..., Tensor]] = {
    "linear": torch_linear,
    "softmax": torch_softmax,
    "attention": torch_attention,
    "multihead": torch_multihead,
    "blockdiag": torch_multihead,
}
