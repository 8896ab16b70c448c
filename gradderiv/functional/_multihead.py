"""Multi-head attention as a PyTorch function: projections, and attention between them that stores no score matrix.

    Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O         Vaswani et al. 2017, §3.2.2

X (..., n_q, d_model)   X_kv (..., n_k, d_kv)   Y (..., n_q, d_out)   W_Q as in Q = X W_Q

The projections are matrix products, which PyTorch differentiates to every order; what lies between them is :func:`gradderiv.functional.attention`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from gradderiv.functional._attention import attention
from gradderiv.functional._autocast import autocast_on_entry
from gradderiv.rules._inputs import require, require_broadcast, require_mask, require_tensors, shapes
from gradderiv.rules.heads import join_heads, split_heads
from gradderiv.rules.layouts import key_value_heads, split
from gradderiv.rules.masks import Mask
from gradderiv.rules.multihead import require_multihead


@autocast_on_entry
def multi_head_attention(
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
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    window: tuple[int, int] | None = None,
    return_weights: bool = False,
) -> Any:
    """Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O,   Q = X W_Q + b_Q,   K, V from X_kv

    Vaswani et al. 2017, §3.2.2; the gradients are those of :mod:`gradderiv.rules.multihead`, in memory that grows with n and not with n².

    Each W is applied from the right, ``Q = X @ W_Q``: it is the **transpose** of ``nn.Linear.weight``. The
    weights of an ``nn.MultiheadAttention`` named ``layer`` (``batch_first``, one width) are passed as::

        W_Q, W_K, W_V = (W.mT for W in layer.in_proj_weight.chunk(3))
        b_Q, b_K, b_V = layer.in_proj_bias.chunk(3)
        W_O, b_O = layer.out_proj.weight.mT, layer.out_proj.bias

    and its boolean masks, where True = may *not* attend, as ``mask=~attn_mask`` or as
    ``mask=~key_padding_mask[:, None, None]``; :class:`gradderiv.nn.MultiheadAttention` does all this. Derivatives of every order and ``torch.func``
    transforms: as :func:`gradderiv.functional.attention`.

    Args:
        X: (..., n_q, d_model), the queries' source.
        W_Q, W_K, W_V, W_O: (d_model, h·d_k), (d_kv, h_kv·d_k), (d_kv, h_kv·d_v), (h·d_v, d_out); head i owns
            the columns i·d … (i+1)·d of its projection.
        n_heads: h.
        n_kv_heads: h_kv, a divisor of h; h when None. Each key/value head serves h/h_kv query heads in a row.
        X_kv: (..., n_k, d_kv), the source of keys and values; X when None (self-attention).
        b_Q, b_K, b_V, b_O: biases of the four projections.
        scale: τ, 1/√d_k unless given. A number: multiply W_Q and b_Q by a temperature that is learned.
        mask: a Mask, or boolean, broadcasts to the scores (..., h, n_q, n_k); True = may attend. A row that may attend to
            nothing gives O = 0, hence Y = b_O.
        bias: broadcasts to the scores; added after scaling. Hide keys with ``mask``, not with −∞ in a bias.
        dropout_p, is_causal, softcap, window: as for :func:`gradderiv.functional.attention`.
        sinks: (h), one more logit for each head, whose probability goes nowhere.
        return_weights: return P (..., h, n_q, n_k) as well, which takes its n_q·n_k numbers.

    Returns:
        Y (..., n_q, d_out), or (Y, P).

    Raises:
        InputError: shapes that do not fit, heads that do not divide, empty tensors.
        DtypeError: integers, complex numbers, several dtypes or devices, a mask that is not boolean, a tensor for
            ``scale``.
    """
    h_kv = n_heads if n_kv_heads is None else n_kv_heads
    require_multihead(X, W_Q, W_K, W_V, W_O, n_heads, X_kv, b_Q, b_K, b_V, b_O, bias, h_kv)
    source = X if X_kv is None else X_kv
    rows = linear(X, W_Q.mT, b_Q), linear(source, W_K.mT, b_K), linear(source, W_V.mT, b_V)
    options = {
        "attn_mask": mask, "bias": bias, "scale": scale, "dropout_p": dropout_p, "is_causal": is_causal,
        "softcap": softcap, "sinks": sinks, "window": window, "return_weights": return_weights,
    }  # fmt: skip
    return _between(rows, W_O, b_O, n_heads, h_kv, options)


@autocast_on_entry
def fused_multi_head_attention(
    X: Tensor,
    W_QKV: Tensor,
    W_O: Tensor,
    *,
    layout: str,
    n_heads: int,
    n_kv_heads: int | None = None,
    d_k: int | None = None,
    b_QKV: Tensor | None = None,
    b_O: Tensor | None = None,
    scale: float | None = None,
    mask: Mask | Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    window: tuple[int, int] | None = None,
    return_weights: bool = False,
) -> Any:
    """Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O,   [Q ‖ K ‖ V] = (X W_QKV + b_QKV) Πᵀ

    Vaswani et al. 2017, §3.2.2; the layouts as their systems have them (:mod:`gradderiv.rules.layouts`), the gradients those of
    :mod:`gradderiv.rules.fused`: dW_QKV is one product, and stands in the layout of its matrix.

    Args:
        X: (..., n, d_model).
        W_QKV: (d_model, N), N = h·d_k + h_kv·d_k + h_kv·d_v; the transpose of ``nn.Linear.weight``, and GPT-2's Conv1D as it is.
        W_O: (h·d_v, d_out).
        layout: one of :data:`gradderiv.rules.layouts.LAYOUTS`.
        n_heads: h.
        n_kv_heads: h_kv, a divisor of h; h when None.
        d_k: the width of a query head, where values are wider or narrower.
        b_QKV, b_O: (N), (d_out).
        scale, mask, bias, dropout_p, is_causal, softcap, sinks, window, return_weights: as for :func:`multi_head_attention`.

    Returns:
        Y (..., n, d_out), or (Y, P).

    Raises:
        InputError: an unknown layout, shapes that do not fit, heads that do not divide, empty tensors.
        DtypeError: integers, complex numbers, several dtypes or devices, a mask that is not boolean, a tensor for ``scale``.
    """
    h_kv = key_value_heads(layout, n_heads, n_kv_heads)
    _require_fused(X, W_QKV, W_O, b_QKV, b_O, bias)
    rows = split(linear(X, W_QKV.mT, b_QKV), layout=layout, n_heads=n_heads, n_kv_heads=n_kv_heads, d_k=d_k)
    _require_joined(W_O, b_O, rows.V.shape[-1] * n_heads // h_kv)
    options = {
        "attn_mask": mask, "bias": bias, "scale": scale, "dropout_p": dropout_p, "is_causal": is_causal,
        "softcap": softcap, "sinks": sinks, "window": window, "return_weights": return_weights,
    }  # fmt: skip
    return _between(rows, W_O, b_O, n_heads, h_kv, options)


def _between(
    rows: Iterable[Tensor], W_O: Tensor, b_O: Tensor | None, n_heads: int, h_kv: int, options: dict[str, Any]
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """concat_i(O_i) W_O + b_O, from the projections (..., n, h·d); P beside it where it is asked for."""
    Q, K, V = (split_heads(a, h) for a, h in zip(rows, (n_heads, h_kv, h_kv), strict=True))
    scores = (*Q.shape[:-1], K.shape[-2])
    require_mask("multihead", options["attn_mask"], scores, or_made=True)
    if options["bias"] is not None:
        require_broadcast("multihead", "bias", options["bias"], scores)
    found: Any = attention(Q, K, V, enable_gqa=h_kv != n_heads, **options)
    O, *weights = found if options["return_weights"] else (found,)
    Y = linear(join_heads(O), W_O.mT, b_O)
    return (Y, weights[0]) if weights else Y


def _require_fused(
    X: Tensor, W_QKV: Tensor, W_O: Tensor, b_QKV: Tensor | None, b_O: Tensor | None, bias: Tensor | None
) -> None:
    require_tensors("fused", X=X, W_QKV=W_QKV, W_O=W_O, b_O=b_O, bias=bias)
    require(
        X.dim() >= 2 and W_QKV.dim() == 2 and X.shape[-1] == W_QKV.shape[0],
        "fused needs X (..., n, d_model) and W_QKV (d_model, N)",
        shapes(X=X, W_QKV=W_QKV),
        "W_QKV is the transpose of nn.Linear.weight; GPT-2's Conv1D has it as it is wanted here",
        "pass layer.weight.mT",
    )
    if b_QKV is not None:
        require_tensors("fused", X=X, b_QKV=b_QKV)
    require(
        b_QKV is None or b_QKV.shape == W_QKV.shape[1:],
        f"fused needs b_QKV ({W_QKV.shape[1]},)",
        shapes(b_QKV=b_QKV),
        "the bias of another projection",
        "one entry for each column of W_QKV",
    )


def _require_joined(W_O: Tensor, b_O: Tensor | None, width: int) -> None:
    require(
        W_O.dim() == 2 and W_O.shape[0] == width,
        f"fused needs W_O with {width} rows (h·d_v)",
        shapes(W_O=W_O),
        "W_O is the transpose of nn.Linear.weight",
        "pass layer.weight.mT",
    )
    require(
        b_O is None or b_O.shape == W_O.shape[1:],
        f"fused needs b_O ({W_O.shape[1]},)",
        shapes(b_O=b_O),
        "the bias of another projection",
        "one entry for each column of W_O",
    )
