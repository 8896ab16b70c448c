"""Sequences of different length, packed one after the other: ``cu_seqlens`` says where each begins."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Packed(Function):
    """q, k, v (total, h, d), cu_seqlens (sequences + 1)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, way: str) -> Tensor:
        out = torch.empty_like(v)
        lse = q.new_empty(q.shape[1], q.shape[0])
        for start, end in pairwise(cu_seqlens.tolist()):
            s = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]) * q.shape[-1] ** -0.5
            lse[:, start:end] = torch.logsumexp(s, -1)
            p = torch.exp(s - lse[:, start:end, None])
            out[start:end] = torch.einsum("hij,jhe->ihe", p, v[start:end])
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens)
        ctx.way = way
        return out

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, out, lse, cu_seqlens = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        delta = (do * out).sum(-1).t()
        if ctx.way == "delta-strides":
            delta = (do * out).sum(-1).reshape(delta.shape)
        bounds = list(pairwise(cu_seqlens.tolist()))
        if ctx.way == "mask-ignored-backward":  # one sequence, as long as all
            bounds = [(0, q.shape[0])]
        if ctx.way == "tail-block":
            bounds = bounds[:-1]
        for start, end in bounds:
            at = slice(start, end)
            p = torch.exp(torch.einsum("ihd,jhd->hij", q[at], k[at]) * scale - lse[:, at, None])
            dv[at].add_(torch.einsum("hij,ihe->jhe", p, do[at]))
            ds = p * (torch.einsum("ihe,jhe->hij", do[at], v[at]) - delta[:, at, None])
            dq[at].add_(torch.einsum("hij,jhd->ihd", ds, k[at]), alpha=scale)
            dk[at].add_(torch.einsum("hij,ihd->jhd", ds, q[at]), alpha=scale)
        return dq, dk, dv, None, None


def _inputs() -> dict[str, Any]:
    cu_seqlens = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
    return {**draw(39, q=(6, 2, 2), k=(6, 2, 2), v=(6, 2, 3)), "cu_seqlens": cu_seqlens}


STYLES = (
    style(
        "varlen",
        Packed,
        _inputs,
        {"delta-strides": "q k", "mask-ignored-backward": "q k v", "tail-block": "q k v"},
    ),
)
