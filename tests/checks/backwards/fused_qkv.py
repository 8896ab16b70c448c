"""One weight for Q, K and V: laid out [Q | K | V], or head by head [q k v]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .style import draw, softmax_backward, style


class Fused(Function):
    """weight (3·h·d, d_in), bias (3·h·d), rows [Q | K | V]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_heads: int, way: str) -> Tensor:
        B, N, _ = x.shape
        q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        q, k, v = (t.view(B, N, num_heads, -1).transpose(1, 2) for t in (q, k, v))
        scale = q.shape[-1] ** -0.5
        attn = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        ctx.save_for_backward(x, weight, q, k, v, attn)
        ctx.scale, ctx.way = scale, way
        return (attn @ v).transpose(1, 2).reshape(B, N, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, q, k, v, attn = ctx.saved_tensors
        B, H, N, D = q.shape
        g = grad.view(B, N, H, D).transpose(1, 2)
        dv = attn.transpose(-2, -1) @ g
        ds = softmax_backward(g @ v.transpose(-2, -1), attn, ctx.way) * ctx.scale
        dq, dk = ds @ k, ds.transpose(-2, -1) @ q
        if ctx.way == "head-reshape":
            dq, dk, dv = (t.reshape(B, N, H * D) for t in (dq, dk, dv))
        else:
            dq, dk, dv = (t.transpose(1, 2).reshape(B, N, H * D) for t in (dq, dk, dv))
        dqkv = torch.cat((dq, dk, dv), dim=-1)
        if ctx.way == "layout-contiguous":
            dqkv = torch.stack([t.view(B, N, H, D) for t in (dq, dk, dv)], dim=3).reshape(B, N, -1)
        dx = dqkv @ weight
        if ctx.way == "x-path":
            dx = dqkv[..., : 2 * H * D] @ weight[: 2 * H * D]
        flat = dqkv.reshape(B * N, -1)
        dw = flat.t().mm(x.reshape(B * N, -1))
        db = flat.mean(0) if ctx.way == "bias-mean" else flat.sum(0)
        return dx, dw, db, None, None


class Interleaved(Function):
    """weight (d_in, h·3·d): each head's q, k, v beside each other; the gradient is written into one empty buffer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, num_heads: int, way: str) -> Tensor:
        B, N, _ = x.shape
        qkv = (x @ weight).view(B, N, num_heads, 3, -1).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.unbind(dim=2)
        p = torch.softmax(torch.matmul(q, k.mT) * q.shape[-1] ** -0.5, -1)
        ctx.save_for_backward(x, weight, qkv, p)
        ctx.way = way
        return torch.matmul(p, v).permute(0, 2, 1, 3).flatten(2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, qkv, p = ctx.saved_tensors
        B, H, _, N, D = qkv.shape
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        do = dy.unflatten(2, (H, D)).permute(0, 2, 1, 3)
        dp = do @ v.mT
        ds = (p * (dp - (p * dp).sum(-1, keepdim=True))).mul_(D**-0.5)
        dqkv = torch.empty(B, N, H, 3, D, dtype=x.dtype, device=x.device)
        at = dqkv.permute(0, 2, 3, 1, 4)  # a view: writing here fills dqkv
        first, second = (1, 0) if ctx.way == "swap-dQ-dK" else (0, 1)
        at[:, :, first] = ds @ k
        at[:, :, second] = ds.mT @ q
        at[:, :, 2] = p.mT @ do
        if ctx.way == "head-dropped":
            at[:, 1:].zero_()
        if ctx.way == "layout-contiguous":
            dqkv = dqkv.transpose(2, 3)
        dqkv = dqkv.reshape(B, N, H * 3 * D)
        dx = dqkv @ weight.t()
        dw = torch.einsum("bni,bno->io", x, dqkv)
        if ctx.way == "batch-mean":
            dw = dw / B
        return dx, dw, None, None


STYLES = (
    style(
        "fused-qkv",
        Fused,
        lambda: {**draw(15, x=(2, 3, 3), weight=(12, 3), bias=(12,)), "num_heads": 2},
        {
            "bias-mean": "bias",
            "head-reshape": "x weight bias",
            "layout-contiguous": "x weight bias",
            "x-path": "x",
            "softmax-no-rowsum": "x weight bias",
        },
    ),
    style(
        "interleaved-qkv",
        Interleaved,
        lambda: {**draw(16, x=(2, 3, 5), weight=(5, 12)), "num_heads": 2},
        {
            "swap-dQ-dK": "x weight",
            "head-dropped": "x weight",
            "layout-contiguous": "x weight",
            "batch-mean": "weight",
        },
    ),
)
