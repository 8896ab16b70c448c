"""Fewer key/value heads than query heads: repeated or expanded; backward sums over the group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Repeated(Function):
    """k, v (b, h_kv, n, d) repeated with repeat_interleave."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        kr, vr = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scale = q.shape[-1] ** -0.5
        p = torch.softmax(q @ kr.mT * scale, -1)
        ctx.save_for_backward(q, kr, vr, p)
        ctx.scale, ctx.groups, ctx.way = scale, groups, way
        return p @ vr

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, kr, vr, p = ctx.saved_tensors
        dvr = p.mT @ do
        dp = do @ vr.mT
        ds = ctx.scale * p * (dp - torch.sum(p * dp, -1, keepdim=True))
        dkr = ds.mT @ q
        return ds @ kr, Repeated.reduce(ctx, dkr), Repeated.reduce(ctx, dvr), None

    @staticmethod
    def reduce(ctx: Any, g: Tensor) -> Tensor:
        b, heads, n, d = g.shape
        if ctx.way == "gqa-tile":
            return g.view(b, ctx.groups, heads // ctx.groups, n, d).sum(dim=1)
        g = g.view(b, heads // ctx.groups, ctx.groups, n, d)
        if ctx.way == "gqa-no-sum":
            return g[:, :, 0]
        return g.mean(dim=2) if ctx.way == "gqa-mean" else g.sum(dim=2)


class Expanded(Function):
    """k, v (b, n, h_kv, d) expanded and reshaped to all heads forward; Q regrouped in backward, the group summed by einsum."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: str) -> Tensor:
        b, m, h_kv, d = k.shape
        rep = q.shape[2] // h_kv
        K = k[:, :, :, None, :].expand(b, m, h_kv, rep, d).reshape(b, m, h_kv * rep, d).transpose(1, 2)
        V = (
            v[:, :, :, None, :]
            .expand(b, m, h_kv, rep, v.shape[-1])
            .reshape(b, m, h_kv * rep, -1)
            .transpose(1, 2)
        )
        S = torch.matmul(q.transpose(1, 2), K.transpose(2, 3)) / d**0.5
        L = S.logsumexp(-1)
        out = torch.matmul((S - L.unsqueeze(-1)).exp(), V).transpose(1, 2).contiguous()
        ctx.save_for_backward(q, k, v, out, L)
        ctx.way = way
        return out

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, out, L = ctx.saved_tensors
        way, h_kv, scale = ctx.way, k.shape[2], k.shape[3] ** -0.5
        qg, dog, outg = (x.unflatten(2, (h_kv, -1)) for x in (q, do, out))
        lse = L.unflatten(1, (h_kv, -1)).unsqueeze(-1)
        p = torch.exp(torch.einsum("bigrd,bjgd->bgrij", qg, k) * scale - lse)
        delta = torch.einsum("bigre,bigre->bgri", dog, outg).unsqueeze(-1)
        ds = p * (torch.einsum("bigre,bjge->bgrij", dog, v) - delta) * scale
        dq = torch.einsum("bgrij,bjgd->bigrd", ds, k).flatten(2, 3)
        if way == "gqa-no-sum":
            ds = ds[:, :, -1:]
            qg = qg[:, :, :, -1:]
        dk = torch.einsum("bgrij,bigrd->bjgd", ds, qg)
        dv = torch.einsum("bgrij,bigre->bjge", p, dog)
        if way == "heads-permuted":
            dv = dv.roll(1, dims=2)
        return dq, dk, dv, None


STYLES = (
    style(
        "gqa-repeat-interleave",
        Repeated,
        lambda: draw(17, q=(1, 6, 2, 2), k=(1, 2, 4, 2), v=(1, 2, 4, 3)),
        {"gqa-no-sum": "k v", "gqa-tile": "k v", "gqa-mean": "k v"},
    ),
    style(
        "gqa-expand",
        Expanded,
        lambda: draw(18, q=(1, 3, 4, 2), k=(1, 4, 2, 2), v=(1, 4, 2, 3)),
        {"gqa-no-sum": "k", "heads-permuted": "v"},
    ),
)
