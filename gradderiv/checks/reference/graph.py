"""Attention on neighbour lists, three times over: dense with the multiplicity as a factor, in loops over the lists, and torch's own with log multiplicity for a bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _counts(neighbours: Tensor, K: Tensor) -> Tensor:
    """How often a query lists a key, (n_q, n_k)."""
    keys = torch.arange(K.shape[-2], device=neighbours.device)
    return (neighbours[..., None] == keys).sum(-2).to(K.dtype)


def graph(
    Q: Tensor, K: Tensor, V: Tensor, *, neighbours: Tensor, scale: float | None = None, inverse: Any = None
) -> Tensor:
    """P_ij = c_ij exp S_ij / Σ_k c_ik exp S_ik, on the whole matrix"""
    c = _counts(neighbours, K)
    S = torch.einsum("...qd,...kd->...qk", Q, K) * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)
    E = torch.exp(S) * c
    empty = (c.sum(-1, keepdim=True) == 0).to(K.dtype)
    return torch.einsum("...qk,...kd->...qd", E / (E.sum(-1, keepdim=True) + empty), V)


def loop_graph(
    Q: Tensor, K: Tensor, V: Tensor, *, neighbours: Tensor, scale: float | None = None, inverse: Any = None
) -> Tensor:
    """One query after the other, one neighbour after the other."""
    factor = 1 / math.sqrt(Q.shape[-1]) if scale is None else scale
    O = Q.new_zeros(*Q.shape[:-1], V.shape[-1])
    for *leading, i in O.new_ones(O.shape[:-1]).nonzero().tolist():
        q, k, v = Q[(*leading, i)].tolist(), K[tuple(leading)].tolist(), V[tuple(leading)].tolist()
        keys = [j for j in neighbours[i].tolist() if j != -1]
        scores = [factor * math.fsum(a * b for a, b in zip(q, k[j], strict=True)) for j in keys]
        top = max(scores, default=0.0)
        weights = [math.exp(s - top) for s in scores]
        for column in range(V.shape[-1]):
            terms = [w * v[j][column] for w, j in zip(weights, keys, strict=True)]
            O[(*leading, i, column)] = math.fsum(terms) / (math.fsum(weights) or 1.0)
    return O


def torch_graph(
    Q: Tensor, K: Tensor, V: Tensor, *, neighbours: Tensor, scale: float | None = None, inverse: Any = None
) -> Tensor:
    bias = _counts(neighbours, K).log()
    return functional.scaled_dot_product_attention(Q, K, V, attn_mask=bias, scale=scale)


TEXTBOOK: dict[str, Callable[..., Tensor]] = {"graph": graph}
LOOPS: dict[str, Callable[..., Tensor]] = {"graph": loop_graph}
TORCH: dict[str, Callable[..., Tensor]] = {"graph": torch_graph}
