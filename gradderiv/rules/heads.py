"""Heads: cut from the columns of a projection, joined again, and shared by groups of query heads.

    (..., n, h·d) ⇄ (..., h, n, d)        (..., h_kv, n, d) ⇄ (..., h, n, d)        Vaswani et al. 2017, §3.2.2; Ainslie et al. 2023

Head i owns the columns i·d … (i+1)·d. With h_kv < h each key/value head serves h/h_kv query heads in a row: [0 0 1 1], not [0 1 0 1].
"""

from __future__ import annotations

from torch import Tensor

from gradderiv.rules._inputs import rule
from gradderiv.rules.steps import linear_map


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


SPLIT_HEADS = linear_map(split_heads, lambda dX, shape, n_heads: join_heads(dX))
JOIN_HEADS = linear_map(join_heads, lambda dX, shape: split_heads(dX, shape[-3]))
REPEAT_HEADS = linear_map(repeat_heads, lambda dX, shape, n_heads: sum_heads(dX, shape[-3]))
