"""Something is added to the scores: a broadcast bias, or a table of relative positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .style import draw, style


class Bias(Function):
    """bias (1, h, 1, n_k) against scores (b, h, n_q, n_k): its gradient is summed over what was broadcast."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, way: str) -> Tensor:
        scale = q.shape[-1] ** -0.5
        p = torch.softmax(q @ k.mT * scale + bias, -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale, ctx.shape, ctx.way = scale, bias.shape, way
        return p @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p = ctx.saved_tensors
        dp = do @ v.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        dbias = ctx.scale * ds if ctx.way == "scale-in-bias" else ds
        axes = [a for a, n in enumerate(ctx.shape) if n == 1]
        if ctx.way == "bias-mean":
            dbias = dbias.mean(dim=axes, keepdim=True)
        elif ctx.way == "bias-first-row":
            dbias = dbias[:1, :, :1]
        else:
            dbias = dbias.sum(dim=axes, keepdim=True)
        return ctx.scale * ds @ k, ctx.scale * ds.mT @ q, p.mT @ do, dbias, None


class Relative(Function):
    """table (buckets, h), read at ``index`` (n_q, n_k); backward adds up what fell into each bucket."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, table: Tensor, index: Tensor, way: str) -> Tensor:
        bias = table[index.reshape(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous()
        p = (q.mul(q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(dim=-1)
        ctx.save_for_backward(q, k, v, p, index)
        ctx.buckets, ctx.way = table.shape[0], way
        return p @ v

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, k, v, p, index = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        dp = do @ v.transpose(-2, -1)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        per_entry = ds.sum(0).permute(1, 2, 0).reshape(index.numel(), -1)
        table = ds.new_zeros(ctx.buckets, per_entry.shape[1])
        if ctx.way == "graph-duplicate":
            table[index.reshape(-1)] = per_entry
        else:
            table.index_add_(0, index.reshape(-1), per_entry)
        if ctx.way == "none-returned":
            table = None
        dk = ds.transpose(-2, -1) @ q
        return (
            ds @ k * scale,
            (dk if ctx.way == "scale-missing" else dk * scale),
            p.transpose(-2, -1) @ do,
            table,
            None,
            None,
        )


def _relative() -> dict[str, Any]:
    index = torch.arange(3)[:, None] - torch.arange(4)[None, :] + 3
    return {**draw(22, q=(1, 2, 3, 2), k=(1, 2, 4, 2), v=(1, 2, 4, 3), table=(7, 2)), "index": index}


STYLES = (
    style(
        "bias",
        Bias,
        lambda: draw(21, q=(2, 2, 3, 2), k=(2, 2, 4, 2), v=(2, 2, 4, 1), bias=(1, 2, 1, 4)),
        {"scale-in-bias": "bias", "bias-mean": "bias", "bias-first-row": "bias"},
    ),
    style(
        "relative-bias",
        Relative,
        _relative,
        {"graph-duplicate": "table", "none-returned": "table", "scale-missing": "k"},
    ),
)
