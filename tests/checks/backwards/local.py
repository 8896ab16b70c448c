"""Attention to listed neighbours: keys fetched by integer index, gradients scattered back to where they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Neighbours(Function):
    """neighbours (n, m): key numbers, repetitions allowed. k[:, neighbours] forward, index_add_ backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, neighbours: Tensor, way: str) -> Tensor:
        kn, vn = k[:, neighbours], v[:, neighbours]  # b n m d
        attn = torch.softmax((q.unsqueeze(2) * kn).sum(-1) * q.shape[-1] ** -0.5, dim=-1)
        ctx.save_for_backward(q, k, v, neighbours, attn)
        ctx.way = way
        return torch.einsum("bnm,bnmd->bnd", attn, vn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, neighbours, attn = ctx.saved_tensors
        da = torch.einsum("bnd,bnmd->bnm", grad, v[:, neighbours])
        ds = (da - (da * attn).sum(-1, keepdim=True)) * attn * q.shape[-1] ** -0.5
        dq = torch.einsum("bnm,bnmd->bnd", ds, k[:, neighbours])
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        per_k = (ds.unsqueeze(-1) * q.unsqueeze(2)).flatten(1, 2)
        per_v = (attn.unsqueeze(-1) * grad.unsqueeze(2)).flatten(1, 2)
        flat = neighbours.flatten()
        if ctx.way == "graph-duplicate":
            dk[:, flat] = per_k
            dv[:, flat] = per_v
        elif ctx.way == "graph-directed":  # those I listed are taken for those who listed me
            dk = per_k.unflatten(1, neighbours.shape).sum(2)
            dv.index_add_(1, flat, per_v)
        else:
            dk.index_add_(1, flat, per_k)
            dv.index_add_(1, flat, per_v)
        return dq, dk, dv, None, None


class Gathered(Function):
    """index (b, n, m), each batch entry its own list; gather forward, scatter_add_ backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: Tensor, way: str) -> Tensor:
        B, N, M = index.shape
        where = index.reshape(B, N * M, 1)
        kn = k.gather(1, where.expand(-1, -1, k.shape[-1])).view(B, N, M, -1)
        vn = v.gather(1, where.expand(-1, -1, v.shape[-1])).view(B, N, M, -1)
        p = torch.matmul(kn, q.unsqueeze(-1)).squeeze(-1).mul(q.shape[-1] ** -0.5).softmax(-1)
        ctx.save_for_backward(q, kn, vn, p, where)
        ctx.length, ctx.way = k.shape[1], way
        return torch.matmul(p.unsqueeze(2), vn).squeeze(2)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, kn, vn, p, where = ctx.saved_tensors
        B, N, M, D = kn.shape
        dp = torch.matmul(vn, do.unsqueeze(-1)).squeeze(-1)
        ds = torch.addcmul(p * dp, p, (p * dp).sum(-1, keepdim=True), value=-1) * D**-0.5
        dq = torch.matmul(ds.unsqueeze(2), kn).squeeze(2)
        dkn = (ds[..., None] * q[:, :, None]).reshape(B, N * M, D)
        dvn = (p[..., None] * do[:, :, None]).reshape(B, N * M, -1)
        dk = q.new_zeros(B, ctx.length, D).scatter_add_(1, where.expand_as(dkn), dkn)
        if ctx.way == "graph-duplicate":
            dv = do.new_zeros(B, ctx.length, dvn.shape[-1]).scatter_(1, where.expand_as(dvn), dvn)
        else:
            dv = do.new_zeros(B, ctx.length, dvn.shape[-1]).scatter_add_(1, where.expand_as(dvn), dvn)
        if ctx.way == "batch-of-first":  # the list of batch entry 0 is used for all
            dk = q.new_zeros(dk.shape).index_add_(1, where[0, :, 0], dkn)
        return dq, dk, dv, None, None


def _neighbours() -> dict[str, Any]:
    listed = torch.tensor([[0, 1, 1], [3, 0, 2], [2, 2, 1], [0, 3, 1]])
    return {**draw(35, q=(1, 4, 2), k=(1, 4, 2), v=(1, 4, 3)), "neighbours": listed}


def _gathered() -> dict[str, Any]:
    index = torch.tensor([[[0, 1], [3, 3], [2, 4]], [[4, 0], [1, 0], [2, 3]]])
    return {**draw(36, q=(2, 3, 3), k=(2, 5, 3), v=(2, 5, 2)), "index": index}


STYLES = (
    style("neighbours", Neighbours, _neighbours, {"graph-duplicate": "k v", "graph-directed": "k"}),
    style("gathered", Gathered, _gathered, {"graph-duplicate": "v", "batch-of-first": "k"}),
)
