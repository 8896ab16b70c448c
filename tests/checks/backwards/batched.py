"""Heads folded into the batch: (b·h, n, d) with bmm and baddbmm, the sequence first, as older layers keep it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Folded(Function):
    """query (n_q, b, h·d), key and value (n_k, b, h·d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, num_heads: int, way: str) -> Tensor:
        tgt_len, bsz, embed_dim = query.shape
        src_len = key.shape[0]
        head_dim = embed_dim // num_heads
        q = query.contiguous().view(tgt_len, bsz * num_heads, head_dim).transpose(0, 1)
        k = key.contiguous().view(src_len, bsz * num_heads, head_dim).transpose(0, 1)
        v = value.contiguous().view(src_len, bsz * num_heads, head_dim).transpose(0, 1)
        buffer = torch.empty(bsz * num_heads, tgt_len, src_len, dtype=q.dtype, device=q.device)
        scores = torch.baddbmm(buffer, q, k.transpose(1, 2), beta=0.0, alpha=head_dim**-0.5)
        probs = torch.softmax(scores, dim=-1)
        context = torch.bmm(probs, v)
        ctx.save_for_backward(q, k, v, probs)
        ctx.dims, ctx.way = (tgt_len, src_len, bsz, embed_dim, head_dim), way
        return context.transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, probs = ctx.saved_tensors
        tgt_len, src_len, bsz, embed_dim, head_dim = ctx.dims
        heads = q.shape[0]
        if ctx.way == "head-reshape":
            g = grad.contiguous().view(heads, tgt_len, head_dim)
        else:
            g = grad.contiguous().view(tgt_len, heads, head_dim).transpose(0, 1)
        dv = torch.bmm(probs.transpose(1, 2), g)
        dp = torch.bmm(g, v.transpose(1, 2))
        ds = dp.sub((dp * probs).sum(-1, keepdim=True)).mul_(probs)
        out = torch.zeros_like(q)
        dq = torch.baddbmm(out, ds, k, beta=1, alpha=1.0 if ctx.way == "scale-missing" else head_dim**-0.5)
        dk = torch.bmm(ds.transpose(1, 2), q).mul_(head_dim**-0.5)
        if ctx.way == "heads-permuted":
            dk = dk.flip(0)
        if ctx.way == "head-dropped":
            dv[1:].zero_()
        return (
            dq.transpose(0, 1).reshape(tgt_len, bsz, embed_dim),
            dk.transpose(0, 1).reshape(src_len, bsz, embed_dim),
            dv.transpose(0, 1).reshape(src_len, bsz, embed_dim),
            None,
            None,
        )


class QueryChunks(Function):
    """Lists of chunks of queries, joined by cat; only the inputs are saved, and nothing of size n² outlives a chunk."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunk: int, way: str) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.chunk, ctx.way = chunk, way
        outs = []
        for qc in torch.split(q, chunk, dim=-2):
            outs.append(torch.softmax(qc @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v)
        return torch.cat(outs, dim=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dqs, dk, dv = [], 0, v.new_zeros(v.shape)
        pieces = list(zip(q.split(ctx.chunk, -2), grad.split(ctx.chunk, -2), strict=True))
        for i, (qc, gc) in enumerate(pieces):
            p = (qc @ k.mT * scale).softmax(-1)
            if ctx.way == "tail-block" and i == len(pieces) - 1:
                dqs.append(torch.zeros_like(qc))
                continue
            dv += p.mT @ gc
            dp = gc @ v.mT
            ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
            dqs.append(ds @ k)
            dk = ds.mT @ qc if ctx.way == "block-overwritten" else dk + ds.mT @ qc
        if ctx.way == "blocks-reversed":
            dqs.insert(0, dqs.pop(1))
        return torch.cat(dqs, -2), dk, dv, None, None


STYLES = (
    style(
        "folded-heads",
        Folded,
        lambda: {**draw(8, query=(3, 1, 4), key=(4, 1, 4), value=(4, 1, 4)), "num_heads": 2},
        {
            "head-reshape": "query key value",
            "scale-missing": "query",
            "heads-permuted": "key",
            "head-dropped": "value",
        },
    ),
    style(
        "query-chunks",
        QueryChunks,
        lambda: {**draw(9, q=(2, 5, 2), k=(2, 3, 2), v=(2, 3, 4)), "chunk": 2},
        {"tail-block": "q k v", "block-overwritten": "k", "blocks-reversed": "q"},
    ),
)
