"""Fused projections: one matrix W_QKV for W_Q, W_K and W_V, in the orders of columns that are found in practice.

    contiguous    [W_Q ‖ W_K ‖ W_V]                                   GPT-2's Conv1D, nn.MultiheadAttention
    grouped       [q_j … q_j′ k_j v_j] for each key/value head j      Falcon, litgpt; with as many as query heads:
    interleaved   [q_i k_i v_i] for each head i                       GPT-NeoX, BLOOM
    head-last     contiguous, but heads vary fastest inside a part    view(…, 3·d, h): the Stack Overflow question "PyTorch Linear
                                                                      operations vary widely after reshaping", its answer

    q_i (d_model, d_k)   k_j (d_model, d_k)   v_j (d_model, d_v)      W_QKV (d_model, h·d_k + h_kv·d_k + h_kv·d_v)

A layout Π permutes columns: W_QKV = [W_Q ‖ W_K ‖ W_V] Π. So the gradient is permuted likewise, dW_QKV = [dW_Q ‖ dW_K ‖ dW_V] Π, and :func:`split` and :func:`fuse` serve for weights,
biases, gradients, tangents and optimizer states alike; each is the inverse of the other, without rounding. A fused tensor may have leading axes; a bias is (N). ``nn.Linear.weight`` is the transpose,
(N, d_model): pass ``weight.mT``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.rules._inputs import require, require_tensors, shapes


class Parts(NamedTuple):
    """The projections by themselves, or their biases, or the gradients of either."""

    Q: Tensor
    K: Tensor
    V: Tensor


class Heads(NamedTuple):
    """How many query heads, how many key/value heads, and their widths."""

    h: int
    h_kv: int
    d_k: int
    d_v: int

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.h * self.d_k, self.h_kv * self.d_k, self.h_kv * self.d_v

    @property
    def block(self) -> tuple[int, int, int]:
        """The columns of one key/value head: its queries, its key, its value."""
        return self.h // self.h_kv * self.d_k, self.d_k, self.d_v


def _fuse_contiguous(p: Parts, heads: Heads) -> Tensor:
    return torch.cat(p, -1)


def _split_contiguous(W: Tensor, heads: Heads) -> Parts:
    return Parts(*W.split(heads.widths, -1))


def _fuse_grouped(p: Parts, heads: Heads) -> Tensor:
    parts = [t.unflatten(-1, (heads.h_kv, -1)) for t in p]  # (…, h_kv, g·d_k), (…, h_kv, d_k), (…, h_kv, d_v)
    return torch.cat(parts, -1).flatten(-2)


def _split_grouped(W: Tensor, heads: Heads) -> Parts:
    parts = W.unflatten(-1, (heads.h_kv, -1)).split(heads.block, -1)
    return Parts(*(t.flatten(-2) for t in parts))


def _fuse_head_last(p: Parts, heads: Heads) -> Tensor:
    counts = heads.h, heads.h_kv, heads.h_kv
    return torch.cat([_transposed(t, n) for t, n in zip(p, counts, strict=True)], -1)


def _split_head_last(W: Tensor, heads: Heads) -> Parts:
    rows = heads.d_k, heads.d_k, heads.d_v  # what was the number of heads is now the width of one
    return Parts(*(_transposed(t, n) for t, n in zip(W.split(heads.widths, -1), rows, strict=True)))


def _transposed(t: Tensor, n: int) -> Tensor:
    """(…, n·d) read as (…, n, d) and written as (…, d·n)."""
    return t.unflatten(-1, (n, -1)).mT.flatten(-2)


LAYOUTS: dict[str, tuple[Callable[[Parts, Heads], Tensor], Callable[[Tensor, Heads], Parts]]] = {
    "contiguous": (_fuse_contiguous, _split_contiguous),
    "grouped": (_fuse_grouped, _split_grouped),
    "interleaved": (_fuse_grouped, _split_grouped),
    "head-last": (_fuse_head_last, _split_head_last),
}


def fuse(
    W_Q: Tensor, W_K: Tensor, W_V: Tensor, *, layout: str, n_heads: int, n_kv_heads: int | None = None
) -> Tensor:
    """W_QKV = [W_Q ‖ W_K ‖ W_V] Π

    Shazeer 2019 and Ainslie et al. 2023 for shared key/value heads; the layouts as their systems have them (see the module).

    Args:
        W_Q: (..., h·d_k), or the bias (h·d_k), or the gradient of either.
        W_K: (..., h_kv·d_k).
        W_V: (..., h_kv·d_v).
        layout: one of ``LAYOUTS``.
        n_heads: h.
        n_kv_heads: h_kv; h unless given.

    Returns:
        (..., h·d_k + h_kv·d_k + h_kv·d_v).

    Raises:
        InputError: an unknown layout, widths that the heads do not divide, interleaved or shared heads where the layout has none.
        DtypeError: integers, several dtypes or devices.
    """
    require_tensors("fuse", W_Q=W_Q, W_K=W_K, W_V=W_V)
    h_kv = key_value_heads(layout, n_heads, n_kv_heads)
    given = Parts(W_Q, W_K, W_V)
    require(
        W_Q.shape[-1] % n_heads == 0 and all(t.shape[-1] % h_kv == 0 for t in (W_K, W_V)),
        "fuse needs widths that the heads divide",
        f"{shapes(W_Q=W_Q, W_K=W_K, W_V=W_V)}, {n_heads} heads, {h_kv} key/value heads",
        "another number of heads, or nn.Linear.weight, whose columns are its last axis but one",
        "pass weight.mT, and the number of heads of the model",
    )
    heads = Heads(n_heads, h_kv, W_Q.shape[-1] // n_heads, W_V.shape[-1] // h_kv)
    require(
        W_K.shape[-1] == h_kv * heads.d_k and W_Q.shape[:-1] == W_K.shape[:-1] == W_V.shape[:-1],
        "fuse needs keys as wide as queries, and equal leading axes",
        f"{shapes(W_Q=W_Q, W_K=W_K, W_V=W_V)}: {heads.d_k} wide queries, {W_K.shape[-1] // h_kv} wide keys",
        "weights of different layers, or another number of key/value heads",
        "the weights of one attention layer",
    )
    return LAYOUTS[layout][0](given, heads)


def split(
    W_QKV: Tensor, *, layout: str, n_heads: int, n_kv_heads: int | None = None, d_k: int | None = None
) -> Parts:
    """[W_Q ‖ W_K ‖ W_V] = W_QKV Πᵀ

    The inverse of :func:`fuse`: the same columns, in their own three matrices.

    Args:
        W_QKV: (..., N), N = h·d_k + h_kv·d_k + h_kv·d_v; a weight, a bias, or the gradient of either.
        layout: one of ``LAYOUTS``.
        n_heads: h.
        n_kv_heads: h_kv; h unless given.
        d_k: the width of a query head; N/(h + 2 h_kv), as where d_v = d_k, unless given.

    Returns:
        Q (..., h·d_k), K (..., h_kv·d_k) and V (..., h_kv·d_v).

    Raises:
        InputError: an unknown layout, a width that the heads do not divide.
        DtypeError: an integer tensor.
    """
    require_tensors("split", W_QKV=W_QKV)
    h_kv = key_value_heads(layout, n_heads, n_kv_heads)
    N = W_QKV.shape[-1]
    width = N // (n_heads + 2 * h_kv) if d_k is None else d_k
    rest = N - (n_heads + h_kv) * width
    require(
        width > 0 and rest > 0 and rest % h_kv == 0 and (d_k is not None or N % (n_heads + 2 * h_kv) == 0),
        "split needs a fused width h·d_k + h_kv·d_k + h_kv·d_v",
        f"{shapes(W_QKV=W_QKV)}, {n_heads} heads, {h_kv} key/value heads, d_k = {width}",
        "nn.Linear.weight, whose columns are its last axis but one; values of another width than keys; another number of heads",
        "pass weight.mT, d_k where values are wider or narrower, and the number of heads of the model",
    )
    return LAYOUTS[layout][1](W_QKV, Heads(n_heads, h_kv, width, rest // h_kv))


def convert(
    W_QKV: Tensor,
    *,
    source: str,
    target: str,
    n_heads: int,
    n_kv_heads: int | None = None,
    d_k: int | None = None,
) -> Tensor:
    """W′_QKV = W_QKV Πᵀ Π′

    From one layout to another: of a weight, a bias, their gradients, or the columns of a low-rank update (B of ΔW = A B, as LoRA's, where X A B is added).

    Args:
        W_QKV: (..., N).
        source: its layout.
        target: the layout to have.
        n_heads, n_kv_heads, d_k: as for :func:`split`.

    Returns:
        (..., N).

    Raises:
        InputError, DtypeError: as :func:`split` and :func:`fuse`.
    """
    parts = split(W_QKV, layout=source, n_heads=n_heads, n_kv_heads=n_kv_heads, d_k=d_k)
    return fuse(*parts, layout=target, n_heads=n_heads, n_kv_heads=n_kv_heads)


def key_value_heads(layout: str, n_heads: int, n_kv_heads: int | None) -> int:
    require(
        layout in LAYOUTS,
        f"a layout is one of {', '.join(LAYOUTS)}",
        repr(layout),
        "the name of a model instead of that of its layout",
        "contiguous for GPT-2 and nn.MultiheadAttention, interleaved for GPT-NeoX and BLOOM, grouped for Falcon and litgpt",
    )
    h_kv = n_heads if n_kv_heads is None else n_kv_heads
    require(
        n_heads > 0 and h_kv > 0 and n_heads % h_kv == 0,
        "heads must come in equal groups",
        f"{n_heads} heads, {h_kv} key/value heads",
        "the two numbers exchanged",
        "n_heads a multiple of n_kv_heads",
    )
    require(
        layout != "interleaved" or h_kv == n_heads,
        "interleaved has one key and one value for every query head",
        f"{n_heads} heads, {h_kv} key/value heads",
        "a model with shared key/value heads",
        "layout='grouped'",
    )
    return h_kv
