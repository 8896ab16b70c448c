"""What ``attention`` demands of its arguments, and how shared heads and batches are laid out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gradderiv.errors import DtypeError, InputError, message
from gradderiv.rules._inputs import kind, require, require_broadcast, require_floating, require_mask, shapes

LEARNED = "multiply Q by it and pass scale=1.0, or scale.item() where it is not learned"
AS_IT_SHOULD = "attention needs Q (..., n_q, d_k), K (..., n_k, d_k) and V (..., n_k, d_v)"


def require_tensors(Q: Tensor, K: Tensor, V: Tensor, enable_gqa: bool) -> None:
    """Demand matrices of one real dtype that fit each other.

    Raises:
        InputError: shapes that do not fit.
        DtypeError: integers, complex numbers, several dtypes or devices.
    """
    require_floating("attention", Q=Q, K=K, V=V)
    require_real(Q=Q, K=K, V=V)
    came = shapes(Q=Q, K=K, V=V)
    require(
        min(Q.dim(), K.dim(), V.dim()) >= 2,
        AS_IT_SHOULD,
        came,
        "a vector for a matrix of one row",
        "Q.unsqueeze(-2)",
    )
    require(
        Q.shape[-1] == K.shape[-1] > 0,
        AS_IT_SHOULD,
        came,
        "queries and keys of different widths, or of width 0",
        "Q and K share their last axis, d_k",
    )
    require(
        K.shape[-2] == V.shape[-2],
        AS_IT_SHOULD,
        came,
        "another number of keys than of values",
        "K and V share their next to last axis, n_k",
    )
    if enable_gqa:
        require(
            min(Q.dim(), K.dim(), V.dim()) >= 3
            and K.shape[-3] == V.shape[-3] > 0
            and Q.shape[-3] % K.shape[-3] == 0,
            "enable_gqa needs Q (..., h, n_q, d_k), K and V (..., h_kv, n_k, d), h_kv dividing h",
            came,
            "heads that are not on the axis -3, or a number of them that does not divide",
            "Q.transpose(1, 2) where the heads come after the sequence",
        )


PLAIN = (Tensor, Parameter)
"""Tensors of PyTorch itself, with floats in them."""


def fit(Q: Tensor, K: Tensor, V: Tensor) -> bool:
    """Whether nothing is left to ask or to do: the most frequent case, decided fast."""
    return (
        type(Q) in PLAIN
        and type(K) in PLAIN
        and type(V) in PLAIN
        and Q.dtype is K.dtype is V.dtype
        and Q.dtype.is_floating_point
        and Q.device == K.device == V.device
        and Q.dim() == K.dim() == V.dim() >= 3
        and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
        and Q.shape[-1] == K.shape[-1] > 0
        and K.shape[-2] == V.shape[-2]
    )


def same_leading_axes(Q: Tensor, K: Tensor, V: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Batches and heads that broadcast, written out; with ``enable_gqa`` each key/value head for h/h_kv query heads in a row.

    Raises:
        InputError: they do not.
    """
    if enable_gqa:
        K, V = (_repeated(t, Q.shape[-3] // t.shape[-3]) for t in (K, V))
    try:
        lead = torch.broadcast_shapes(Q.shape[:-2], K.shape[:-2], V.shape[:-2])
    except RuntimeError:
        raise InputError(
            message(
                AS_IT_SHOULD + ", whose leading axes (batch, heads) broadcast",
                shapes(Q=Q, K=K, V=V),
                "grouped key/value heads, or another batch",
                "enable_gqa=True for h_kv heads that serve h query heads",
            )
        ) from None
    Q, K, V = (t.expand(*lead, *t.shape[-2:]) for t in (Q, K, V))
    return Q, K, V


def _repeated(t: Tensor, group: int) -> Tensor:
    """(..., h_kv, n, d) → (..., h, n, d)"""
    return t.unsqueeze(-3).expand(*t.shape[:-2], group, *t.shape[-2:]).flatten(-4, -3)


def require_on_scores(Q: Tensor, K: Tensor, attn_mask: Any, bias: Any, sinks: Any) -> None:
    """Demand what broadcasts to the scores, in their dtype.

    Raises:
        InputError: what does not fit.
        DtypeError: a mask that is neither boolean nor floating; several dtypes.
    """
    scores = (*Q.shape[:-1], K.shape[-2])
    if attn_mask is not None:
        _require_attn_mask(Q, attn_mask, bias, scores)
    if bias is not None:
        require_floating("attention", Q=Q, bias=bias)
        require_real(bias=bias)
        require_broadcast("attention", "bias", bias, scores)
    if sinks is not None:
        require_floating("attention", Q=Q, sinks=sinks)
        require_real(sinks=sinks)
        require(
            sinks.shape in (Q.shape[-3:-2], torch.Size()),
            "attention needs one sink for each head: sinks (h)",
            shapes(Q=Q, sinks=sinks),
            "a sink for each key/value head, or with an axis for the batch",
            "one number for each query head",
        )


def require_numbers(scale: Any, softcap: Any, dropout_p: Any, window: Any) -> None:
    """Demand numbers in their ranges.

    Raises:
        InputError: out of range.
        DtypeError: a tensor for a number.
    """
    if scale is not None:
        require_number("scale", scale, LEARNED)
    if softcap is not None:
        require_number("softcap", softcap, "softcap.item()")
        if not 0 < softcap < float("inf"):
            asked = "a softcap is a number c > 0 in S = c tanh(Z/c)"
            cause = "0 or inf for no cap, as some configurations have it"
            raise InputError(message(asked, repr(softcap), cause, "softcap=None"))
    if dropout_p:
        require_number("dropout_p", dropout_p, "dropout_p.item()")
        if not 0.0 <= dropout_p <= 1.0:
            asked = "dropout_p is the probability with which a weight is dropped, from 0 to 1"
            raise InputError(message(asked, repr(dropout_p), "per cent, or what is kept", "dropout_p=0.1"))
    if window is not None:
        _require_window(window)


def _require_window(window: Any) -> None:
    pair = isinstance(window, (tuple, list)) and len(window) == 2
    if not (pair and all(isinstance(n, int) for n in window) and min(window) >= -1):
        raise InputError(
            message(
                "a window is (left, right): how many keys to the left and to the right, -1 = unbounded",
                repr(window),
                "one number for both sides, None for unbounded, or an offset with a sign",
                "window=(3, 0) for the query's own key and three before it",
            )
        )


def _require_attn_mask(Q: Tensor, attn_mask: Any, bias: Any, scores: tuple[int, ...]) -> None:
    if not isinstance(attn_mask, Tensor) or not attn_mask.is_floating_point():
        require_mask("attention", attn_mask, scores)
        _require_device(Q, attn_mask)
        return
    require(
        bias is None,
        "attention needs a boolean attn_mask beside a bias",
        "two floating tensors",
        "a mask of 0 and -inf",
        "pass their sum as one of the two, or attn_mask=(attn_mask == 0)",
    )
    _require_device(Q, attn_mask)
    require_broadcast("attention", "attn_mask", attn_mask, scores)


def _require_device(Q: Tensor, attn_mask: Tensor) -> None:
    if attn_mask.device != Q.device:
        came, do = f"Q {Q.device}, attn_mask {attn_mask.device}", "attn_mask.to(Q.device)"
        cause = "a mask was left behind when the model was moved"
        raise DtypeError(message("attention needs one device", came, cause, do))


def require_real(**tensors: Tensor) -> None:
    """Demand real entries.

    Raises:
        DtypeError: complex ones.
    """
    for name, value in tensors.items():
        if value.is_complex():
            raise DtypeError(
                message(
                    f"attention needs {name} with real entries",
                    f"dtype {value.dtype}",
                    "a complex gradient conjugates where the closed forms only transpose",
                    f"torch.view_as_real({name})",
                )
            )


def require_number(name: str, value: Any, do: str) -> None:
    """Demand a number.

    Raises:
        DtypeError: a tensor, or anything else.
    """
    if not isinstance(value, (int, float)):
        raise DtypeError(
            message(
                f"attention needs {name} as a number",
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind(value),
                "a learned temperature, whose gradient would be lost",
                do,
            )
        )
