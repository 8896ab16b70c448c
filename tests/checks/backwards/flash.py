"""Tiles with a running maximum forward; P = exp(S - lse) again in backward, tile by tile, into accumulators written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .style import draw, style


class Flash(Function):
    """(b, h, n, d), optionally causal, any block size. ``lse`` is saved, P never."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, block: int, way: str) -> Tensor:
        n, m = q.shape[-2], k.shape[-2]
        scale = q.shape[-1] ** -0.5
        out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:-1], dtype=q.dtype, device=q.device)
        for start in range(0, n, block):
            qi = q[..., start : start + block, :]
            row_max = torch.full((*qi.shape[:-1], 1), float("-inf"), dtype=q.dtype, device=q.device)
            row_sum = torch.zeros((*qi.shape[:-1], 1), dtype=q.dtype, device=q.device)
            acc = torch.zeros(*qi.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
            for s in range(0, m, block):
                if causal and s > start + block - 1:
                    break
                scores = qi @ k[..., s : s + block, :].transpose(-1, -2) * scale
                if causal:
                    scores = scores.masked_fill(~Flash.visible(start, s, scores), float("-inf"))
                new_max = torch.maximum(row_max, scores.amax(dim=-1, keepdim=True))
                p = torch.exp(scores - new_max)
                correction = torch.exp(row_max - new_max)
                row_sum = row_sum * correction + p.sum(dim=-1, keepdim=True)
                acc = acc * correction + p @ v[..., s : s + block, :]
                row_max = new_max
            out[..., start : start + block, :] = acc / row_sum
            lse[..., start : start + block] = (row_max + torch.log(row_sum)).squeeze(-1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.causal, ctx.block, ctx.scale, ctx.way = causal, block, scale, way
        return out

    @staticmethod
    def visible(i: int, j: int, scores: Tensor) -> Tensor:
        rows = torch.arange(i, i + scores.shape[-2], device=scores.device)
        columns = torch.arange(j, j + scores.shape[-1], device=scores.device)
        return rows[:, None] >= columns[None, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        block, scale, way = ctx.block, ctx.scale, ctx.way
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        if way == "delta-strides":
            out = out.transpose(-1, -2).reshape(out.shape)
        delta = torch.sum(do * out, dim=-1, keepdim=True)
        n = q.shape[-2] - q.shape[-2] % block if way == "tail-block" else q.shape[-2]
        for s in range(0, k.shape[-2], block):
            kj, vj = k[..., s : s + block, :], v[..., s : s + block, :]
            for start in range(0, n, block):
                if ctx.causal and s > start + block - 1:
                    continue
                rows = slice(start, start + block)
                qi, doi = q[..., rows, :], do[..., rows, :]
                scores = qi @ kj.transpose(-1, -2) * scale
                p = torch.exp(scores - lse[..., rows].unsqueeze(-1))
                if ctx.causal and way != "mask-ignored-backward":
                    p = p.masked_fill(~Flash.visible(start, s, scores), 0.0)
                dv[..., s : s + block, :] += p.transpose(-1, -2) @ doi
                ds = p * (doi @ vj.transpose(-1, -2) - delta[..., rows, :]) * scale
                dq[..., rows, :] += ds @ kj
                dki = ds.transpose(-1, -2) @ qi
                if way == "block-overwritten":
                    dk[..., s : s + block, :] = dki
                else:
                    dk[..., s : s + block, :] += dki * scale if way == "scale-twice" else dki
        return dq, dk, dv, None, None, None


STYLES = (
    style(
        "flash",
        Flash,
        lambda: {**draw(10, q=(1, 2, 3, 3), k=(1, 2, 5, 3), v=(1, 2, 5, 2)), "causal": False, "block": 2},
        {"delta-strides": "q k", "tail-block": "q k v", "block-overwritten": "k"},
    ),
    style(
        "flash-causal",
        Flash,
        lambda: {**draw(11, q=(1, 1, 5, 2), k=(1, 1, 5, 2), v=(1, 1, 5, 3)), "causal": True, "block": 2},
        {"mask-ignored-backward": "q k v", "scale-twice": "k", "delta-strides": "q k"},
    ),
)
