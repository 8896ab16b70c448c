"""Multi-head attention as a PyTorch function.

    Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O         Vaswani et al. 2017, §3.2.2

X (..., n_q, d_model)   X_kv (..., n_k, d_kv)   Y (..., n_q, d_out)   W_Q as in Q = X W_Q
"""

from __future__ import annotations

from torch import Tensor

from gradderiv.functional._autocast import autocast_on_entry
from gradderiv.functional._function import Rule
from gradderiv.rules import multihead as rules

_multihead = Rule(
    rules.multihead,
    rules.multihead_jvp,
    rules.multihead_vjp,
    rules.multihead_vjp_jvp,
    variables=("X", "W_Q", "W_K", "W_V", "W_O", "X_kv", "b_Q", "b_K", "b_V", "b_O", "bias"),
    constants=("mask", "n_heads", "n_kv_heads", "scale"),
)


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
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O,   Q = X W_Q + b_Q,   K, V from X_kv

    Vaswani et al. 2017, §3.2.2; the gradients are those of :mod:`gradderiv.rules.multihead`.

    Each W is applied from the right, ``Q = X @ W_Q``: it is the **transpose** of ``nn.Linear.weight``. The
    weights of an ``nn.MultiheadAttention`` named ``layer`` (``batch_first``, one width) are passed as::

        W_Q, W_K, W_V = (W.mT for W in layer.in_proj_weight.chunk(3))
        b_Q, b_K, b_V = layer.in_proj_bias.chunk(3)
        W_O, b_O = layer.out_proj.weight.mT, layer.out_proj.bias

    and its boolean masks, where True = may *not* attend, as ``mask=~attn_mask`` or as
    ``mask=~key_padding_mask[:, None, None]``. Derivatives of every order and ``torch.func`` transforms: as
    :func:`gradderiv.functional.attention`.

    Args:
        X: (..., n_q, d_model), the queries' source.
        W_Q, W_K, W_V, W_O: (d_model, h·d_k), (d_kv, h_kv·d_k), (d_kv, h_kv·d_v), (h·d_v, d_out); head i owns
            the columns i·d … (i+1)·d of its projection.
        n_heads: h.
        n_kv_heads: h_kv, a divisor of h; h when None. Each key/value head serves h/h_kv query heads in a row.
        X_kv: (..., n_k, d_kv), the source of keys and values; X when None (self-attention).
        b_Q, b_K, b_V, b_O: biases of the four projections.
        scale: τ, 1/√d_k unless given. A number: multiply W_Q and b_Q by a temperature that is learned.
        mask: boolean, broadcasts to the scores (..., h, n_q, n_k); True = may attend. A row that may attend to
            nothing gives O = 0, hence Y = b_O.
        bias: broadcasts to the scores; added after scaling. Hide keys with ``mask``, not with −∞ in a bias.

    Returns:
        Y (..., n_q, d_out).

    Raises:
        InputError: shapes that do not fit, heads that do not divide, empty tensors.
        DtypeError: integers, complex numbers, several dtypes or devices, a mask that is not boolean, a tensor for
            ``scale``.
    """
    variables = (X, W_Q, W_K, W_V, W_O, X_kv, b_Q, b_K, b_V, b_O, bias)
    return _multihead(*variables, mask, n_heads, n_kv_heads, scale)
