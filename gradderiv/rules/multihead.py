"""Multi-head attention, head by head: the form one ships.

    Q = X W_Q + b_Q   K = X_kv W_K + b_K   V = X_kv W_V + b_V        cut into h heads
    O_i = softmax(τ Q_i K_iᵀ + bias) V_i
    Y = concat(O_1 … O_h) W_O + b_O                                  Vaswani et al. 2017, §3.2.2

X (..., n_q, d_model)   X_kv (..., n_k, d_kv)   W_Q (d_model, h·d_k)   W_K (d_kv, h_kv·d_k)   W_V (d_kv, h_kv·d_v)
W_O (h·d_v, d_out)   Q (..., h, n_q, d_k)   S, P (..., h, n_q, n_k)   O (..., h, n_q, d_v)   Y (..., n_q, d_out)
Each W is the transpose of ``nn.Linear.weight``; head i owns the columns i·d … (i+1)·d of its projection. With
h_kv < h each key/value head serves h/h_kv query heads in a row (Ainslie et al. 2023).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, rule, shapes
from gradderiv.rules.attention import (
    AttentionSaved,
    attention,
    attention_jvp,
    attention_vjp,
    attention_vjp_jvp,
)
from gradderiv.rules.linear import (
    LinearSaved,
    linear,
    linear_jvp,
    linear_vjp,
    linear_vjp_jvp,
)


class MultiheadSaved(NamedTuple):
    """The saved values of the parts, in the order of the forward pass."""

    query: LinearSaved
    key: LinearSaved
    value: LinearSaved
    heads: AttentionSaved
    output: LinearSaved
    n_heads: int
    n_kv_heads: int
    is_self: bool


class MultiheadGradients(NamedTuple):
    """The gradient of each argument under its name; None for an argument that was not given."""

    X: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    X_kv: Tensor | None
    b_Q: Tensor | None
    b_K: Tensor | None
    b_V: Tensor | None
    b_O: Tensor | None
    bias: Tensor | None


@rule
def split_heads(X: Tensor, n_heads: int) -> Tensor:
    """(..., n, h·d) → (..., h, n, d)

    Head i takes the columns i·d … (i+1)·d.
    """
    return X.reshape(*X.shape[:-1], n_heads, -1).transpose(-3, -2)


@rule
def join_heads(X: Tensor) -> Tensor:
    """(..., h, n, d) → (..., n, h·d)

    The inverse, and the transpose, of :func:`split_heads`.
    """
    X = X.transpose(-3, -2)
    return X.reshape(*X.shape[:-2], -1)


@rule
def repeat_heads(X: Tensor, n_heads: int) -> Tensor:
    """(..., h_kv, n, d) → (..., h, n, d): [0 0 1 1], not [0 1 0 1]

    Each key/value head serves h/h_kv query heads in a row; Ainslie et al. 2023.
    """
    h_kv = X.shape[-3]
    if h_kv == n_heads:
        return X
    copies = X.unsqueeze(-3).expand(*X.shape[:-2], n_heads // h_kv, *X.shape[-2:])
    return copies.reshape(*X.shape[:-3], n_heads, *X.shape[-2:])


@rule
def sum_heads(X: Tensor, n_kv_heads: int) -> Tensor:
    """(..., h, n, d) → (..., h_kv, n, d)

    The transpose of :func:`repeat_heads`: what the query heads of a group return adds up.
    """
    if X.shape[-3] == n_kv_heads:
        return X
    return X.reshape(*X.shape[:-3], n_kv_heads, -1, *X.shape[-2:]).sum(-3)


@rule
def multihead(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    X_kv: Tensor | None = None,
    b_Q: Tensor | None = None,
    b_K: Tensor | None = None,
    b_V: Tensor | None = None,
    b_O: Tensor | None = None,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, MultiheadSaved]:
    """Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O

    Vaswani et al. 2017, §3.2.2.

    Args:
        X: (..., n_q, d_model), the queries' source.
        W_Q, W_K, W_V, W_O: (d_model, h·d_k), (d_kv, h_kv·d_k), (d_kv, h_kv·d_v), (h·d_v, d_out).
        n_heads: h.
        n_kv_heads: h_kv, a divisor of h; h when None.
        X_kv: (..., n_k, d_kv), the source of keys and values; X when None (self-attention).
        b_Q, b_K, b_V, b_O: biases of the four projections.
        scale: τ, 1/√d_k unless given.
        mask: boolean, broadcasts to the scores (..., h, n_q, n_k); True = may attend.
        bias: broadcasts to the scores; added after scaling.

    Returns:
        Y (..., n_q, d_out) and what :func:`multihead_vjp` needs.

    Raises:
        InputError: shapes that do not fit, h that does not divide, empty tensors.
        DtypeError: integers, several dtypes or devices, a mask that is not boolean.
    """
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    require_multihead(X, W_Q, W_K, W_V, W_O, n_heads, X_kv, b_Q, b_K, b_V, b_O, bias, n_kv_heads)
    source = X if X_kv is None else X_kv
    XW_Q, query = linear(X, W_Q, b_Q)  # ... n_q h·d_k
    XW_K, key = linear(source, W_K, b_K)  # ... n_k h_kv·d_k
    XW_V, value = linear(source, W_V, b_V)  # ... n_k h_kv·d_v
    Q = split_heads(XW_Q, n_heads)  # ... h n_q d_k
    K = repeat_heads(split_heads(XW_K, n_kv_heads), n_heads)  # ... h n_k d_k
    V = repeat_heads(split_heads(XW_V, n_kv_heads), n_heads)  # ... h n_k d_v
    O, heads = attention(Q, K, V, scale=scale, mask=mask, bias=bias)  # ... h n_q d_v
    C = join_heads(O)  # ... n_q h·d_v
    Y, output = linear(C, W_O, b_O)  # ... n_q d_out
    return Y, MultiheadSaved(query, key, value, heads, output, n_heads, n_kv_heads, X_kv is None)


@rule
def multihead_jvp(
    saved: MultiheadSaved,
    X_dot: Tensor,
    W_Q_dot: Tensor,
    W_K_dot: Tensor,
    W_V_dot: Tensor,
    W_O_dot: Tensor,
    *,
    X_kv_dot: Tensor | None = None,
    b_Q_dot: Tensor | None = None,
    b_K_dot: Tensor | None = None,
    b_V_dot: Tensor | None = None,
    b_O_dot: Tensor | None = None,
    bias_dot: Tensor | None = None,
) -> Tensor:
    """Ẏ = concat_i(Ȯ_i) W_O + concat_i(O_i) Ẇ_O + ḃ_O

    The product rule through the parts of :func:`multihead`, first to last.
    """
    h, h_kv = saved.n_heads, saved.n_kv_heads
    source_dot = _source_dot(saved, X_dot, X_kv_dot)
    Q_dot = split_heads(linear_jvp(saved.query, X_dot, W_Q_dot, b_Q_dot), h)  # ... h n_q d_k
    XW_K_dot = linear_jvp(saved.key, source_dot, W_K_dot, b_K_dot)  # ... n_k h_kv·d_k
    XW_V_dot = linear_jvp(saved.value, source_dot, W_V_dot, b_V_dot)  # ... n_k h_kv·d_v
    K_dot = repeat_heads(split_heads(XW_K_dot, h_kv), h)  # ... h n_k d_k
    V_dot = repeat_heads(split_heads(XW_V_dot, h_kv), h)  # ... h n_k d_v
    O_dot = attention_jvp(saved.heads, Q_dot, K_dot, V_dot, bias_dot)  # ... h n_q d_v
    C_dot = join_heads(O_dot)  # ... n_q h·d_v
    Y_dot = linear_jvp(saved.output, C_dot, W_O_dot, b_O_dot)  # ... n_q d_out
    return Y_dot


@rule
def multihead_vjp(dY: Tensor, saved: MultiheadSaved) -> MultiheadGradients:
    """dW_O = Cᵀ dY,   dW_Q = Xᵀ dQ,   dW_K = X_kvᵀ dK,   dW_V = X_kvᵀ dV,   dX = dQ W_Qᵀ (+ dK W_Kᵀ + dV W_Vᵀ)

    The parts of :func:`multihead` recited backwards; each is the vjp of its rule.
    """
    # Y was C W_O + b_O
    dC, dW_O, db_O = linear_vjp(dY, saved.output)  # ... n_q h·d_v, h·d_v d_out, d_out
    # C was concat(O_1 … O_h)
    dO = split_heads(dC, saved.n_heads)  # ... h n_q d_v
    # O was attention(Q, K, V)
    dQ, dK, dV, dbias = attention_vjp(dO, saved.heads)
    # Q, K, V were the heads of X W_Q + b_Q, X_kv W_K + b_K, X_kv W_V + b_V
    h_kv = saved.n_kv_heads
    dXW_V = join_heads(sum_heads(dV, h_kv))  # ... n_k h_kv·d_v
    dXW_K = join_heads(sum_heads(dK, h_kv))  # ... n_k h_kv·d_k
    dX_V, dW_V, db_V = linear_vjp(dXW_V, saved.value)  # ... n_k d_kv, d_kv h_kv·d_v, h_kv·d_v
    dX_K, dW_K, db_K = linear_vjp(dXW_K, saved.key)  # ... n_k d_kv, d_kv h_kv·d_k, h_kv·d_k
    dX_Q, dW_Q, db_Q = linear_vjp(join_heads(dQ), saved.query)  # ... n_q d_model, d_model h·d_k, h·d_k
    dX, dX_kv = _join_sources(dX_Q, dX_K + dX_V, saved.is_self)
    return MultiheadGradients(dX, dW_Q, dW_K, dW_V, dW_O, dX_kv, db_Q, db_K, db_V, db_O, dbias)


@rule
def multihead_vjp_jvp(
    dY: Tensor,
    saved: MultiheadSaved,
    dY_dot: Tensor,
    X_dot: Tensor,
    W_Q_dot: Tensor,
    W_K_dot: Tensor,
    W_V_dot: Tensor,
    W_O_dot: Tensor,
    *,
    X_kv_dot: Tensor | None = None,
    b_Q_dot: Tensor | None = None,
    b_K_dot: Tensor | None = None,
    b_V_dot: Tensor | None = None,
    b_O_dot: Tensor | None = None,
    bias_dot: Tensor | None = None,
) -> MultiheadGradients:
    """dẆ_O = Ċᵀ dY + Cᵀ dẎ,   dẆ_Q = Ẋᵀ dQ + Xᵀ dQ̇,   …

    The product rule on :func:`multihead_vjp`, line by line: first the tangents of the forward pass.
    ``b_O_dot`` is accepted for symmetry: no gradient depends on b_O.
    """
    h, h_kv = saved.n_heads, saved.n_kv_heads
    source_dot = _source_dot(saved, X_dot, X_kv_dot)
    Q_dot = split_heads(linear_jvp(saved.query, X_dot, W_Q_dot, b_Q_dot), h)  # ... h n_q d_k
    XW_K_dot = linear_jvp(saved.key, source_dot, W_K_dot, b_K_dot)  # ... n_k h_kv·d_k
    XW_V_dot = linear_jvp(saved.value, source_dot, W_V_dot, b_V_dot)  # ... n_k h_kv·d_v
    K_dot = repeat_heads(split_heads(XW_K_dot, h_kv), h)  # ... h n_k d_k
    V_dot = repeat_heads(split_heads(XW_V_dot, h_kv), h)  # ... h n_k d_v
    C_dot = join_heads(attention_jvp(saved.heads, Q_dot, K_dot, V_dot, bias_dot))  # ... n_q h·d_v
    # the gradients that the backward pass hands from part to part
    dO = split_heads(linear_vjp(dY, saved.output).X, h)  # ... h n_q d_v
    dQ, dK, dV, _ = attention_vjp(dO, saved.heads)
    # and their tangents, last part first
    dC_dot, dW_O_dot, db_O_dot = linear_vjp_jvp(dY, saved.output, dY_dot, C_dot, W_O_dot)
    dO_dot = split_heads(dC_dot, h)  # ... h n_q d_v
    dQ_dot, dK_dot, dV_dot, dbias_dot = attention_vjp_jvp(
        dO, saved.heads, dO_dot, Q_dot, K_dot, V_dot, bias_dot
    )
    dX_V_dot, dW_V_dot, db_V_dot = linear_vjp_jvp(
        join_heads(sum_heads(dV, h_kv)),
        saved.value,
        join_heads(sum_heads(dV_dot, h_kv)),
        source_dot,
        W_V_dot,
    )
    dX_K_dot, dW_K_dot, db_K_dot = linear_vjp_jvp(
        join_heads(sum_heads(dK, h_kv)),
        saved.key,
        join_heads(sum_heads(dK_dot, h_kv)),
        source_dot,
        W_K_dot,
    )
    dX_Q_dot, dW_Q_dot, db_Q_dot = linear_vjp_jvp(
        join_heads(dQ), saved.query, join_heads(dQ_dot), X_dot, W_Q_dot
    )
    dX_dot, dX_kv_dot = _join_sources(dX_Q_dot, dX_K_dot + dX_V_dot, saved.is_self)
    return MultiheadGradients(
        dX_dot, dW_Q_dot, dW_K_dot, dW_V_dot, dW_O_dot,
        dX_kv_dot, db_Q_dot, db_K_dot, db_V_dot, db_O_dot, dbias_dot,
    )  # fmt: skip


def _source_dot(saved: MultiheadSaved, X_dot: Tensor, X_kv_dot: Tensor | None) -> Tensor:
    """The tangent of the keys' and values' source: X's own, or that of X_kv, which stands still when None."""
    if saved.is_self:
        return X_dot
    return torch.zeros_like(saved.key.X) if X_kv_dot is None else X_kv_dot


def _join_sources(dX_Q: Tensor, dX_KV: Tensor, is_self: bool) -> tuple[Tensor, Tensor | None]:
    """In self-attention X is the source of all three paths, and their gradients add up."""
    return (dX_Q + dX_KV, None) if is_self else (dX_Q, dX_KV)


def require_multihead(
    X: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    n_heads: int,
    X_kv: Tensor | None,
    b_Q: Tensor | None,
    b_K: Tensor | None,
    b_V: Tensor | None,
    b_O: Tensor | None,
    bias: Tensor | None,
    n_kv_heads: int | None = None,
) -> None:
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    require_tensors(
        "multihead", X=X, W_Q=W_Q, W_K=W_K, W_V=W_V, W_O=W_O,
        X_kv=X_kv, b_Q=b_Q, b_K=b_K, b_V=b_V, b_O=b_O, bias=bias,
    )  # fmt: skip
    source = X if X_kv is None else X_kv
    require(
        X.dim() >= 2 and source.shape[:-2] == X.shape[:-2] and source.dim() == X.dim(),
        "multihead needs X (..., n_q, d_model) and X_kv (..., n_k, d_kv) with equal leading axes",
        shapes(X=X, X_kv=X_kv),
        "a vector for a matrix of one row, or another batch size",
        "X.unsqueeze(-2), or expand the batch axis",
    )
    whole = all(isinstance(h, int) and h > 0 for h in (n_heads, n_kv_heads))
    whole = whole and min(W_Q.dim(), W_K.dim(), W_V.dim()) > 0
    require(
        whole
        and n_heads % n_kv_heads == 0
        and not (W_Q.shape[-1] % n_heads or W_K.shape[-1] % n_kv_heads or W_V.shape[-1] % n_kv_heads),
        "multihead needs n_heads to divide the columns of W_Q, and n_kv_heads those of W_K and W_V and n_heads",
        f"n_heads={n_heads}, n_kv_heads={n_kv_heads}, {shapes(W_Q=W_Q, W_K=W_K, W_V=W_V)}",
        "the width of one head passed for the number of heads, or a fused W_QKV",
        "n_heads is h; split a fused matrix first",
    )
    group = n_heads // n_kv_heads
    for name, W, rows, what in (
        ("W_Q", W_Q, X.shape[-1], "d_model of X"),
        ("W_K", W_K, source.shape[-1], "the width of the keys' source"),
        ("W_V", W_V, source.shape[-1], "the width of the values' source"),
        ("W_O", W_O, W_V.shape[-1] * group, "h·d_v, the columns of W_V for every query head"),
    ):
        require(
            W.dim() == 2 and W.shape[0] == rows,
            f"multihead needs {name} with {rows} rows ({what})",
            shapes(X=X, X_kv=X_kv, **{name: W}),
            f"{name} is the transpose of nn.Linear.weight",
            "pass layer.weight.mT",
        )
    require(
        W_Q.shape[1] == W_K.shape[1] * group,
        "multihead needs heads of W_Q and W_K of equal width d_k",
        f"n_heads={n_heads}, n_kv_heads={n_kv_heads}, {shapes(W_Q=W_Q, W_K=W_K)}",
        "grouped key/value heads without n_kv_heads",
        "pass n_kv_heads, the number of heads in W_K",
    )
    for name, b, W in (("b_Q", b_Q, W_Q), ("b_K", b_K, W_K), ("b_V", b_V, W_V), ("b_O", b_O, W_O)):
        require(
            b is None or b.shape == (W.shape[1],),
            f"multihead needs {name} ({W.shape[1]},)",
            shapes(**{name: b}),
            "the bias of another projection",
            f"one entry for each column of W_{name[-1]}",
        )
